//! A folder with PEFT's files, opened: which tensors hold the pair of which linear, and what is replaced as a whole. Numbers
//! are read pair by pair, when they are asked for.
//!
//! Three layouts are read, by the names of the tensors:
//! - a pair per linear, experts too (`…block_sparse_moe.experts.0.w1`), as transformers 4 has the modules;
//! - all experts of a layer in the pair of `gate_up_proj` (w1 over w3) and the pair of `down_proj` (w2), as transformers 5
//!   has them: `mlp.experts.base_layer` and `mlp.experts`, and the router `mlp.gate` ([`fused`](super::fused));
//! - Phi-3's `qkv_proj` and `gate_up_proj`, whose rows are several linears.
//!
//! Invariant: every tensor of the file is of a pair or replaces a weight, and every linear that the config targets has its
//! pair, or opening fails with the name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::fused::{by_rows, gate_and_up, of_expert};
use super::peft::{CONFIG_FILE, PREFIX, WEIGHTS_FILE};
use super::peft_config::PeftConfig;
use super::{Adapter, LoraPair, Matrix};
use crate::model::config::{Architecture, ModelConfig};
use crate::model::names::{self, ExpertPart, Linear};
use crate::weights::{Checkpoint, TensorFile};

/// Where transformers 5 keeps the pairs of `gate_up_proj` and `down_proj`. Which is which their shapes say.
const FUSED: [&str; 2] = [".mlp.experts.base_layer", ".mlp.experts"];

/// An adapter on disk.
pub struct PeftAdapter {
    path: PathBuf,
    file: TensorFile,
    experts: usize,
    /// By the linear's place in the model.
    pairs: BTreeMap<usize, Place>,
    /// Tensors that replace a weight.
    replaced: Vec<Renamed>,
    /// Embedding and head were one tensor and are not any more.
    unties: bool,
}

/// Where the pair of a linear lies.
struct Place {
    /// The linear, as the checkpoint spells it.
    module: String,
    scale: f32,
    /// The tensors of the stored pair.
    a: String,
    b: String,
    part: Part,
}

/// What of a stored pair is this linear's.
#[derive(Clone, Debug)]
enum Part {
    All,
    /// All of A, these rows of B.
    Rows(Range<usize>),
    /// Of all experts, this one's.
    Expert(usize, Share),
}

/// What of an expert's pair is this linear's.
#[derive(Clone, Copy, Debug)]
enum Share {
    All,
    Gate,
    Up,
}

/// A stored pair: names and shapes of its tensors.
struct Found {
    module: String,
    a: Half,
    b: Half,
}

