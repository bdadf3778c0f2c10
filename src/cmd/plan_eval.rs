//! `fireval plan-eval`: how many documents a gate needs, before anything is evaluated.

use anyhow::Result;

use super::{Exit, Workplace, output};
use crate::gate::plan::{Assumed, plan};
use crate::report;

/// Say how many documents of which tasks show a margin on the average of the six tasks.
///
/// Exit code 3 where all 28,659 documents are not enough.
#[derive(clap::Args)]
pub struct Args {
    /// How much worse the average may be, in points.
    #[arg(long, value_name = "POINTS", default_value_t = 1.0)]
    margin: f64,
    /// How likely a candidate that lost nothing is to pass.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    power: f64,
    /// One-sided, of the interval that is held against the margin.
    #[arg(long, value_name = "SHARE", default_value_t = 0.975)]
    confidence: f64,
    /// The share of documents that only one of both models gets right, on every task (`compare` prints it: gained and lost of
    /// all) [default: as between a fine-tune and its base, task by task].
    #[arg(long, value_name = "SHARE", conflicts_with = "rerun")]
    flips: Option<f64>,
    /// Plan for models that differ as float16 and bfloat16 of the same weights do.
    #[arg(long)]
    rerun: bool,
}

pub fn run(_place: &Workplace, args: Args) -> Result<Exit> {
    let assumed = match (args.flips, args.rerun) {
        (Some(share), _) => Assumed::Flips(share),
        (None, true) => Assumed::ReRun,
        (None, false) => Assumed::FineTune,
    };
    let plan = plan(args.margin / 100.0, args.power, args.confidence, assumed)?;
    output::print(&report::plan::print(&plan))?;
    Ok(if plan.enough { Exit::Done } else { Exit::NotEnough })
}
