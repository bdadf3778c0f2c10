//! `fireval quantize MODEL OUT`: a model in NF4, as bitsandbytes stores it.

use std::path::PathBuf;

use anyhow::Result;

use super::{Exit, Workplace, output};
use crate::transform::quantize::quantize;
use crate::weights::Dtype;

/// Write a model with every linear of its layers in NF4 (4 bits, double quantisation), shard by shard.
///
/// transformers opens what is written, with bitsandbytes; so does every command here.
#[derive(clap::Args)]
pub struct Args {
    /// A model with weights: a name of fireval.toml, a folder, a .gguf file or a repository of the hub.
    model: String,
    /// The new folder.
    out: PathBuf,
    /// How the rest is written, and what the model computes in [default: as the model has them].
    #[arg(long)]
    dtype: Option<Dtype>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let spec = place.project.resolve(&args.model)?.without_adapter()?;
    let summary = quantize(&spec.checkpoint()?, &args.out, args.dtype)?;
    output::print(&format!(
        "{}: {} of {} tensors in NF4, {:.2} GB in {} files\n",
        args.out.display(),
        summary.quantized,
        summary.tensors,
        summary.bytes as f64 / 1e9,
        summary.files.len()
    ))?;
    Ok(Exit::Done)
}