impl PeftAdapter {
    /// The adapter in `folder`, for a model of that config.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<PeftAdapter> {
        let settings = PeftConfig::read(&folder.join(CONFIG_FILE))?;
        let path = folder.join(WEIGHTS_FILE);
        ensure!(
            path.exists(),
            "{} is missing (an adapter saved as adapter_model.bin must be saved again as safetensors)",
            path.display()
        );
        let file = TensorFile::open(&path)?;
        let index = Index { settings: &settings, config };
        let (pairs, replaced) = index.of(&file).with_context(|| path.display().to_string())?;
        let experts = config.mixture.map_or(1, |mixture| mixture.experts);
        let saves_an_end = |name: &str| settings.is_saved(name) && replaced.iter().any(|(_, saved)| saved == name);
        let unties = config.tie_word_embeddings && (saves_an_end(names::EMBEDDING) || saves_an_end(names::HEAD));
        Ok(PeftAdapter { path, file, experts, pairs, replaced, unties })
    }

    /// The linears that have a pair, in the order of the layers.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.pairs.values().map(|place| place.module.as_str())
    }

    /// All pairs, read.
    pub fn adapter(&self) -> Result<Adapter> {
        let pairs = self.pairs.values().map(|place| self.read(place)).collect::<Result<_>>()?;
        Ok(Adapter { pairs, whole: Vec::new() })
    }

    /// The pair of one linear, read.
    pub fn pair(&self, module: &str) -> Result<Option<LoraPair>> {
        self.pairs.values().find(|place| place.module == module).map(|place| self.read(place)).transpose()
    }

    /// The weights that the adapter replaces as a whole.
    pub fn replaced(&self) -> impl Iterator<Item = &str> {
        self.replaced.iter().map(|(_, name)| name.as_str())
    }

    /// Lays the replaced weights over those of `checkpoint`. Where one tensor was embedding and head and one of the two was
    /// trained, each is its own from then on, as in PEFT, which trains a copy; the configuration says so.
    pub fn lay_over(&self, checkpoint: &mut Checkpoint) -> Result<()> {
        if self.unties {
            checkpoint.untie(names::EMBEDDING, names::HEAD)?;
        }
        match self.replaced.is_empty() {
            true => Ok(()),
            false => checkpoint.lay_over(&self.path, &self.replaced),
        }
    }

    fn read(&self, place: &Place) -> Result<LoraPair> {
        let stored = (self.matrix(&place.a)?, self.matrix(&place.b)?);
        let (a, b) = match &place.part {
            Part::All => stored,
            Part::Rows(rows) => by_rows(stored, rows.clone()),
            Part::Expert(expert, share) => {
                let own = of_expert(&stored, self.experts, *expert);
                match share {
                    Share::All => own,
                    Share::Gate => gate_and_up(own).0,
                    Share::Up => gate_and_up(own).1,
                }
            }
        };
        Ok(LoraPair { module: place.module.clone(), scale: place.scale, a, b })
    }

    fn matrix(&self, name: &str) -> Result<Matrix> {
        let stored = self.file.stored(name)?;
        let values = stored.to_f32().with_context(|| format!("tensor {name}"))?;
        self.file.give_back(name);
        let finite = values.iter().all(|value| value.is_finite());
        ensure!(finite, "{}: tensor {name} holds a number that is not finite", self.path.display());
        Ok(Matrix { rows: stored.shape[0], columns: stored.shape[1], values })
    }
}

/// Finds out what the tensors of a file mean.
struct Index<'a> {
    settings: &'a PeftConfig,
    config: &'a ModelConfig,
}

type Contents = (BTreeMap<usize, Place>, Vec<Renamed>);

