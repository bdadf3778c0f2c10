//! The types that numbers have in a model: f32, f16, bf16.

use anyhow::{Result, bail};
use clap::ValueEnum;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Format;

/// How numbers are held, computed in or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    /// The one that loses nothing of a stored format (quantised blocks decode to f32).
    pub fn of(format: Format) -> Dtype {
        match format {
            Format::F32 | Format::Nf4 | Format::Ggml(_) => Dtype::F32,
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
        }
    }

    /// `f32`, `f16` or `bf16`.
    pub fn parse(name: &str) -> Result<Dtype> {
        match name {
            "f32" => Ok(Dtype::F32),
            "f16" => Ok(Dtype::F16),
            "bf16" => Ok(Dtype::BF16),
            other => bail!("dtype `{other}` is not known; f32, f16 and bf16 are"),
        }
    }

    /// What `parse` reads.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        }
    }

    /// As `config.json` spells it (`torch_dtype`).
    pub fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
        }
    }

    pub(super) fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        }
    }

    /// Bytes a number takes.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// Little-endian bytes of `values`, rounded to nearest even.
    pub(super) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Dtype::F32 => encoded(values, f32::to_le_bytes),
            Dtype::F16 => encoded(values, |value| f16::from_f32(value).to_le_bytes()),
            Dtype::BF16 => encoded(values, |value| bf16::from_f32(value).to_le_bytes()),
        }
    }
}

fn encoded<const N: usize>(values: &[f32], encode: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    const CHUNK: usize = 1 << 16;
    let mut bytes = vec![0; values.len() * N];
    bytes.par_chunks_mut(CHUNK * N).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
        for (bytes, value) in bytes.chunks_exact_mut(N).zip(values) {
            bytes.copy_from_slice(&encode(*value));
        }
    });
    bytes
}
