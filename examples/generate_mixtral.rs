//! Writes a checkpoint of Mixtral 8x7B's shape in NF4 with random weights: something large enough to prove streaming on,
//! where the real one (93 GB in bf16) cannot be had.
//!
//! cargo run --release --example generate_mixtral -- --layers 32 --tokenizer FOLDER OUT
//!
//! Codes and absmax are drawn as they are stored, without a detour over f32, so it goes as fast as the disk. Numbers are
//! of the size that trained ones have: activations neither vanish nor overflow.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fireval::model::config::ModelConfig;
use fireval::model::names;
use fireval::random::Random;
use fireval::tokenizer::Tokenizer;
use fireval::weights::Dtype;
use fireval::weights::bitsandbytes;
use fireval::weights::nf4::{Absmax, BLOCK, NESTED_BLOCK, Nf4};
use fireval::weights::writer::{Planned, SHARD_BYTES, Writer};
use rayon::prelude::*;
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// The new folder.
    out: PathBuf,
    /// Mixtral 8x7B has 32, of 0.8 GB each.
    #[arg(long, default_value_t = 32)]
    layers: usize,
    /// A model's folder or .gguf file whose tokenizer is copied.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Rows of embedding and head; at least as many as the tokenizer has tokens.
    #[arg(long, default_value_t = 32_000)]
    vocabulary: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Bytes that share one stream of random numbers.
const CHUNK: usize = 1 << 16;
/// Mean and spread of the absmax: about 1.6 deviations of the weights, which are about 1 / sqrt(4096).
const ABSMAX: f32 = 0.025;
const ABSMAX_SPREAD: f32 = 0.01;

fn main() -> Result<()> {
    let args = Args::parse();
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    ensure!(
        tokenizer.token(args.vocabulary as u32).is_none(),
        "{}: has more than {} tokens; give --vocabulary",
        args.tokenizer.display(),
        args.vocabulary
    );
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let json = config(&args);
    let config = ModelConfig::from_json(&json, "the generated config.json")?;
    let plan = |(name, shape): (String, Vec<usize>)| {
        let nf4 = shape.len() == 2 && name != names::EMBEDDING && name != names::HEAD;
        Planned { name, dtype: Dtype::BF16, shape, nf4 }
    };
    let plan: Vec<Planned> = names::tensors(&config).into_iter().map(plan).collect();
    let mut writer = Writer::create(&args.out, plan.clone(), SHARD_BYTES)?;
    for planned in &plan {
        let (name, count) = (&planned.name, planned.shape.iter().product());
        match (planned.nf4, planned.shape.len()) {
            (true, _) => writer.write_nf4(name, &matrix(args.seed, name, count))?,
            (false, 1) => writer.write(name, &vec![1.0; count])?,
            (false, _) => writer.write(name, &table(args.seed, name, count))?,
        }
    }
    tokenizer.save(&args.out)?;
    std::fs::write(args.out.join("config.json"), format!("{json:#}\n"))?;
    let files = writer.finish()?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    println!("{}: {} layers, {:.2} GB in {} files", args.out.display(), args.layers, bytes as f64 / 1e9, files.len());
    Ok(())
}

fn config(args: &Args) -> Value {
    json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": args.layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": args.vocabulary, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "sliding_window": null, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16", "quantization_config": bitsandbytes::quantization_config(Dtype::BF16),
    })
}

fn matrix(seed: u64, name: &str, count: usize) -> Nf4<'static> {
    let blocks = count.div_ceil(BLOCK);
    let absmax = Absmax::Double {
        codes: bytes(seed, &format!("{name}.absmax"), blocks).into(),
        scales: vec![ABSMAX_SPREAD; blocks.div_ceil(NESTED_BLOCK)].into(),
        offset: ABSMAX,
    };
    Nf4 { count, packed: bytes(seed, name, count.div_ceil(2)).into(), absmax }
}

fn bytes(seed: u64, name: &str, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    bytes.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, bytes)| {
        let mut random = Random::named(seed, &format!("{name}[{chunk}]"));
        for bytes in bytes.chunks_mut(8) {
            bytes.copy_from_slice(&random.next_u64().to_le_bytes()[..bytes.len()]);
        }
    });
    bytes
}

/// Uniform numbers of deviation 0.02, which is what embeddings begin with.
fn table(seed: u64, name: &str, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut random = Random::named(seed, &format!("{name}[{chunk}]"));
        for value in values {
            *value = (0.02 * 12f64.sqrt() * (random.uniform() - 0.5)) as f32;
        }
    });
    values
}
