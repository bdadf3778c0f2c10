//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, read in every layout, written in the old one.
//!
//! The old layout names a pair per expert (`base_model.model.model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight`)
//! and is read by old and new PEFT alike (the new one converts it). The layout of transformers 5 holds all experts of a
//! layer in one pair (`mlp.experts.…`, see `fused`) and calls the router `mlp.gate`. Every tensor of a file ends up in a
//! pair, or reading fails with its name. Sources: peft 0.17.1 and 0.21.2, `utils/save_and_load.py`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View, serialize_to_file};

use super::fused::{by_rows, gate_and_up, per_expert};
use super::peft_config::PeftConfig;
pub use super::peft_config::PeftSettings;
use super::{Adapter, LoraPair, Matrix};
use crate::disk;
use crate::model::config::{Architecture, ModelConfig};
use crate::model::names::{self, ExpertPart, Linear};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
/// Where transformers 5 keeps the pairs of `gate_up_proj` and `down_proj`. Which is which their shapes say.
const FUSED: [&str; 2] = [".mlp.experts.base_layer", ".mlp.experts"];

/// The adapter in `folder`, for a model of that config.
pub fn read(folder: &Path, config: &ModelConfig) -> Result<Adapter> {
    let settings = PeftConfig::read(&folder.join(CONFIG_FILE))?;
    let path = folder.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).with_context(|| {
        format!(
            "cannot read {} (adapters saved as adapter_model.bin must be saved again as safetensors)",
            path.display()
        )
    })?;
    assemble(&bytes, &settings, config).with_context(|| path.display().to_string())
}

/// Writes `adapter` into `folder` (made where it is not there), the config last.
pub fn write(folder: &Path, adapter: &Adapter, settings: &PeftSettings) -> Result<()> {
    for pair in &adapter.pairs {
        let scale = (settings.alpha / settings.rank as f64) as f32;
        ensure!(
            pair.a.rows == settings.rank && pair.b.columns == settings.rank && pair.scale == scale,
            "{}: rank {} and scale {} are not those of the settings ({} and {scale})",
            pair.module,
            pair.a.rows,
            pair.scale,
            settings.rank
        );
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    disk::replace_with(&folder.join(WEIGHTS_FILE), |path| {
        Ok(serialize_to_file(tensors(adapter), Some(metadata.clone()), path)?)
    })?;
    disk::replace(&folder.join(CONFIG_FILE), settings.to_json().as_bytes())
}

/// The tensors of `adapter` under the names PEFT gives them.
pub fn tensors(adapter: &Adapter) -> impl Iterator<Item = (String, impl View + '_)> {
    adapter.pairs.iter().flat_map(|pair| {
        let name = |half: &str| format!("{PREFIX}{}.lora_{half}.weight", pair.module);
        [
            (name("A"), F32 { values: &pair.a.values, shape: vec![pair.a.rows, pair.a.columns] }),
            (name("B"), F32 { values: &pair.b.values, shape: vec![pair.b.rows, pair.b.columns] }),
        ]
    })
}

/// f32 numbers on their way into a safetensors file.
pub struct F32<'a> {
    pub values: &'a [f32],
    pub shape: Vec<usize>,
}

impl View for F32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// A and B as found so far.
type Halves = (Option<Matrix>, Option<Matrix>);

fn assemble(bytes: &[u8], settings: &PeftConfig, config: &ModelConfig) -> Result<Adapter> {
    let linears: Vec<Linear> = (0..config.num_hidden_layers).flat_map(|layer| names::linears(config, layer)).collect();
    let places: HashMap<&str, (usize, &Linear)> =
        linears.iter().enumerate().map(|(index, linear)| (linear.module.as_str(), (index, linear))).collect();
    let mut found: BTreeMap<usize, LoraPair> = BTreeMap::new();
    for (module, (a, b)) in halves(bytes)? {
        for pair in pairs(&module, a, b, settings, config)? {
            let Some(&(index, linear)) = places.get(pair.module.as_str()) else {
                bail!("`{module}` is no linear of this model's layers, so its tensors could not be used");
            };
            check_shape(&pair, linear)?;
            ensure!(found.insert(index, pair).is_none(), "`{}` has two pairs", linear.module);
        }
    }
    ensure!(!found.is_empty(), "the file holds no LoRA pair");
    Ok(Adapter { pairs: found.into_values().collect() })
}

/// The file's matrices by module, each with both its halves.
fn halves(bytes: &[u8]) -> Result<BTreeMap<String, (Matrix, Matrix)>> {
    let file = SafeTensors::deserialize(bytes).context("not a whole safetensors file")?;
    let mut modules: BTreeMap<String, Halves> = BTreeMap::new();
    for (name, view) in file.iter() {
        let path = name.strip_prefix(PREFIX).unwrap_or(name);
        let matrix = || matrix(&view).with_context(|| format!("tensor {name}"));
        if let Some(module) = path.strip_suffix(".lora_A.weight") {
            modules.entry(module.to_owned()).or_default().0 = Some(matrix()?);
        } else if let Some(module) = path.strip_suffix(".lora_B.weight") {
            modules.entry(module.to_owned()).or_default().1 = Some(matrix()?);
        } else {
            bail!("tensor {name} is neither a lora_A nor a lora_B of a linear, which is all that fireval can apply");
        }
    }
    let whole = |(module, halves): (String, Halves)| match halves {
        (Some(a), Some(b)) => Ok((module, (a, b))),
        (None, _) => bail!("`{module}` has a lora_B but no lora_A"),
        (_, None) => bail!("`{module}` has a lora_A but no lora_B"),
    };
    modules.into_iter().map(whole).collect()
}

