//! A model with every linear of its layers in NF4, as bitsandbytes and transformers store it.
//!
//! What they quantise is every linear but the head: attention, experts and the router of a mixture; embeddings, norms and
//! head stay as they are. A model is quantised the same way when it is loaded with `quantization = "nf4"`, so both give
//! the same numbers; this one is a quarter of the size on disk and opens without that work.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::model::config::ModelConfig;
use crate::model::names;
use crate::tokenizer::Tokenizer;
use crate::weights::writer::{Planned, SHARD_BYTES, Writer};
use crate::weights::{Checkpoint, Dtype, Format, bitsandbytes};

use super::{empty_folder, refuse_fused, state_dtype, write_beside};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeSummary {
    /// Linears in NF4.
    pub quantized: usize,
    pub tensors: usize,
    /// Bytes of the weight files.
    pub bytes: u64,
    pub files: Vec<PathBuf>,
}

/// Writes `model` in NF4 into the new folder `out`. `dtype`: how the rest is written, and what the model then computes
/// in; `None` keeps each tensor's own (f32 where it is quantised) and computes in that of the embedding.
pub fn quantize(model: &Path, out: &Path, dtype: Option<Dtype>) -> Result<QuantizeSummary> {
    let checkpoint = Checkpoint::open(model)?;
    let config = ModelConfig::of(&checkpoint)?;
    names::check(&checkpoint, &config)?;
    refuse_fused(&config, model)?;
    ensure!(!checkpoint.holds(Format::Nf4), "{}: the model is in NF4 already", model.display());
    let tokenizer = Tokenizer::open(model)?;
    empty_folder(out)?;

    let plan = plan(&checkpoint, &config, dtype)?;
    let compute = plan[0].dtype; // the embedding comes first
    let mut json = checkpoint.config_json().clone();
    state_dtype(&mut json, compute);
    json["quantization_config"] = bitsandbytes::quantization_config(compute);

    let mut writer = Writer::create(out, plan.clone(), SHARD_BYTES)?;
    for planned in &plan {
        writer.write(&planned.name, &checkpoint.tensor(&planned.name, &planned.shape)?.to_f32()?)?;
    }
    write_beside(out, &json, &tokenizer)?;
    let files = writer.finish()?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    let quantized = plan.iter().filter(|planned| planned.nf4).count();
    Ok(QuantizeSummary { quantized, tensors: plan.len(), bytes, files })
}

/// Every tensor in the order a decoder walks them, so that each layer is one stretch of a file.
fn plan(checkpoint: &Checkpoint, config: &ModelConfig, dtype: Option<Dtype>) -> Result<Vec<Planned>> {
    let linears = (0..config.num_hidden_layers).flat_map(|layer| names::linears(config, layer));
    let linears: HashSet<String> = linears.map(|linear| names::weight(&linear.module)).collect();
    names::tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let dtype = dtype.unwrap_or(Dtype::of(checkpoint.stored(&name)?.format));
            let nf4 = linears.contains(&name);
            Ok(Planned { name, dtype, shape, nf4 })
        })
        .collect()
}
