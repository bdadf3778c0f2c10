//! `fireval finetune RECIPE`: QLoRA, as a recipe says, or what it would take.

use std::path::PathBuf;

use anyhow::Result;
use candle_core::Device;

use super::{Verdict, Workplace, output};
use crate::progress::Progress;
use crate::train::plan::plan;
use crate::train::recipe::Recipe;
use crate::train::{TrainOptions, TrainSummary, finetune};

/// Fine-tune a model as a recipe says; an interrupted run continues.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe, a .toml file (see finetune/README.md).
    recipe: PathBuf,
    /// Only print trainable parameters, steps, tokens and memory; no weight is loaded.
    #[arg(long)]
    plan: bool,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let recipe = Recipe::read(&args.recipe)?;
    let checkpoint = || place.project.resolve(&recipe.model)?.checkpoint();
    if args.plan {
        // A recipe with a config of its own is planned without its model, which may be 90 GB on the hub.
        let model = if recipe.config.is_some() { None } else { Some(checkpoint()?) };
        output::print(&format!("{}\n", plan(&recipe, model.as_deref())?))?;
        return Ok(Verdict::Done);
    }
    let progress = Progress::new("fine-tune", "tok");
    let options = TrainOptions { device: Device::Cpu, progress: progress.clone(), base_model: recipe.model.clone() };
    let summary = finetune(&recipe, &checkpoint()?, &options);
    progress.finish();
    output::print(&told(&summary?))?;
    Ok(Verdict::Done)
}

/// What a run has come to, in words.
fn told(summary: &TrainSummary) -> String {
    let mut text = format!(
        "{}: {:.1} M parameters trained in {} steps, {} tokens in {:.0} s ({:.0} tokens/s)\n",
        summary.adapter.display(),
        summary.trained_parameters as f64 / 1e6,
        summary.steps,
        summary.tokens,
        summary.seconds,
        summary.tokens as f64 / summary.seconds.max(1e-9),
    );
    let held_out: Vec<String> =
        summary.held_out.iter().map(|(steps, loss)| format!("{loss:.3} after step {steps}")).collect();
    if !held_out.is_empty() {
        text.push_str(&format!("held-out loss: {}\n", held_out.join(", ")));
    }
    text
}
