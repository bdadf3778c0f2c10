//! `fireval baseline save MODEL`: a model's outcomes as one small file to commit, for `fireval gate`.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::measure::{MeasureFlags, Missing};
use super::{Exit, Workplace, output};
use crate::gate::baseline::Baseline;
use crate::project::Source;

/// Keep what a model answered right as a file that a gate can be held against, without the model or its runs.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Save(Box<SaveArgs>),
}

/// Print the file: `fireval baseline save base > baseline.json`. What is not stored yet is evaluated first.
#[derive(clap::Args)]
struct SaveArgs {
    /// The model.
    model: String,
    #[command(flatten)]
    measure: MeasureFlags,
    /// Evaluate nothing: take stored runs, and say what is missing.
    #[arg(long)]
    stored: bool,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    match args.command {
        Command::Save(args) => save(place, *args),
    }
}

fn save(place: &Workplace, args: SaveArgs) -> Result<Exit> {
    let mut measurement = args.measure.measurement(place)?;
    let spec = measurement.resolve(std::slice::from_ref(&args.model))?.remove(0);
    let is_row = matches!(spec.source, Source::Published(_));
    ensure!(
        !is_row,
        "{} is a row of the leaderboard: it has no documents; name it to `fireval gate` as it is",
        spec.name
    );
    output::check_writable(args.output.as_deref())?;
    let missing = if args.stored { Missing::Refuse } else { Missing::Evaluate };
    let runs = measurement.runs(&spec, missing)?;
    output::deliver(&Baseline::of(&runs)?.to_json(), args.output.as_deref())?;
    Ok(Exit::Done)
}
