//! A checkpoint on disk: a tensor by the name the hub's checkpoint spells, whatever file it lies in.

pub mod nf4;

use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;
use candle_core::quantized::GgmlDType;

/// How a stored tensor's numbers are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    BF16,
    /// Quantised blocks of GGUF files.
    Ggml(GgmlDType),
}

/// A tensor as it lies in the file (borrowed from the mapping), row-major, shape outermost first.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    pub format: Format,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl Stored<'_> {
    /// All numbers, decoded. (f16, bf16 and f32 are exact.)
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        todo!()
    }
}

/// An open checkpoint: a Hugging Face folder or a GGUF file, mapped.
pub struct Checkpoint {}

impl Checkpoint {
    pub fn open(_path: &Path) -> Result<Checkpoint> {
        todo!()
    }

    /// The model's configuration as the hub's `config.json` states it (made up from the metadata of a GGUF file).
    pub fn config_json(&self) -> &serde_json::Value {
        todo!()
    }

    /// Names of all tensors, as the hub spells them, sorted.
    pub fn names(&self) -> Vec<&str> {
        todo!()
    }

    /// The tensor of that name with that shape; the error names file, tensor and both shapes.
    pub fn tensor(&self, _name: &str, _shape: &[usize]) -> Result<Stored<'_>> {
        todo!()
    }
}
