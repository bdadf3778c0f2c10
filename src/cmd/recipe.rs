//! `fireval recipe run RECIPE`: the whole job. The data are checked, the model is trained, base and result are scored and
//! compared, and a report is left beside the adapter.
//!
//! Every stage goes on where an earlier call was cut off (training from its last state, scoring from the store) and does
//! nothing again that is done, so calling again is all there is to resuming. `manifest.json` says what went in and what
//! came out, each with its digest.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{MeasureFlags, Measurement, Missing};
use super::{Exit, Workplace, output};
use crate::compare::{self, Comparison};
use crate::digest::sha256_file;
use crate::disk;
use crate::model::adapter::peft;
use crate::project::{ModelSpec, Source};
use crate::report::{Format, Table};
use crate::train::recipe::{Method, Recipe};
use crate::train::{FinetuneOptions, card, finetune};
use crate::weights::Checkpoint;

/// Documents of each task and MMLU subject where nothing else is asked for: enough to see that nothing broke.
const QUICK: usize = 20;
const REPORTS: [(&str, Format); 2] = [("report.md", Format::Markdown), ("report.csv", Format::Csv)];
const MANIFEST: &str = "manifest.json";

/// Run a recipe from its data to a report.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    job: Job,
}

#[derive(clap::Subcommand)]
enum Job {
    /// Check the data, train, score base and result (20 documents of each task and MMLU subject unless told otherwise),
    /// compare, and write report.md, report.csv, the card's scores and manifest.json beside the adapter.
    Run(RunArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// The recipe, a .toml file (see finetune/README.md).
    recipe: PathBuf,
    /// Go on with a state in the output folder that another recipe or other data left there.
    #[arg(long)]
    accept_changes: bool,
    #[command(flatten)]
    measure: MeasureFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let Job::Run(args) = args.job;
    let recipe = Recipe::read(&args.recipe)?;
    let mut measurement = args.measure.quick(QUICK).measurement(place)?;
    let base = measurement.resolve(std::slice::from_ref(&recipe.model))?.remove(0).without_adapter()?;
    let options = FinetuneOptions {
        home: base.home,
        memory: measurement.memory(),
        accepts_changes: args.accept_changes,
        base_model: base.outside_name(),
        ..FinetuneOptions::default()
    };
    let summary = finetune(&recipe, &base.checkpoint()?, &options)?;
    output::print(&format!("{summary}\n"))?;
    let tuned = tuned(&recipe, &base);
    let comparison = score(&mut measurement, [&base, &tuned])?;
    report(&recipe.output, &comparison)?;
    let manifest = manifest(place, &args.recipe, &recipe, [&base, &tuned])?;
    disk::replace(&recipe.output.join(MANIFEST), format!("{manifest:#}\n").as_bytes())?;
    output::print(&Table::of(&comparison).print(Format::Table, output::terminal_width()))?;
    Ok(Exit::Done)
}

/// The result as a model: the base with the adapter, or the folder itself.
fn tuned(recipe: &Recipe, base: &ModelSpec) -> ModelSpec {
    let (name, output) = (name_of(&recipe.output), recipe.output.clone());
    match recipe.method() {
        Method::Lora(_) => ModelSpec { name, adapter: Some(output), ..base.clone() },
        Method::Full(_) => ModelSpec { name, source: Source::Checkpoint(output), ..base.clone() },
    }
}

/// What tables call the result: the output folder's own name.
fn name_of(output: &Path) -> String {
    output.file_name().map_or_else(|| output.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn score(measurement: &mut Measurement, specs: [&ModelSpec; 2]) -> Result<Comparison> {
    let contenders = specs.map(|spec| measurement.contender(spec, Missing::Evaluate));
    let contenders = contenders.into_iter().collect::<Result<Vec<_>>>()?;
    compare::compare(measurement.conditions.protocol, measurement.columns(), &contenders)
}

/// The table in files, and in the adapter's card.
fn report(folder: &Path, comparison: &Comparison) -> Result<()> {
    let table = Table::of(comparison);
    for (file, format) in REPORTS {
        disk::replace(&folder.join(file), table.print(format, None).as_bytes())?;
    }
    let path = folder.join(card::FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    match card::with_scores(&text, &table.print(Format::Markdown, None)) {
        Ok(text) => disk::replace(&path, text.as_bytes()),
        Err(_) => Ok(()), // somebody's own README
    }
}

fn manifest(place: &Workplace, path: &Path, recipe: &Recipe, [base, tuned]: [&ModelSpec; 2]) -> Result<Value> {
    let files = |paths: Vec<PathBuf>| -> Result<Vec<Value>> {
        paths.iter().map(|path| Ok(json!({"path": path.display().to_string(), "sha256": sha256_file(path)?}))).collect()
    };
    let data = recipe.data.paths();
    let inputs = files(std::iter::once(path.to_owned()).chain(data).collect())?;
    let written = [card::FILE].into_iter().chain(REPORTS.map(|(file, _)| file));
    let mut written: Vec<PathBuf> = written.map(|file| recipe.output.join(file)).collect();
    written.extend(match recipe.method() {
        Method::Lora(_) => [peft::WEIGHTS_FILE, peft::CONFIG_FILE].map(|file| recipe.output.join(file)).to_vec(),
        Method::Full(_) => {
            let checkpoint = Checkpoint::open(&recipe.output)?;
            let weights = checkpoint.files().into_iter().map(Path::to_owned);
            weights.chain([recipe.output.join("config.json")]).collect()
        }
    });
    let outputs = files(written)?;
    Ok(json!({
        "schema": 1,
        "fireval": env!("CARGO_PKG_VERSION"),
        "inputs": inputs,
        "base": base.id(&place.store)?,
        "tuned": tuned.id(&place.store)?,
        "outputs": outputs,
    }))
}
