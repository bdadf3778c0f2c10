//! `fireval compare MODELS…`: evaluates what is missing and prints the models side by side.

use anyhow::{Result, ensure};

use super::measure::{MeasureFlags, Measurement, Missing, OutputFlags};
use super::{Exit, Workplace, flips, output};
use crate::compare::{self, Contender, Outcome};
use crate::project::ModelSpec;
use crate::report::{self, Format, Table};

/// Compare models: a row a model, a column a task, the average, the difference to the first model.
///
/// What is not stored yet is evaluated first. `published:ORG/NAME[@float16|@bfloat16|@4bit]` is a row of the old
/// leaderboard, which may stand beside measured ones.
#[derive(clap::Args)]
pub struct Args {
    /// Models, the first of which the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Say where each difference comes from: its share by task and subject, and some of the documents that flipped.
    #[arg(long)]
    why: bool,
    #[command(flatten)]
    measure: MeasureFlags,
    #[command(flatten)]
    output: OutputFlags,
}

/// Flips of each task that `--why` shows; `fireval flips` has them all.
const FLIPS_SHOWN: usize = 2;

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let measurement = args.measure.measurement(place)?;
    table(measurement, &args.models, &args.output, Missing::Evaluate, args.why)
}

/// Measures, compares and prints, with `why` also where the differences come from.
pub fn table(
    mut measurement: Measurement,
    models: &[String],
    flags: &OutputFlags,
    missing: Missing,
    why: bool,
) -> Result<Exit> {
    let specs = measurement.resolve(models)?;
    let format = output::format(flags.format, flags.output.as_deref());
    ensure!(
        !why || matches!(format, Format::Table | Format::Markdown),
        "--why prints with --format table or markdown; its figures are sums of the table's differences"
    );
    output::check_writable(flags.output.as_deref())?;
    let contenders: Result<Vec<Contender>> = specs.iter().map(|spec| measurement.contender(spec, missing)).collect();
    let contenders = contenders?;
    let comparison = compare::compare(measurement.conditions.protocol, measurement.columns(), &contenders)?;
    let width = if flags.output.is_some() { None } else { output::terminal_width() };
    let mut text = Table::of(&comparison).print(format, width);
    if why {
        text.push_str(&report::why::print(&compare::why::origins(&comparison, &contenders), format, width));
        text.push_str(&flips_of_each_task(&mut measurement, &specs, &contenders, format)?);
    }
    output::deliver(&text, flags.output.as_deref())?;
    Ok(Exit::Done)
}

/// The first flips between the first model and each other one, task by task.
fn flips_of_each_task(
    measurement: &mut Measurement,
    specs: &[ModelSpec],
    contenders: &[Contender],
    format: Format,
) -> Result<String> {
    let mut text = String::new();
    let Some((Contender { model, outcome: Outcome::Measured(first_runs) }, others)) = contenders.split_first() else {
        return Ok(text);
    };
    let commands: Vec<Vec<String>> =
        others.iter().map(|other| measurement.flips_commands(model, &other.model)).collect();
    let questions = measurement.questions(&specs[0])?;
    for (other, commands) in others.iter().zip(&commands) {
        let Outcome::Measured(other_runs) = &other.outcome else { continue };
        for (((first, second), asked), command) in first_runs.iter().zip(other_runs).zip(questions).zip(commands) {
            let pair = flips::Pair { first: (model, first), other: (&other.model, second), command };
            text.push_str(&pair.page(&asked.documents, 0..FLIPS_SHOWN, format)?);
        }
    }
    Ok(text)
}
