//! `fireval compare MODELS…`: evaluates what is missing and prints the models side by side.

use anyhow::Result;

use super::measure::{MeasureFlags, Measurement, Missing, OutputFlags};
use super::{Verdict, Workplace, output};
use crate::compare::{self, Contender};
use crate::report::Table;

/// Compare models: a row a model, a column a task, the average, the difference to the first model.
///
/// What is not stored yet is evaluated first. `published:ORG/NAME[@float16|@bfloat16|@4bit]` is a row of the old
/// leaderboard, which may stand beside measured ones.
#[derive(clap::Args)]
pub struct Args {
    /// Models, the first of which the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    measure: MeasureFlags,
    #[command(flatten)]
    output: OutputFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let measurement = args.measure.measurement(place)?;
    table(measurement, &args.models, &args.output, Missing::Evaluate)
}

/// Measures, compares and prints.
pub fn table(
    mut measurement: Measurement,
    models: &[String],
    flags: &OutputFlags,
    missing: Missing,
) -> Result<Verdict> {
    let specs = measurement.resolve(models)?;
    output::check_writable(flags.output.as_deref())?;
    let contenders: Result<Vec<Contender>> = specs.iter().map(|spec| measurement.contender(spec, missing)).collect();
    let comparison = compare::compare(measurement.conditions.protocol, measurement.columns(), &contenders?)?;
    let format = output::format(flags.format, flags.output.as_deref());
    let width = if flags.output.is_some() { None } else { output::terminal_width() };
    output::deliver(&Table::of(&comparison).print(format, width), flags.output.as_deref())?;
    Ok(Verdict::Done)
}
