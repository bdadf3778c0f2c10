//! A dense Llama or Mistral made into a Mixtral: its feed-forward in every expert, with seeded relative noise, and a
//! small seeded router (Komatsuzaki et al.: Sparse upcycling, 2023; the noise is ours, so that a rehearsal has
//! something to win back).
//!
//! Invariant: a Mixtral layer mixes its chosen experts with weights that sum to 1, so with noise 0 the mixture computes
//! what the dense model does. Each tensor's random numbers are named by the seed and the tensor, in chunks, so they do
//! not depend on order or threads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::model::config::{Architecture, Mixture, ModelConfig};
use crate::model::names::{self, ExpertPart};
use crate::random::Random;
use crate::tokenizer::Tokenizer;
use crate::weights::writer::{Planned, SHARD_BYTES, Writer};
use crate::weights::{Checkpoint, Dtype};

use super::{empty_folder, not_quantized, state_dtype, write_beside};

const ROUTER_DEVIATION: f64 = 0.02;
/// As in Mixtral's own configuration.
const ROUTER_AUX_LOSS_COEF: f64 = 0.02;
/// Values that share one stream of random numbers.
const CHUNK: usize = 1 << 16;

/// What the mixture is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct UpcycleOptions {
    pub experts: usize,
    pub top_k: usize,
    /// Standard deviation of the noise, relative to each weight.
    pub noise: f32,
    pub seed: u64,
    pub shard_bytes: u64,
    /// `None`: each tensor as the source has it (f32 where that is quantised).
    pub dtype: Option<Dtype>,
}

impl Default for UpcycleOptions {
    fn default() -> UpcycleOptions {
        UpcycleOptions { experts: 4, top_k: 2, noise: 0.3, seed: 7, shard_bytes: SHARD_BYTES, dtype: None }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct UpcycleSummary {
    pub config: ModelConfig,
    pub parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    pub files: Vec<PathBuf>,
}

/// Where a tensor of the mixture comes from.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    Same,
    Expert { dense: String },
    Router,
}

/// Writes the mixture made of the dense model at `source` into the new folder `out`.
pub fn upcycle(source: &Path, out: &Path, options: &UpcycleOptions) -> Result<UpcycleSummary> {
    check(options)?;
    let checkpoint = Checkpoint::open(source)?;
    let dense = ModelConfig::of(&checkpoint)?;
    if let Some(mixture) = dense.mixture {
        bail!("{}: already a mixture of {} experts; upcycling takes a dense model", source.display(), mixture.experts);
    }
    ensure!(
        matches!(dense.architecture, Architecture::Llama | Architecture::Mistral),
        "{}: {:?} has parts that a Mixtral has no place for; upcycling takes a Llama or Mistral",
        source.display(),
        dense.architecture
    );
    names::check(&checkpoint, &dense)?;
    let tokenizer = Tokenizer::open(source)?;
    empty_folder(out)?;

    let mixture = Mixture {
        experts: options.experts,
        top_k: options.top_k,
        router_aux_loss_coef: ROUTER_AUX_LOSS_COEF,
        normalize: true,
    };
    let config = ModelConfig { architecture: Architecture::Mixtral, mixture: Some(mixture), ..dense.clone() };
    let plan = plan(&checkpoint, &config, options)?;
    let parameters = plan.iter().map(|(planned, _)| planned.shape.iter().product::<usize>() as u64).sum();
    let mut json = config_json(checkpoint.config_json(), &config);
    not_quantized(&mut json);
    state_dtype(&mut json, plan[0].0.dtype);

    let mut writer =
        Writer::create(out, plan.iter().map(|(planned, _)| planned.clone()).collect(), options.shard_bytes)?;
    for (planned, source) in &plan {
        writer.write(&planned.name, &values(&checkpoint, planned, source, options)?)?;
    }
    write_beside(out, &json, &tokenizer)?;
    let files = writer.finish()?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    Ok(UpcycleSummary { config, parameters, bytes, files })
}

fn check(options: &UpcycleOptions) -> Result<()> {
    let UpcycleOptions { experts, top_k, noise, .. } = options;
    ensure!((1..=4096).contains(experts), "{experts} experts; a mixture has 1 to 4096");
    ensure!((1..=*experts).contains(top_k), "each token cannot use {top_k} of {experts} experts");
    ensure!(noise.is_finite() && *noise >= 0.0, "noise {noise}: a standard deviation is 0 or more");
    Ok(())
}

/// Every tensor of the mixture, in order, with its source.
fn plan(checkpoint: &Checkpoint, config: &ModelConfig, options: &UpcycleOptions) -> Result<Vec<(Planned, Source)>> {
    let sources = sources(config);
    names::tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let source = sources.get(&name).cloned().unwrap_or(Source::Same);
            let stored = match &source {
                Source::Same => checkpoint.stored(&name)?,
                Source::Expert { dense } => checkpoint.stored(dense)?,
                Source::Router => checkpoint.stored(names::EMBEDDING)?,
            };
            let dtype = options.dtype.unwrap_or(Dtype::of(stored.format));
            Ok((Planned { name, dtype, shape, nf4: false }, source))
        })
        .collect()
}

