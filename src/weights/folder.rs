//! A Hugging Face folder: `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`.
//!
//! Where both are there the single file is taken, and the index is the authority on which shard holds a tensor, as for
//! transformers; a shard's own header says where
//! in it, and the safetensors package checks that header (offsets in order, without gaps, to the end of the file).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::SafeTensorError;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::{Checkpoint, Conversion, Entry, Format, Mapped, bitsandbytes, fused, multimodal};

/// Weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// What says which shard holds a tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// Of `model.safetensors.index.json`; its `metadata` says nothing that is needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(folder: &Path) -> Result<Checkpoint> {
    let config_path = folder.join("config.json");
    let config = read_json(&config_path)?;
    ensure!(config.is_object(), "{}: not a JSON object", config_path.display());
    let (files, mut entries) = if folder.join(SINGLE).exists() {
        let file = Mapped::open(&folder.join(SINGLE))?;
        let entries = header(&file, 0)?;
        (vec![file], entries)
    } else if folder.join(INDEX).exists() {
        sharded(folder)?
    } else {
        bail!("{}", no_weights(folder))
    };
    bitsandbytes::put_together(&mut entries, &files)?;
    let (config, entries) = multimodal::text_only(config, entries).with_context(|| folder.display().to_string())?;
    let entries = fused::apart(entries, &config).with_context(|| folder.display().to_string())?;
    Ok(Checkpoint { config, config_place: config_path.display().to_string(), files, entries })
}

/// A JSON file of a model folder.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    if !path.exists() {
        let folder = path.parent().unwrap_or(path).display();
        bail!("{}: missing; is {folder} a model's folder?", path.display());
    }
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).map_err(|error| anyhow!("{}: not valid JSON: {error}", path.display()))
}

fn no_weights(folder: &Path) -> String {
    let names = std::fs::read_dir(folder).map(|entries| {
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect::<BTreeSet<_>>()
    });
    let names = names.unwrap_or_default();
    let ends = |end: &str| names.iter().find(|name| name.ends_with(end));
    let place = folder.display();
    if let Some(pickle) = ends(".bin").or(ends(".pth")).or(ends(".pt")) {
        return format!(
            "{place}: the weights are pickled ({pickle}), which can run code and is not read; convert them to \
             safetensors (transformers: `save_pretrained(..., safe_serialization=True)`)"
        );
    }
    if let Some(gguf) = ends(".gguf") {
        return format!("{place}: no {SINGLE} here; to open {gguf} give its own path");
    }
    format!("{place}: no weights: neither {SINGLE} nor {INDEX} is there; fetch the model again")
}

fn sharded(folder: &Path) -> Result<(Vec<Mapped>, BTreeMap<String, Entry>)> {
    let index_path = folder.join(INDEX);
    let place = index_path.display();
    let index: Index = serde_json::from_value(read_json(&index_path)?).map_err(|error| anyhow!("{place}: {error}"))?;
    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    ensure!(!shards.is_empty(), "{place}: `weight_map` names no tensor");
    let mut files = Vec::new();
    let mut headers = BTreeMap::new();
    for shard in shards {
        let file = open_shard(folder, shard).with_context(|| place.to_string())?;
        headers.insert(shard, header(&file, files.len())?);
        files.push(file);
    }
    let mut entries = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        let entry = headers[shard.as_str()].get(name);
        let entry = entry.ok_or_else(|| {
            anyhow!("{place}: says that tensor `{name}` lies in {shard}, but it does not; fetch both files again")
        })?;
        entries.insert(name.clone(), entry.clone());
    }
    Ok((files, entries))
}

fn open_shard(folder: &Path, shard: &str) -> Result<Mapped> {
    let path = PathBuf::from(shard);
    let is_plain = path.file_name().is_some_and(|name| name == shard);
    ensure!(is_plain, "shard `{shard}` is not a plain file name");
    let path = folder.join(path);
    ensure!(path.exists(), "shard {shard} is missing; fetch it into {}", folder.display());
    Mapped::open(&path)
}

/// The tensors of one safetensors file.
pub(super) fn header(file: &Mapped, index: usize) -> Result<BTreeMap<String, Entry>> {
    let place = || file.path.display().to_string();
    let (length, metadata) = SafeTensors::read_metadata(&file.map).map_err(explain).with_context(place)?;
    let start = length + 8;
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let format = format_of(info.dtype);
            let shape = info.shape.clone();
            let (start, end) = (start + from, start + to);
            (name, Entry { file: index, format, shape, start, end, conversion: Conversion::None, absmax: None })
        })
        .collect())
}

/// The package's errors in words that say what to do.
fn explain(error: SafeTensorError) -> anyhow::Error {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            anyhow!("the header describes more or fewer bytes of weights than the file has; fetch it again")
        }
        SafeTensorError::HeaderTooSmall | SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            anyhow!("not a whole safetensors file ({error}); fetch it again")
        }
        SafeTensorError::InvalidOffset(name) => {
            anyhow!("the header lies about the place of tensor `{name}`; fetch the file again")
        }
        other => anyhow!("not a valid safetensors file ({other}); fetch it again"),
    }
}

fn format_of(dtype: Dtype) -> std::result::Result<Format, String> {
    match dtype {
        Dtype::F32 => Ok(Format::F32),
        Dtype::F16 => Ok(Format::F16),
        Dtype::BF16 => Ok(Format::BF16),
        other => Err(format!("stored as {other:?}")), // an open set: the package's enum is non-exhaustive
    }
}
