//! `fireval merge MODEL OUT`: an adapter's update written into the weights.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::measure::RunFlags;
use super::{Exit, Workplace, output};
use crate::model_id::{Quantization, own_dtype};
use crate::project::ModelSpec;
use crate::transform::merge::{MergeSummary, merge};
use crate::transform::verify::{Way, verify};
use crate::weights::{Checkpoint, Dtype, Format};

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
    /// Afterwards compare the adapter on 4 bits, the adapter on the model's own dtype, and the merged model.
    #[arg(long)]
    verify: bool,
    /// With what --verify runs the models.
    #[command(flatten)]
    run: RunFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let home = args.run.home()?;
    args.run.take_threads()?;
    let spec = place.project.resolve(&args.model)?;
    let path = spec.checkpoint()?;
    let folder = args.adapter.or_else(|| spec.adapter.clone());
    let folder =
        folder.with_context(|| format!("model `{}` has no adapter to merge: name one with --adapter", spec.name))?;
    let MergeSummary { merged, replaced, tensors, bytes, files } = merge(&path, &folder, &args.out, args.dtype)?;
    let out = args.out.display();
    let replaced = if replaced > 0 { format!(" and {replaced} replaced") } else { String::new() };
    output::print(&format!(
        "{out}: {merged} of {tensors} tensors updated{replaced}, {:.2} GB in {} files\n",
        bytes as f64 / 1e9,
        files.len()
    ))?;
    if args.verify {
        let found = verify(&path, &folder, &args.out, home, args.run.memory())?;
        let scored = whose_score(&spec, &Checkpoint::open(&path)?)?;
        output::print(&format!(
            "\n{found}\nA score of `{}` belongs to: {scored}. The merged model has its own: fireval eval {out}\n",
            spec.name
        ))?;
    }
    Ok(Exit::Done)
}

/// Which way the model is run when it is scored with its adapter.
fn whose_score(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<Way> {
    match spec.quantization {
        Some(Quantization::Nf4) => Ok(Way::FourBits),
        None if checkpoint.holds(Format::Nf4) => Ok(Way::FourBits),
        None => Ok(Way::Plain(spec.dtype.map_or_else(|| own_dtype(checkpoint), Ok)?)),
    }
}
