//! `fireval report MODELS… -o FILE`: the comparison of stored runs as one page for a browser.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::measure::{MeasureFlags, Measurement, Missing, count};
use super::{Exit, Workplace, output, suggest};
use crate::compare::why::{self, Flip};
use crate::compare::{self, Contender, Outcome};
use crate::eval::{Run, TaskDocuments};
use crate::model::names;
use crate::project::{ModelSpec, Source};
use crate::published::Billions;
use crate::report::page::{self, FlipSet, Held, Made, Page, PageFlip, Recorded, Training};
use crate::report::why::FlipText;
use crate::request::Request;
use crate::samples::Sheet;
use crate::task::Document;
use crate::train::log;

/// Write the comparison of stored runs as one HTML page: tables, charts, where differences come from, flipped documents.
///
/// The page holds all it needs and asks the network for nothing. Digits are those of `compare`; nothing is evaluated, and
/// what is missing is said.
#[derive(clap::Args)]
pub struct Args {
    /// Models, the first of which the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    measure: MeasureFlags,
    /// The page.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Flipped documents shown of each task and model.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count)]
    flips: usize,
    /// Answers that `fireval samples --save` kept, shown side by side.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let mut measurement = args.measure.measurement(place)?;
    let specs = measurement.resolve(&args.models)?;
    let samples = args.samples.as_deref().map(Sheet::read).transpose()?;
    output::check_writable(Some(&args.output))?;
    let contenders: Vec<Contender> =
        specs.iter().map(|spec| measurement.contender(spec, Missing::Refuse)).collect::<Result<_>>()?;
    let comparison = compare::compare(measurement.conditions.protocol, measurement.columns(), &contenders)?;
    if let Some(sheet) = &samples {
        check_answers(sheet, &contenders)?;
    }
    let made: Vec<Made> = contenders.iter().map(|contender| made(place, contender)).collect::<Result<_>>()?;
    let held: Vec<Held> = specs.iter().zip(&made).map(|(spec, made)| held(spec, made)).collect::<Result<_>>()?;
    let text = page::print(&Page {
        comparison: &comparison,
        origins: &why::origins(&comparison, &contenders),
        held: &held,
        flips: &flips(&mut measurement, &specs, &contenders, args.flips)?,
        samples: samples.as_ref(),
        training: &training(&specs)?,
        made: &made,
        command: &command(),
    })?;
    output::deliver(&text, Some(&args.output))?;
    Ok(Exit::Done)
}

/// Refuses answers of a model that goes by the name of a compared one and is another.
fn check_answers(sheet: &Sheet, contenders: &[Contender]) -> Result<()> {
    for answering in &sheet.models {
        for contender in contenders.iter().filter(|contender| contender.model == answering.model) {
            let Outcome::Measured(runs) = &contender.outcome else { continue };
            ensure!(
                runs.iter().all(|run| run.manifest.id == answering.id),
                "--samples: {} has changed since it answered; run `fireval samples` again",
                answering.model
            );
        }
    }
    Ok(())
}

/// The command line as it was typed.
fn command() -> String {
    suggest::command(std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()))
}

/// What is known of how the scores came to be; dates and times are those of the stored runs, where they are the same runs.
fn made(place: &Workplace, contender: &Contender) -> Result<Made> {
    let model = contender.model.clone();
    let runs = match &contender.outcome {
        Outcome::Published(row) => return Ok(Made::Published { model, precision: row.precision.name() }),
        Outcome::Measured(runs) => runs,
    };
    let recorded = |run: &Run| {
        let counted = &run.manifest;
        let shelf = place.store.shelf(&model, &counted.id, counted.protocol, &counted.task)?;
        let stored = shelf.manifest()?.filter(|stored| stored.same_outcome(counted));
        let is_dated = stored.is_some();
        Ok(Recorded { manifest: stored.unwrap_or_else(|| counted.clone()), is_dated })
    };
    Ok(Made::Measured { runs: runs.iter().map(recorded).collect::<Result<_>>()?, model })
}

fn held(spec: &ModelSpec, made: &Made) -> Result<Held> {
    let weights = match &spec.source {
        Source::Published(row) => row.weights(),
        Source::Scripted(_) | Source::Imported(_) => None,
        Source::Checkpoint(_) | Source::Hub(_) => {
            let counted = names::parameters(&spec.config()?);
            Some(Billions { all: counted.all as f64 * 1e-9, active: counted.active as f64 * 1e-9 })
        }
    };
    let tokens_per_second = match made {
        Made::Measured { runs, .. } => page::speed(runs),
        Made::Published { .. } => None,
    };
    Ok(Held { weights, tokens_per_second })
}

/// The logs of adapters that lie beside them.
fn training(specs: &[ModelSpec]) -> Result<Vec<Training>> {
    let logs = specs.iter().filter_map(|spec| Some((spec, spec.adapter.as_ref()?.join(log::FILE))));
    logs.filter(|(_, path)| path.exists())
        .map(|(spec, path)| Ok(Training { model: spec.name.clone(), log: log::read(&path)? }))
        .collect()
}

/// The first `limit` flips of each task between the first model and each other one.
fn flips(
    measurement: &mut Measurement,
    specs: &[ModelSpec],
    contenders: &[Contender],
    limit: usize,
) -> Result<Vec<FlipSet>> {
    let mut sets = Vec::new();
    let Some(Outcome::Measured(first)) = contenders.first().map(|first| &first.outcome) else { return Ok(sets) };
    for (contender, spec) in contenders.iter().zip(specs).skip(1) {
        let Outcome::Measured(other) = &contender.outcome else { continue };
        let names = [&contenders[0].model, &contender.model];
        let found: Vec<Vec<Flip>> = first
            .iter()
            .zip(other)
            .map(|(before, now)| why::flips((names[0], before), (names[1], now)))
            .collect::<Result<_>>()?;
        let asked = prompts(measurement.questions(&specs[0])?, &found, limit);
        // Under a chat template each model is asked in its own words.
        let questions = measurement.questions(spec)?;
        let also_asked = prompts(questions, &found, limit);
        let tasks = first.iter().zip(other).zip(questions).zip(found.iter().zip(asked.iter().zip(&also_asked)));
        for (((before, now), questions), (flips, (asked, also_asked))) in tasks {
            let shown = flips.iter().zip(asked.iter().zip(also_asked));
            let shown = shown.map(|(flip, (asked, also_asked))| PageFlip {
                text: FlipText::of(flip, [before, now], &questions.documents[flip.index]),
                prompts: [asked.clone(), also_asked.clone()],
            });
            sets.push(FlipSet {
                task: before.manifest.task.clone(),
                models: names.map(String::clone),
                all: flips.len(),
                shown: shown.collect(),
            });
        }
    }
    Ok(sets)
}

/// What was asked in the first `limit` flips of each task.
fn prompts(questions: &[TaskDocuments], flips: &[Vec<Flip>], limit: usize) -> Vec<Vec<String>> {
    let prompt = |document: &Document| match document.requests.first() {
        Some(Request::LogLikelihood { context, .. } | Request::Generate { context, .. }) => context.to_string(),
        None => String::new(),
    };
    let of_task = |(questions, flips): (&TaskDocuments, &Vec<Flip>)| {
        flips.iter().take(limit).map(|flip| prompt(&questions.documents[flip.index])).collect()
    };
    questions.iter().zip(flips).map(of_task).collect()
}
