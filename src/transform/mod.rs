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

use crate::model::files::{not_quantized, refuse_fused, state_dtype, write_beside};

/// Makes `out`, which must not hold anything yet.
fn empty_folder(out: &Path) -> Result<()> {
    let place = || out.display().to_string();
    ensure!(!out.exists() || out.is_dir(), "{}: there is a file of that name; name a new folder", out.display());
    std::fs::create_dir_all(out).with_context(place)?;
    let is_empty = std::fs::read_dir(out).with_context(place)?.next().is_none();
    ensure!(is_empty, "{}: the folder is not empty; name a new one or remove it", out.display());
    Ok(())
}
