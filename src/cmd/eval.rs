//! `fireval eval MODEL`: scores one model, keeps every document, prints the scores.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::measure::{MeasureFlags, Missing};
use super::{Exit, Workplace, dry_run, output};
use crate::compare::{self, Contender, Outcome};
use crate::project::Source;
use crate::report::{Format, Table};
use crate::store::samples;

/// Score a model on a suite of tasks.
///
/// Every document is stored as it finishes: a second call does nothing again, an interrupted one continues, a larger
/// --limit asks only what is new.
#[derive(clap::Args)]
pub struct Args {
    /// A name of fireval.toml, a folder, a .gguf file, or a repository of the hub: org/name[@revision][:file.gguf].
    model: String,
    #[command(flatten)]
    measure: MeasureFlags,
    /// Print what it would come to (tokens, operations, time, memory) as if nothing were stored yet, and evaluate nothing.
    #[arg(long, conflicts_with = "samples")]
    dry_run: bool,
    /// Write every document's answers to this file, a JSON line each, in evaluation order.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let mut measurement = args.measure.measurement(place)?;
    let spec = measurement.resolve(std::slice::from_ref(&args.model))?.remove(0);
    let is_row = matches!(spec.source, Source::Published(_));
    ensure!(!is_row, "{} is a row of the leaderboard, which can be compared but not evaluated", spec.name);
    let is_imported = matches!(spec.source, Source::Imported(_));
    ensure!(!is_imported, "{} is what another program answered: it can be compared but not evaluated", spec.name);
    if args.dry_run {
        return dry_run::run(&mut measurement, &spec);
    }
    output::check_writable(args.samples.as_deref())?;
    let runs = measurement.runs(&spec, Missing::Evaluate)?;
    if let Some(path) = &args.samples {
        samples::write(path, runs.iter().flat_map(|run| &run.scores))?;
    }
    let contender = Contender { model: spec.name, outcome: Outcome::Measured(runs) };
    let comparison = compare::compare(measurement.conditions.protocol, measurement.columns(), &[contender])?;
    output::print(&Table::of(&comparison).print(Format::Table, output::terminal_width()))?;
    Ok(Exit::Done)
}
