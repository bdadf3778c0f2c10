//! `fireval flips TASK A B`: the documents that two models scored differently, page by page.

use anyhow::{Result, bail};

use super::measure::{AskedFlags, MeasureFlags, Missing, count};
use super::{Verdict, Workplace, output};
use crate::compare::why;
use crate::eval::Run;
use crate::report::why::{FlipText, print_flips};
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

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let flags = MeasureFlags::of_task(args.task, args.documents, args.asked);
    let mut measurement = flags.measurement(place)?;
    let specs = measurement.resolve(&[args.first, args.other])?;
    let first = measurement.runs(&specs[0], Missing::Refuse)?;
    let other = measurement.runs(&specs[1], Missing::Refuse)?;
    let questions = measurement.questions(&specs[1])?;
    let (Some(before), Some(after), Some(asked)) = (first.first(), other.first(), questions.first()) else {
        bail!("no task was asked for");
    };
    let pair = Pair { first: (&specs[0].name, before), other: (&specs[1].name, after) };
    output::print(&pair.page(&asked.documents, args.skip, args.limit)?)?;
    Ok(Verdict::Done)
}

/// Two models' runs on one task.
pub struct Pair<'a> {
    pub first: (&'a str, &'a Run),
    pub other: (&'a str, &'a Run),
}

impl Pair<'_> {
    /// Flips `skip..skip + limit` as text; `documents` in the order of the runs.
    pub fn page(&self, documents: &[Document], skip: usize, limit: usize) -> Result<String> {
        let flips = why::flips(self.first, self.other)?;
        let runs = [self.first.1, self.other.1];
        let of = |flip: &why::Flip| FlipText::of(flip, runs, &documents[flip.index]);
        let shown: Vec<FlipText> = flips.iter().skip(skip).take(limit).map(of).collect();
        Ok(print_flips(&self.first.1.manifest.task, [self.first.0, self.other.0], &shown, skip, flips.len()))
    }
}
