//! Everything that can change an answer, and its digest: the key of every stored score.
//!
//! An identity is made of the files' digests, without loading a weight, so that what is stored already is known before
//! any work is done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::digest::sha256_hex;
use crate::weights::{Checkpoint, Dtype, Format, bitsandbytes};

/// How the linears of a model are held, when not in its dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// 4-bit NormalFloat with double quantisation, as QLoRA trains on.
    Nf4,
}

impl Quantization {
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Nf4 => "nf4",
        }
    }
}

/// The identity of a model as it is run. Two runs share stored documents only when all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelId {
    /// sha256 over the names and contents of the checkpoint's weight and config files.
    pub weights: String,
    /// sha256 over the adapter's files.
    pub adapter: Option<String>,
    /// sha256 over the tokenizer's files (for GGUF: the file itself).
    pub tokenizer: String,
    /// How numbers are held: "f32", "bf16", ...
    pub dtype: String,
    /// How frozen weights are held, by the checkpoint or because it was asked for: "nf4".
    pub quantization: Option<String>,
    /// Which engine computed, and its numerics version: "cpu-3-fused", "scripted-1".
    pub engine: String,
}

/// What decides how text becomes tokens, which are generated and where a text ends. Files that are not there are left out.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

const ADAPTER_FILES: &[&str] = &["adapter_config.json", "adapter_model.safetensors"];

impl ModelId {
    /// The identity of a checkpoint (a folder or a GGUF file) with its adapter's folder, run by `engine`.
    /// `file_digest`: the sha256 of a file, which a caller may remember.
    pub fn of_checkpoint(
        path: &Path,
        adapter: Option<&Path>,
        dtype: Option<Dtype>,
        quantization: Option<Quantization>,
        engine: impl Fn(Dtype) -> String,
        file_digest: &mut dyn FnMut(&Path) -> Result<String>,
    ) -> Result<ModelId> {
        let checkpoint = Checkpoint::open(path)?;
        let dtype = dtype.map_or_else(|| own_dtype(&checkpoint), Ok)?;
        let quantization = quantization.or(checkpoint.holds(Format::Nf4).then_some(Quantization::Nf4));
        let mut weights: Vec<PathBuf> = checkpoint.files().into_iter().map(Path::to_owned).collect();
        let mut tokenizer = weights.clone();
        if path.is_dir() {
            weights.insert(0, path.join("config.json"));
            tokenizer = present(path, TOKENIZER_FILES);
        }
        let adapter = match adapter {
            None => None,
            Some(folder) => {
                let files = present(folder, ADAPTER_FILES);
                let missing = ADAPTER_FILES.iter().find(|name| !folder.join(name).exists());
                ensure!(missing.is_none(), "{}: no {}", folder.display(), missing.unwrap_or(&""));
                Some(digest_of(&files, file_digest)?)
            }
        };
        Ok(ModelId {
            weights: digest_of(&weights, file_digest)?,
            adapter,
            tokenizer: digest_of(&tokenizer, file_digest)?,
            dtype: dtype.name().to_owned(),
            quantization: quantization.map(|held| held.name().to_owned()),
            engine: engine(dtype),
        })
    }

    /// sha256 over all fields, in hex.
    pub fn digest(&self) -> String {
        sha256_hex(serde_json::to_string(self).expect("strings always serialise").as_bytes())
    }
}

/// The checkpoint's own: the one that NF4 weights are computed in, f32 for quantised GGUF files, else that of its first
/// tensor.
pub fn own_dtype(checkpoint: &Checkpoint) -> Result<Dtype> {
    if checkpoint.holds(Format::Nf4) {
        let dtype = bitsandbytes::compute_dtype(checkpoint.config_json());
        return dtype.with_context(|| checkpoint.config_place().to_owned());
    }
    if checkpoint.holds_blocks() {
        return Ok(Dtype::F32);
    }
    let names = checkpoint.names();
    let first = names.first().with_context(|| format!("{}: no tensors", checkpoint.config_place()))?;
    Ok(Dtype::of(checkpoint.stored(first)?.format))
}

fn present(folder: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect()
}

/// sha256 over names and digests of `files`; the folder they lie in does not count.
fn digest_of(files: &[PathBuf], file_digest: &mut dyn FnMut(&Path) -> Result<String>) -> Result<String> {
    let mut text = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("{name} {}\n", file_digest(file)?));
    }
    Ok(sha256_hex(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256_file;

    fn id() -> ModelId {
        ModelId {
            weights: "w".to_owned(),
            adapter: None,
            tokenizer: "t".to_owned(),
            dtype: "f32".to_owned(),
            quantization: None,
            engine: "candle-cpu-2".to_owned(),
        }
    }

    #[test]
    fn everything_that_can_change_an_answer_changes_the_digest() {
        let other = || Some("x".to_owned());
        let changed = [
            ModelId { weights: "x".to_owned(), ..id() },
            ModelId { adapter: other(), ..id() },
            ModelId { tokenizer: "x".to_owned(), ..id() },
            ModelId { dtype: "x".to_owned(), ..id() },
            ModelId { quantization: other(), ..id() },
            ModelId { engine: "x".to_owned(), ..id() },
        ];
        let mut digests: Vec<String> = changed.iter().chain([&id()]).map(ModelId::digest).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 7);
        assert_eq!(id().digest(), id().digest());
    }

    #[test]
    fn names_and_contents_count_and_places_do_not() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let digest = |folder: &Path, text: &str| {
            std::fs::write(folder.join("tokenizer.json"), text).unwrap();
            digest_of(&present(folder, TOKENIZER_FILES), &mut sha256_file).unwrap()
        };
        assert_eq!(digest(one.path(), "{}"), digest(two.path(), "{}"));
        assert_ne!(digest(one.path(), "{}"), digest(two.path(), "[]"));
        let without_template = digest(one.path(), "{}");
        std::fs::write(one.path().join("chat_template.jinja"), "").unwrap();
        assert_ne!(digest(one.path(), "{}"), without_template);
    }
}
