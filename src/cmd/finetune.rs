//! `fireval finetune RECIPE`: QLoRA, as a recipe says, or what it would take.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Verdict, Workplace, output};
use crate::progress::Progress;
use crate::train::plan::plan;
use crate::train::recipe::Recipe;
use crate::train::{TrainOptions, TrainSummary, finetune};

/// Fine-tune a model as a recipe says; an interrupted run continues.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe, a .toml file (finetune/README.md documents it).
    recipe: PathBuf,
    /// Only print trainable parameters, steps, tokens and memory; no weight is loaded.
    #[arg(long)]
    plan: bool,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let recipe = Recipe::read(&args.recipe)?;
    if args.plan {
        // A recipe with a config of its own is planned without any model.
        let model = match recipe.config {
            Some(_) => None,
            None => Some(place.project.resolve(&recipe.model)?.checkpoint()?),
        };
        output::print(&format!("{}\n", plan(&recipe, model.as_deref())?))?;
        return Ok(Verdict::Done);
    }
    let model = place.project.resolve(&recipe.model)?.checkpoint()?;
    let progress = Progress::new("finetune", "tok");
    let summary = finetune(&recipe, &model, &TrainOptions::on_cpu(progress.clone(), recipe.model.clone()));
    progress.finish();
    output::print(&told(&summary?, &args.recipe))?;
    Ok(Verdict::Done)
}

fn told(summary: &TrainSummary, recipe: &Path) -> String {
    let mut text = format!(
        "{}: {} steps of {}, {} trained parameters, {} tokens in {:.0} s ({:.0} tok/s)\n",
        summary.adapter.display(),
        summary.steps,
        recipe.display(),
        summary.trained_parameters,
        summary.tokens,
        summary.seconds,
        summary.tokens as f64 / summary.seconds.max(1e-9)
    );
    if let (Some((_, before)), Some((steps, after))) = (summary.held_out.first(), summary.held_out.last()) {
        text.push_str(&format!("held-out loss {before:.4} before, {after:.4} after {steps} steps\n"));
    }
    text
}
