//! What stands beside the weights in a folder that a model is written to: its config and its tokenizer.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::config::{Architecture, ModelConfig};
use crate::tokenizer::Tokenizer;
use crate::weights::Dtype;

/// Phi-3's fused tensors are read apart; what is written must open in transformers, too.
pub fn refuse_fused(config: &ModelConfig, model: &Path) -> Result<()> {
    ensure!(
        config.architecture != Architecture::Phi3,
        "{}: Phi-3 keeps several linears in one tensor, which is not written here; use the model, and an adapter, as \
         they are",
        model.display()
    );
    Ok(())
}

/// Writes what stands beside the weights.
pub fn write_beside(out: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<()> {
    let path = out.join("config.json");
    std::fs::write(&path, format!("{config:#}\n")).with_context(|| path.display().to_string())?;
    tokenizer.save(out)
}

/// Forgets that the source was quantised: what is written from it is not.
pub fn not_quantized(config: &mut Value) {
    if let Some(fields) = config.as_object_mut() {
        fields.shift_remove("quantization_config");
    }
}

/// States the weights' dtype under the key the configuration uses for it (`torch_dtype`; transformers 5: `dtype`).
pub fn state_dtype(config: &mut Value, dtype: Dtype) {
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(dtype.torch_name());
}
