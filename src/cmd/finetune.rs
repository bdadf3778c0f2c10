//! `fireval finetune RECIPE`: QLoRA, as a recipe says, or what it would take.

use std::path::PathBuf;

use anyhow::Result;

use super::measure::RunFlags;
use super::{Exit, Workplace, output};
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

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let recipe = Recipe::read(&args.recipe)?;
    let base = || place.project.resolve(&recipe.model)?.without_adapter();
    args.run.take_threads()?;
    if args.plan {
        // A config in the recipe saves the plan from having to find the model.
        let model = if recipe.config.is_none() { Some(base()?.checkpoint()?) } else { None };
        output::print(&plan(&recipe, model.as_deref(), args.run.memory())?.to_string())?;
        return Ok(Exit::Done);
    }
    let home = args.run.home()?;
    let base = base()?;
    let options = FinetuneOptions {
        home,
        memory: args.run.memory(),
        accepts_changes: args.accept_changes,
        base_model: base.outside_name(),
        ..FinetuneOptions::default()
    };
    let summary = finetune(&recipe, &base.checkpoint()?, &options)?;
    output::print(&format!("{summary}\n"))?;
    Ok(Exit::Done)
}
