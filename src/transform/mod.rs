//! One checkpoint made into another: a dense model into a mixture, an adapter merged into its base, a model in NF4.
//!
//! All walk the tensors in the order a decoder does, hold one at a time, and write a Hugging Face folder that stands
//! alone: weights, `config.json`, tokenizer.

pub mod merge;
pub mod quantize;
pub mod upcycle;
pub mod verify;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::model::config::{Architecture, ModelConfig};
use crate::tokenizer::Tokenizer;
use crate::weights::writer::Dtype;

/// Makes `out`, which must not hold anything yet.
fn empty_folder(out: &Path) -> Result<()> {
    let place = || out.display().to_string();
    ensure!(!out.exists() || out.is_dir(), "{}: there is a file of that name; name a new folder", out.display());
    std::fs::create_dir_all(out).with_context(place)?;
    let is_empty = std::fs::read_dir(out).with_context(place)?.next().is_none();
    ensure!(is_empty, "{}: the folder is not empty; name a new one or remove it", out.display());
    Ok(())
}

/// Phi-3's fused tensors are read apart; what is written must open in transformers, too.
fn refuse_fused(config: &ModelConfig, model: &Path) -> Result<()> {
    ensure!(
        config.architecture != Architecture::Phi3,
        "{}: Phi-3 keeps several linears in one tensor, which is not written here; use the model, and an adapter, as \
         they are",
        model.display()
    );
    Ok(())
}

/// Writes what stands beside the weights.
fn write_beside(out: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<()> {
    let path = out.join("config.json");
    std::fs::write(&path, format!("{config:#}\n")).with_context(|| path.display().to_string())?;
    tokenizer.save(out)
}

/// Forgets that the source was quantised: what is written from it is not.
fn not_quantized(config: &mut Value) {
    if let Some(fields) = config.as_object_mut() {
        fields.shift_remove("quantization_config");
    }
}

/// States the weights' dtype under the key the configuration uses for it (`torch_dtype`; transformers 5: `dtype`).
fn state_dtype(config: &mut Value, dtype: Dtype) {
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(dtype.torch_name());
}
