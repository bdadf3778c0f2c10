//! `fireval finetune RECIPE`: QLoRA, as a recipe says, or what it would take.

use std::path::PathBuf;

use anyhow::Result;

use super::measure::RunFlags;
use super::{Verdict, Workplace, output};
use crate::train::plan::plan;
use crate::train::recipe::Recipe;
use crate::train::{FinetuneOptions, finetune};

/// Fine-tune a model as a recipe says; an interrupted run continues.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe, a .toml file (see finetune/README.md).
    recipe: PathBuf,
    /// Only print trainable parameters, steps, tokens and memory; no weight is loaded.
    #[arg(long)]
    plan: bool,
    /// Go on with a state in the output folder that another recipe or other data left there.
    #[arg(long)]
    accept_changes: bool,
    #[command(flatten)]
    run: RunFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let recipe = Recipe::read(&args.recipe)?;
    let checkpoint = || place.project.resolve(&recipe.model)?.checkpoint();
    args.run.take_threads()?;
    if args.plan {
        // A config in the recipe saves the plan from having to find the model.
        let model = if recipe.config.is_none() { Some(checkpoint()?) } else { None };
        output::print(&plan(&recipe, model.as_deref(), args.run.memory())?.to_string())?;
        return Ok(Verdict::Done);
    }
    let home = args.run.home()?;
    let model = checkpoint()?;
    let options = FinetuneOptions {
        home,
        memory: args.run.memory(),
        accepts_changes: args.accept_changes,
        ..FinetuneOptions::default()
    };
    let summary = finetune(&recipe, &model, &options)?;
    output::print(&format!("{summary}\n"))?;
    Ok(Verdict::Done)
}
