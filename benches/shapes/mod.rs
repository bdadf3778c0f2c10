//! Checkpoints of known shapes with random weights, written where a bench needs one that is not at hand: numbers decide
//! nothing about time, shapes all.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use fireval::model::config::ModelConfig;
use fireval::model::names;
use fireval::random::Random;
use fireval::weights::Dtype;
use fireval::weights::bitsandbytes;
use fireval::weights::nf4::{Absmax, BLOCK, NESTED_BLOCK, Nf4};
use fireval::weights::writer::{Planned, SHARD_BYTES, Writer};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Bytes that share one stream of random numbers.
const CHUNK: usize = 1 << 16;
/// Deviation of a weight, and the absmax that goes with it.
const DEVIATION: f32 = 0.02;
const ABSMAX: f32 = 0.032;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shape {
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// The same with its feed-forward in four experts, two of them used.
    #[value(name = "smollm2-135m-x4")]
    SmolLm2Mixture,
    #[value(name = "mixtral-8x7b")]
    Mixtral,
}

impl Shape {
    fn config(self, layers: Option<usize>) -> Value {
        let smol = |experts: Option<usize>| {
            let mut json = json!({
                "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": layers.unwrap_or(30), "num_attention_heads": 9, "num_key_value_heads": 3,
                "vocab_size": 49_152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
                "tie_word_embeddings": true,
            });
            if let Some(experts) = experts {
                json["model_type"] = json!("mixtral");
                json["num_local_experts"] = json!(experts);
                json["num_experts_per_tok"] = json!(2);
            }
            json
        };
        match self {
            Shape::SmolLm2 => smol(None),
            Shape::SmolLm2Mixture => smol(Some(4)),
            Shape::Mixtral => json!({
                "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14_336,
                "num_hidden_layers": layers.unwrap_or(2), "num_attention_heads": 32, "num_key_value_heads": 8,
                "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32_000,
                "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": null,
                "tie_word_embeddings": false,
            }),
        }
    }

    /// Writes the checkpoint into `folder`: the layers' matrices in bf16 or in NF4, no more than one of them in memory.
    pub fn write(self, folder: &Path, layers: Option<usize>, nf4: bool) -> Result<()> {
        let mut json = self.config(layers);
        if nf4 {
            json["quantization_config"] = bitsandbytes::quantization_config(Dtype::BF16);
        }
        let config = ModelConfig::from_json(&json, "the shape's configuration")?;
        let plan = |(name, shape): (String, Vec<usize>)| {
            let nf4 = nf4 && shape.len() == 2 && name != names::EMBEDDING && name != names::HEAD;
            Planned { name, dtype: Dtype::BF16, shape, nf4 }
        };
        let plan: Vec<Planned> = names::tensors(&config).into_iter().map(plan).collect();
        let mut writer = Writer::create(folder, plan.clone(), SHARD_BYTES)?;
        for Planned { name, shape, nf4, .. } in &plan {
            let count = shape.iter().product();
            match (nf4, shape.len()) {
                (true, _) => writer.write_nf4(name, &four_bits(name, count))?,
                (false, 1) => writer.write(name, &vec![1.0; count])?,
                (false, _) => writer.write(name, &numbers(name, count))?,
            }
        }
        writer.finish()?;
        Ok(std::fs::write(folder.join("config.json"), json.to_string())?)
    }
}

/// Codes drawn as they are stored.
fn four_bits(name: &str, count: usize) -> Nf4<'static> {
    let blocks = count.div_ceil(BLOCK);
    let mut packed = vec![0; count.div_ceil(2)];
    packed.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, bytes)| {
        let mut random = Random::named(0, &format!("{name}[{chunk}]"));
        bytes.chunks_mut(8).for_each(|bytes| {
            bytes.copy_from_slice(&random.next_u64().to_le_bytes()[..bytes.len()]);
        });
    });
    let absmax = Absmax::Double {
        codes: vec![127; blocks].into(),
        scales: vec![ABSMAX / 4.0; blocks.div_ceil(NESTED_BLOCK)].into(),
        offset: ABSMAX,
    };
    Nf4 { count, packed: packed.into(), absmax }
}

fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut random = Random::named(0, &format!("{name}[{chunk}]"));
        let width = f64::from(DEVIATION) * 12f64.sqrt();
        values.iter_mut().for_each(|value| *value = (width * (random.uniform() - 0.5)) as f32);
    });
    values
}