impl Index<'_> {
    fn of(&self, file: &TensorFile) -> Result<Contents> {
        let (modules, others) = sorted(file)?;
        let replaced = self.replaced(others)?;
        let stored: Vec<Found> = modules.into_iter().map(whole).collect::<Result<_>>()?;
        let layers = 0..self.config.num_hidden_layers;
        let linears: Vec<Linear> = layers.flat_map(|layer| names::linears(self.config, layer)).collect();
        let order: HashMap<&str, usize> =
            linears.iter().enumerate().map(|(index, linear)| (linear.module.as_str(), index)).collect();
        let mut pairs = BTreeMap::new();
        for found in &stored {
            for place in self.places(found)? {
                let Some(&index) = order.get(place.module.as_str()) else {
                    bail!(
                        "`{}` is no linear of this model's layers, so its tensors could not be used (merge the adapter \
                         with PEFT's `merge_and_unload`, and open the merged model)",
                        found.module
                    );
                };
                self.check_shape(found, &place, &linears[index])?;
                let module = &linears[index].module;
                ensure!(pairs.insert(index, place).is_none(), "`{module}` has two pairs");
            }
        }
        ensure!(!pairs.is_empty(), "the file holds no LoRA pair");
        let modules: Vec<&str> = stored.iter().map(|found| found.module.as_str()).collect();
        let experts = self.config.mixture.map_or(1, |mixture| mixture.experts);
        self.settings.targets.check(&modules, self.config.num_hidden_layers, experts)?;
        Ok((pairs, replaced))
    }

    /// The tensors that replace a weight of the model: those of `modules_to_save`, and embeddings, which PEFT also saves
    /// unasked (`save_embedding_layers`).
    fn replaced(&self, others: Vec<Renamed>) -> Result<Vec<Renamed>> {
        let known = |name: &str| {
            let tensors = names::tensors(self.config);
            name == names::HEAD || tensors.iter().any(|(tensor, _)| tensor == name)
        };
        for (name, path) in &others {
            let saved = self.settings.is_saved(path) || [names::EMBEDDING, names::HEAD].contains(&path.as_str());
            ensure!(
                saved && known(path),
                "tensor {name} is neither a lora_A nor a lora_B of a linear, nor a weight named by `modules_to_save` \
                 that the model has; that is all that fireval can apply"
            );
        }
        for module in &self.settings.modules_to_save {
            let found = others.iter().any(|(_, path)| PeftConfig::saves(module, path));
            ensure!(found, "`modules_to_save` names `{module}`, but the file has no weight of it");
        }
        Ok(others)
    }

    /// What a stored pair holds: one linear's, those of all experts, or those of Phi-3's stacked linears.
    fn places(&self, found: &Found) -> Result<Vec<Place>> {
        let module = found.module.as_str();
        let Some(mixture) = self.config.mixture else {
            return match stacked(module, self.config) {
                Some(linears) => self.by_rows(found, linears),
                None => Ok(vec![self.place(found, module, module.to_owned(), found.a.1[0], Part::All)?]),
            };
        };
        if let Some(layer) = FUSED.iter().find_map(|suffix| module.strip_suffix(suffix)) {
            let index =
                layer_index(layer).with_context(|| format!("`{module}` is no linear of this model's layers"))?;
            return self.experts(found, index, mixture.experts);
        }
        // transformers 5 calls the router's weight a parameter, of every family: `mlp.gate.weight`.
        let layer = module.strip_suffix(".mlp.gate").and_then(layer_index);
        let usual = layer.map_or(module.to_owned(), |layer| names::router(self.config, layer));
        Ok(vec![self.place(found, module, usual, found.a.1[0], Part::All)?])
    }

    /// `known`: what the pair's linear goes by in the config's patterns.
    fn place(&self, found: &Found, known: &str, module: String, rank: usize, part: Part) -> Result<Place> {
        let parameter = names::weight(known);
        let known = [known, parameter.as_str()];
        let stated = self.settings.rank(&known);
        ensure!(rank == stated, "`{}` has rank {rank}, but {CONFIG_FILE} says {stated}", known[0]);
        let (a, b) = (found.a.0.clone(), found.b.0.clone());
        Ok(Place { module, scale: self.settings.scale(&known), a, b, part })
    }

    fn by_rows(&self, found: &Found, linears: Vec<(String, usize)>) -> Result<Vec<Place>> {
        let all: usize = linears.iter().map(|(_, outputs)| outputs).sum();
        let rows = found.b.1[0];
        ensure!(rows == all, "`{}`: B has {rows} rows, but its linears have {all} in all", found.module);
        let mut start = 0;
        let place = |(module, outputs): (String, usize)| {
            start += outputs;
            self.place(found, &found.module, module, found.a.1[0], Part::Rows(start - outputs..start))
        };
        linears.into_iter().map(place).collect()
    }

    fn experts(&self, found: &Found, layer: usize, experts: usize) -> Result<Vec<Place>> {
        let Found { module, a: (_, [rows, inputs]), b: (_, [outputs, columns]) } = found;
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let (parameter, shares): (&str, &[(ExpertPart, Share)]) = match (*inputs, *outputs) {
            (a, b) if (a, b) == (hidden, 2 * wide) => {
                ("gate_up_proj", &[(ExpertPart::W1, Share::Gate), (ExpertPart::W3, Share::Up)])
            }
            (a, b) if (a, b) == (wide, hidden) => ("down_proj", &[(ExpertPart::W2, Share::All)]),
            (a, b) => bail!("`{module}` maps {a} to {b}, which no expert weight of this model does"),
        };
        ensure!(
            *rows > 0 && rows.is_multiple_of(experts) && rows == columns,
            "`{module}`: A has {rows} rows and B {columns} columns, which is not one rank for each of {experts} experts"
        );
        let known = format!("model.layers.{layer}.mlp.experts.{parameter}");
        let mut places = Vec::with_capacity(shares.len() * experts);
        for expert in 0..experts {
            for &(part, share) in shares {
                let usual = names::expert(self.config, layer, expert, part);
                places.push(self.place(found, &known, usual, rows / experts, Part::Expert(expert, share))?);
            }
        }
        Ok(places)
    }

    fn check_shape(&self, found: &Found, place: &Place, linear: &Linear) -> Result<()> {
        let Found { a: (_, [rank, inputs]), b: (_, [rows, columns]), .. } = found;
        let outputs = match &place.part {
            Part::All | Part::Expert(_, Share::All) => *rows,
            Part::Rows(range) => range.len(),
            Part::Expert(_, Share::Gate | Share::Up) => rows / 2,
        };
        ensure!(
            *inputs == linear.inputs && outputs == linear.outputs && rank == columns,
            "`{}`: lora_A ({rank}, {inputs}) and lora_B ({outputs}, {columns}) do not fit a linear of {} inputs and {} \
             outputs",
            place.module,
            linear.inputs,
            linear.outputs
        );
        Ok(())
    }
}

