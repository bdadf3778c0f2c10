//! GGUF files of the families that open, seen as the hub's checkpoint.
//!
//! Source: llama.cpp's `conversion/` (before 2026 `convert_hf_to_gguf.py`) and, for what files do not state,
//! `src/models/`. What the converter did is undone here: names ([`tensors`]), the order of Llama's query and key rows
//! (which it interleaves for its rotary embedding), the one it adds to Gemma's norms, experts stacked in one tensor, Llama
//! 3's rotary factors stored as a tensor ([`rope`]). A GGUF cannot tell Mistral from Llama; without a sliding window the
//! two are the same decoder, so `llama`.

mod config;
mod rope;
mod tensors;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Checkpoint;
use super::gguf::Gguf;

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let gguf = Gguf::open(path)?;
    let parts = gguf.count("split.count")?.unwrap_or(1);
    ensure!(parts <= 1, "{}: one of {parts} parts; join them with llama.cpp's `gguf-split --merge`", path.display());
    let metadata = Metadata::read(&gguf).with_context(|| path.display().to_string())?;
    let config = config::config(&metadata).with_context(|| path.display().to_string())?;
    let entries = tensors::entries(&metadata, &config).with_context(|| path.display().to_string())?;
    let place = format!("{} (metadata)", path.display());
    Ok(Checkpoint { config, config_place: place, files: vec![gguf.mapped], entries })
}

/// llama.cpp's architectures that open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Llama, Mistral and Mixtral.
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
}

impl Family {
    const ALL: [Family; 7] =
        [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Qwen3Moe, Family::Gemma2, Family::Gemma3, Family::Phi3];

    /// As `general.architecture` and the keys spell it.
    fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3moe",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::Phi3 => "phi3",
        }
    }

    fn is_gemma(self) -> bool {
        match self {
            Family::Gemma2 | Family::Gemma3 => true,
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::Phi3 => false,
        }
    }
}

/// A file's metadata with the family's prefix on its keys.
struct Metadata<'a> {
    gguf: &'a Gguf,
    family: Family,
}

impl Metadata<'_> {
    fn read(gguf: &Gguf) -> Result<Metadata<'_>> {
        let name = required(gguf.text("general.architecture")?, "general.architecture")?;
        let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) else {
            bail!("architecture `{name}` does not open; {} do", Family::ALL.map(Family::name).join(", "))
        };
        Ok(Metadata { gguf, family })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.name())
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.gguf.count(&self.key(key))
    }

    fn required_count(&self, key: &str) -> Result<usize> {
        required(self.count(key)?, &self.key(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.gguf.number(&self.key(key))
    }
}

fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| anyhow!("metadata key `{key}` is missing; convert the model again"))
}