/// What a module's tensors mean: one pair, those of all experts, or those of Phi-3's fused linears.
fn pairs(module: &str, a: Matrix, b: Matrix, settings: &PeftConfig, config: &ModelConfig) -> Result<Vec<LoraPair>> {
    let Some(mixture) = config.mixture else {
        return match parts(module, config) {
            Some(parts) => stacked(module, &parts, (a, b), settings),
            None => Ok(vec![single(module, module, a, b, settings)?]),
        };
    };
    let layer = FUSED.iter().find_map(|suffix| module.strip_suffix(suffix));
    if let Some(layer) = layer {
        let index = layer_index(layer).with_context(|| format!("`{module}` is no linear of this model's layers"))?;
        return fused(module, index, mixture.experts, (a, b), settings, config);
    }
    // transformers 5 calls the router's weight a parameter, of every family: `mlp.gate.weight`.
    let layer = module.strip_suffix(".mlp.gate").and_then(layer_index);
    let usual = layer.map_or(module.to_owned(), |layer| names::router(config, layer));
    Ok(vec![single(&usual, module, a, b, settings)?])
}

/// Of `model.layers.3`.
fn layer_index(layer: &str) -> Option<usize> {
    layer.strip_prefix("model.layers.")?.parse().ok()
}

/// The modules that Phi-3 has in one, with their outputs.
fn parts(module: &str, config: &ModelConfig) -> Option<Vec<(String, usize)>> {
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

fn stacked(
    module: &str,
    parts: &[(String, usize)],
    (a, b): (Matrix, Matrix),
    settings: &PeftConfig,
) -> Result<Vec<LoraPair>> {
    let parameter = names::weight(module);
    let known = [module, parameter.as_str()];
    check_rank(module, a.rows, settings.rank(&known))?;
    let scale = settings.scale(&known);
    let outputs: Vec<usize> = parts.iter().map(|(_, outputs)| *outputs).collect();
    let factors = by_rows((a, b), &outputs).with_context(|| format!("`{module}`"))?;
    let pairs = parts.iter().zip(factors).map(|((module, _), (a, b))| LoraPair { module: module.clone(), scale, a, b });
    Ok(pairs.collect())
}

fn single(usual: &str, stored: &str, a: Matrix, b: Matrix, settings: &PeftConfig) -> Result<LoraPair> {
    let parameter = names::weight(stored);
    let known = [stored, parameter.as_str()];
    check_rank(stored, a.rows, settings.rank(&known))?;
    Ok(LoraPair { module: usual.to_owned(), scale: settings.scale(&known), a, b })
}

fn fused(
    module: &str,
    layer: usize,
    experts: usize,
    (a, b): (Matrix, Matrix),
    settings: &PeftConfig,
    config: &ModelConfig,
) -> Result<Vec<LoraPair>> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let gate_up = match (a.columns, b.rows) {
        (inputs, outputs) if (inputs, outputs) == (hidden, 2 * wide) => true,
        (inputs, outputs) if (inputs, outputs) == (wide, hidden) => false,
        (inputs, outputs) => bail!("`{module}` maps {inputs} to {outputs}, which no expert weight of this model does"),
    };
    let parameter = format!("model.layers.{layer}.mlp.experts.{}", if gate_up { "gate_up_proj" } else { "down_proj" });
    let known = [parameter.as_str()];
    let split = per_expert(&a, &b, experts).with_context(|| format!("`{module}`"))?;
    check_rank(&parameter, a.rows / experts, settings.rank(&known))?;
    let scale = settings.scale(&known);
    let pair = |module, (a, b)| LoraPair { module, scale, a, b };
    let mut pairs = Vec::with_capacity(2 * experts);
    for (expert, factors) in split.into_iter().enumerate() {
        if gate_up {
            let (w1, w3) = gate_and_up(factors)?;
            pairs.push(pair(names::expert(config, layer, expert, ExpertPart::W1), w1));
            pairs.push(pair(names::expert(config, layer, expert, ExpertPart::W3), w3));
        } else {
            pairs.push(pair(names::expert(config, layer, expert, ExpertPart::W2), factors));
        }
    }
    Ok(pairs)
}

fn check_rank(module: &str, found: usize, stated: usize) -> Result<()> {
    ensure!(found == stated, "`{module}` has rank {found}, but {CONFIG_FILE} says {stated}");
    Ok(())
}

fn check_shape(pair: &LoraPair, linear: &Linear) -> Result<()> {
    ensure!(
        pair.a.columns == linear.inputs && pair.b.rows == linear.outputs && pair.a.rows == pair.b.columns,
        "`{}`: lora_A ({}, {}) and lora_B ({}, {}) do not fit a linear of {} inputs and {} outputs",
        pair.module,
        pair.a.rows,
        pair.a.columns,
        pair.b.rows,
        pair.b.columns,
        linear.inputs,
        linear.outputs
    );
    Ok(())
}

fn matrix(view: &TensorView) -> Result<Matrix> {
    let &[rows, columns] = view.shape() else {
        bail!("has shape {:?}, not that of a matrix", view.shape());
    };
    let two = |bytes: &[u8]| [bytes[0], bytes[1]];
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f32()).collect(),
        other => bail!("has dtype {other:?}; f32, f16 and bf16 are read"),
    };
    ensure!(values.iter().all(|value| value.is_finite()), "holds a number that is not finite");
    Ok(Matrix { rows, columns, values })
}