/// A and B of a stored pair as found so far.
type Halves = (Option<Half>, Option<Half>);
/// Name in the file, and the name that the checkpoint has for it.
type Renamed = (String, String);
/// Name and shape.
type Half = (String, [usize; 2]);

/// The halves of pairs by module, and what is no half: names in the file and without PEFT's prefix.
fn sorted(file: &TensorFile) -> Result<(BTreeMap<String, Halves>, Vec<Renamed>)> {
    let mut modules: BTreeMap<String, Halves> = BTreeMap::new();
    let mut others = Vec::new();
    for (name, shape) in file.shapes() {
        let path = name.strip_prefix(PREFIX).unwrap_or(name);
        let half = || -> Result<Half> {
            let matrix = <[usize; 2]>::try_from(shape).ok();
            let matrix = matrix.with_context(|| format!("tensor {name} has shape {shape:?}, not that of a matrix"))?;
            Ok((name.to_owned(), matrix))
        };
        if let Some(module) = path.strip_suffix(".lora_A.weight") {
            modules.entry(module.to_owned()).or_default().0 = Some(half()?);
        } else if let Some(module) = path.strip_suffix(".lora_B.weight") {
            modules.entry(module.to_owned()).or_default().1 = Some(half()?);
        } else {
            others.push((name.to_owned(), path.to_owned()));
        }
    }
    Ok((modules, others))
}

fn whole((module, halves): (String, Halves)) -> Result<Found> {
    match halves {
        (Some(a), Some(b)) => Ok(Found { module, a, b }),
        (None, _) => bail!("`{module}` has a lora_B but no lora_A"),
        (_, None) => bail!("`{module}` has a lora_A but no lora_B"),
    }
}

/// Of `model.layers.3`.
fn layer_index(layer: &str) -> Option<usize> {
    layer.strip_prefix("model.layers.")?.parse().ok()
}

/// The linears that Phi-3 has in one, with their outputs.
fn stacked(module: &str, config: &ModelConfig) -> Option<Vec<(String, usize)>> {
    if config.architecture != Architecture::Phi3 {
        return None;
    }
    let keys = config.num_key_value_heads * config.head_dim;
    if let Some(layer) = module.strip_suffix(".self_attn.qkv_proj").and_then(layer_index) {
        let queries = config.num_attention_heads * config.head_dim;
        return Some(vec![(names::q_proj(layer), queries), (names::k_proj(layer), keys), (names::v_proj(layer), keys)]);
    }
    let layer = module.strip_suffix(".mlp.gate_up_proj").and_then(layer_index)?;
    let wide = config.intermediate_size;
    Some(vec![(names::gate_proj(layer), wide), (names::up_proj(layer), wide)])
}
