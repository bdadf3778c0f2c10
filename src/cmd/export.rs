//! `fireval export MODELS…`: the table of what is stored already.

use anyhow::Result;

use super::measure::{MeasureFlags, Missing, OutputFlags};
use super::{Verdict, Workplace, compare};

/// Print the comparison of stored runs, without evaluating anything.
///
/// The digits are those of `compare`. Says what is missing if something is.
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
    compare::table(measurement, &args.models, &args.output, Missing::Refuse, false)
}
