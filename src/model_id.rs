//! Everything that can change an answer, and its digest: the key of every stored score.

use serde::{Deserialize, Serialize};

use crate::digest::sha256_hex;

/// The identity of a model as it is run. Two runs share stored documents only when all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelId {
    /// sha256 over the names and contents of the checkpoint's weight and config files.
    pub weights: String,
    /// sha256 over the adapter's files.
    pub adapter: Option<String>,
    /// sha256 over the tokenizer's files (for GGUF: its metadata).
    pub tokenizer: String,
    /// How numbers are held: "f32", "bf16", ...
    pub dtype: String,
    /// How frozen weights are held when that differs from the checkpoint: "nf4".
    pub quantization: Option<String>,
    /// Which engine computed, and its numerics version: "candle-cpu-1", "scripted".
    pub engine: String,
}

impl ModelId {
    /// sha256 over all fields, in hex.
    pub fn digest(&self) -> String {
        sha256_hex(serde_json::to_string(self).expect("strings always serialise").as_bytes())
    }
}