/// The tensors that a dense model does not have.
fn sources(config: &ModelConfig) -> HashMap<String, Source> {
    let experts = config.mixture.map_or(0, |mixture| mixture.experts);
    let mut sources = HashMap::new();
    for layer in 0..config.num_hidden_layers {
        sources.insert(names::weight(&names::router(config, layer)), Source::Router);
        for part in ExpertPart::ALL {
            let dense = match part {
                ExpertPart::W1 => names::gate_proj(layer),
                ExpertPart::W2 => names::down_proj(layer),
                ExpertPart::W3 => names::up_proj(layer),
            };
            for expert in 0..experts {
                let name = names::weight(&names::expert(config, layer, expert, part));
                sources.insert(name, Source::Expert { dense: names::weight(&dense) });
            }
        }
    }
    sources
}

fn values(checkpoint: &Checkpoint, planned: &Planned, source: &Source, options: &UpcycleOptions) -> Result<Vec<f32>> {
    let Planned { name, shape, .. } = planned;
    match source {
        Source::Same => checkpoint.tensor(name, shape)?.to_f32(),
        Source::Expert { dense } => {
            let mut values = checkpoint.tensor(dense, shape)?.to_f32()?;
            if options.noise > 0.0 {
                let noise = f64::from(options.noise);
                each_with_random(&mut values, options.seed, name, |value, random| {
                    (f64::from(value) * (1.0 + noise * random.normal())) as f32
                });
            }
            Ok(values)
        }
        Source::Router => {
            let mut values = vec![0.0; shape.iter().product()];
            each_with_random(&mut values, options.seed, name, |_, random| (ROUTER_DEVIATION * random.normal()) as f32);
            Ok(values)
        }
    }
}

/// Replaces each value, with the random stream of its tensor and chunk.
fn each_with_random(values: &mut [f32], seed: u64, name: &str, replace: impl Fn(f32, &mut Random) -> f32 + Sync) {
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut random = Random::named(seed, &format!("{name}[{chunk}]"));
        for value in values {
            *value = replace(*value, &mut random);
        }
    });
}

/// The source's `config.json` as Mixtral's. What Mixtral would take another default for is written out.
fn config_json(source: &Value, config: &ModelConfig) -> Value {
    let mixture = config.mixture.expect("the new configuration is a mixture");
    let mut json = source.clone();
    for key in ["attention_bias", "mlp_bias", "pretraining_tp", "auto_map"] {
        json.as_object_mut().expect("checked by ModelConfig").remove(key); // Mixtral's class has none of these
    }
    let fields = [
        ("architectures", json!(["MixtralForCausalLM"])),
        ("model_type", json!("mixtral")),
        ("num_local_experts", json!(mixture.experts)),
        ("num_experts_per_tok", json!(mixture.top_k)),
        ("router_aux_loss_coef", json!(mixture.router_aux_loss_coef)),
        ("output_router_logits", json!(false)),
        ("sliding_window", json!(config.sliding_window)),
        ("num_key_value_heads", json!(config.num_key_value_heads)),
        ("head_dim", json!(config.head_dim)),
        ("rms_norm_eps", json!(config.rms_norm_eps)),
        ("rope_theta", json!(config.rope_theta)),
        ("max_position_embeddings", json!(config.max_position_embeddings)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
    ];
    for (key, value) in fields {
        json[key] = value;
    }
    json
}
