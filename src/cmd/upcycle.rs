//! `fireval upcycle SOURCE OUT`: a dense model as a mixture of experts.

use std::path::PathBuf;

use anyhow::Result;

use super::{Exit, Workplace, output};
use crate::transform::upcycle::{UpcycleOptions, upcycle};
use crate::weights::Dtype;

/// Turn a dense Llama or Mistral model into a Mixtral with its feed-forward in every expert.
///
/// With --noise 0 it answers as the dense model does; noise damages it, so that fine-tuning has something to win back.
#[derive(clap::Args)]
pub struct Args {
    /// A model with weights: a name of fireval.toml, a folder, a .gguf file or a repository of the hub.
    source: String,
    /// The new folder.
    out: PathBuf,
    /// Experts in every layer.
    #[arg(long, default_value_t = 4)]
    experts: usize,
    /// Experts that a token uses.
    #[arg(long, default_value_t = 2)]
    top_k: usize,
    /// Standard deviation of the noise in the experts, relative to each weight.
    #[arg(long, default_value_t = 0.0)]
    noise: f32,
    /// Seed of noise and router.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How weights are written [default: as the source has them; f32 for quantised ones].
    #[arg(long)]
    dtype: Option<Dtype>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let source = place.project.resolve(&args.source)?.without_adapter()?.checkpoint()?;
    let Args { experts, top_k, noise, seed, dtype, out, .. } = args;
    let options = UpcycleOptions { experts, top_k, noise, seed, dtype, ..UpcycleOptions::default() };
    let summary = upcycle(&source, &out, &options)?;
    output::print(&format!(
        "{}: {experts} experts, {top_k} a token, {:.1} M parameters, {:.2} GB in {} files\n",
        out.display(),
        summary.parameters as f64 / 1e6,
        summary.bytes as f64 / 1e9,
        summary.files.len()
    ))?;
    Ok(Exit::Done)
}
