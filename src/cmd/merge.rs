//! `fireval merge MODEL OUT`: an adapter's update written into the weights.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Verdict, Workplace, output};
use crate::model::adapter::peft;
use crate::model::config::ModelConfig;
use crate::transform::merge::merge;
use crate::weights::Checkpoint;
use crate::weights::writer::Dtype;

/// Write a model with its adapter merged into the weights, shard by shard.
#[derive(clap::Args)]
pub struct Args {
    /// A model of fireval.toml with an adapter, or any model with --adapter.
    model: String,
    /// The new folder.
    out: PathBuf,
    /// The adapter's folder [default: the one that fireval.toml names].
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// How weights are written [default: as the model has them; f32 for quantised ones].
    #[arg(long)]
    dtype: Option<Dtype>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let spec = place.project.resolve(&args.model)?;
    let path = spec.checkpoint()?;
    let folder = args.adapter.or_else(|| spec.adapter.clone());
    let folder =
        folder.with_context(|| format!("model `{}` has no adapter to merge: name one with --adapter", spec.name))?;
    let config = {
        let checkpoint = Checkpoint::open(&path)?;
        ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?
    };
    let adapter = peft::read(&folder, &config)?;
    let summary = merge(&path, &adapter, &args.out, args.dtype)?;
    output::print(&format!(
        "{}: {} of {} tensors updated, {:.2} GB in {} files\n",
        args.out.display(),
        summary.merged,
        summary.tensors,
        summary.bytes as f64 / 1e9,
        summary.files.len()
    ))?;
    Ok(Verdict::Done)
}
