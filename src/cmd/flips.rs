//! `fireval flips TASK A B`: the documents that two models scored differently, page by page.

use std::ops::Range;

use anyhow::{Result, bail};

use super::measure::{AskedFlags, MeasureFlags, Missing, count};
use super::{Exit, Workplace, output};
use crate::compare::why;
use crate::eval::Run;
use crate::report::Format;
use crate::report::why::{FlipPage, FlipText};
use crate::task::Document;

/// Show the documents that only one of two models got right: question, options, what each chose.
///
/// Reads stored runs and evaluates nothing. Where answers are shares (TruthfulQA's mc2), the largest changes come first.
#[derive(clap::Args)]
pub struct Args {
    /// A task, such as arc_challenge or mmlu/astronomy.
    task: String,
    /// The model before.
    first: String,
    /// The model after.
    other: String,
    /// Flips on a page.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = count)]
    limit: usize,
    /// Flips before the page.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// The runs' own limit: at most this many documents of the task and of each MMLU subject.
    #[arg(long, value_name = "N", value_parser = count)]
    documents: Option<usize>,
    #[command(flatten)]
    asked: AskedFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let flags = MeasureFlags::of_task(args.task, args.documents, args.asked);
    let mut measurement = flags.measurement(place)?;
    let specs = measurement.resolve(&[args.first, args.other])?;
    let command = measurement.flips_commands(&specs[0].name, &specs[1].name).remove(0);
    let first = measurement.runs(&specs[0], Missing::Refuse)?;
    let other = measurement.runs(&specs[1], Missing::Refuse)?;
    let questions = measurement.questions(&specs[1])?;
    let (Some(before), Some(after), Some(asked)) = (first.first(), other.first(), questions.first()) else {
        bail!("no task was asked for");
    };
    let pair = Pair { first: (&specs[0].name, before), other: (&specs[1].name, after), command: &command };
    output::print(&pair.page(&asked.documents, args.skip..args.skip.saturating_add(args.limit), Format::Table)?)?;
    Ok(Exit::Done)
}

/// Two models' runs on one task.
pub struct Pair<'a> {
    pub first: (&'a str, &'a Run),
    pub other: (&'a str, &'a Run),
    /// What shows their flips, page by page.
    pub command: &'a str,
}

impl Pair<'_> {
    /// These of the flips as text; `documents` in the order of the runs.
    pub fn page(&self, documents: &[Document], places: Range<usize>, format: Format) -> Result<String> {
        let flips = why::flips(self.first, self.other)?;
        let runs = [self.first.1, self.other.1];
        let of = |flip: &why::Flip| FlipText::of(flip, runs, &documents[flip.index]);
        let shown: Vec<FlipText> = flips.iter().skip(places.start).take(places.len()).map(of).collect();
        let page = FlipPage {
            task: &self.first.1.manifest.task,
            models: [self.first.0, self.other.0],
            flips: &shown,
            skip: places.start,
            all: flips.len(),
            command: self.command,
        };
        Ok(page.print(format))
    }
}
