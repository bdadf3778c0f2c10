//! May this candidate stand in the baseline's place? [`judge`] holds a comparison of the two against the [`Rules`] and gives
//! one [`Verdict`], which every output prints.
//!
//! - Non-inferiority of the average: the interval of the difference against the margin, one-sided at the rules' confidence
//!   (FDA, Non-Inferiority Clinical Trials to Establish Effectiveness, 2016; Piaggio et al., CONSORT extension, JAMA 308,
//!   2012, pages 2594 to 2604: shown above the margin, refuted below it, open across it).
//! - A loss on a task alone, one-sided and corrected for the tasks (Holm 1979, `stats::holm`).
//! - Floors, and what is too good or too uniform to be true.

pub mod baseline;
pub mod plan;
pub mod rules;
pub mod sight;
pub mod uniform;

use anyhow::{Context, Result, ensure};

pub use rules::Rules;
pub use sight::Sight;
pub use uniform::Uniform;

use crate::compare::{Cell, Comparison, Difference};
use crate::eval::Run;
use crate::protocol::Protocol;
use crate::stats::{Estimate, Interval, holm};
use crate::store::Manifest;

/// How a gate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    Regression,
    /// Too good or too uniform to be true.
    Suspect,
    /// Non-inferiority is neither shown nor refuted.
    NotEnough,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Regression => "regression",
            Outcome::Suspect => "suspect",
            Outcome::NotEnough => "not enough evidence",
        }
    }

    /// The program's exit code; 2 is for what could not be judged.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Pass => 0,
            Outcome::Regression | Outcome::Suspect => 1,
            Outcome::NotEnough => 3,
        }
    }
}

/// What one rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Holds,
    Regression,
    Suspect,
    Open,
}

/// A rule with the numbers it was held against, in fractions.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    NonInferior {
        difference: f64,
        interval: Interval,
        margin: f64,
        confidence: f64,
    },
    /// `p`: of no loss, one-sided, corrected for the tasks; none where the documents are too few for a test.
    TaskLoss {
        difference: f64,
        p: Option<f64>,
        significance: f64,
        in_noise: bool,
    },
    Floor {
        score: f64,
        floor: f64,
    },
    /// Of the average or of a task; `low`: the lower end of the gain's 95 % interval.
    Gain {
        difference: f64,
        low: f64,
        most: f64,
    },
    Alike {
        uniform: Uniform,
        most: f64,
    },
}

impl Rule {
    /// Its name in every output.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::NonInferior { .. } => "non-inferior",
            Rule::TaskLoss { .. } => "no loss",
            Rule::Floor { .. } => "floor",
            Rule::Gain { .. } => "credible gain",
            Rule::Alike { .. } => "answers differ",
        }
    }
}

/// A rule applied to the average or to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// None for the average.
    pub task: Option<String>,
    pub rule: Rule,
    pub finding: Finding,
}

/// What was judged, and what came out: the one value that all outputs print.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub baseline: String,
    pub candidate: String,
    pub protocol: Protocol,
    /// Where the rules were read.
    pub rules: String,
    pub sight: Sight,
    /// Of the average: baseline, candidate.
    pub averages: [f64; 2],
    pub checks: Vec<Check>,
    /// Of the comparison, and of floors that were not applied: what a reader has to know.
    pub notes: Vec<String>,
}

impl Verdict {
    /// The gravest finding; a suspicion before a regression, which may well be its consequence.
    pub fn outcome(&self) -> Outcome {
        let any = |finding: Finding| self.checks.iter().any(|check| check.finding == finding);
        match () {
            () if any(Finding::Suspect) => Outcome::Suspect,
            () if any(Finding::Regression) => Outcome::Regression,
            () if any(Finding::Open) => Outcome::NotEnough,
            () => Outcome::Pass,
        }
    }
}

/// Judges the second row of `comparison` beside its first; `runs` are the candidate's.
pub fn judge(rules: &Rules, comparison: &Comparison, runs: &[Run]) -> Result<Verdict> {
    let [baseline, candidate] = &comparison.rows[..] else {
        anyhow::bail!("a gate judges one candidate beside one baseline, not {} models", comparison.rows.len())
    };
    let cells: Vec<Judged> = comparison
        .columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cell = candidate.cells[index].filter(|cell| cell.difference.is_some());
            let place =
                || format!("{} and {} have no common score of {}", baseline.model, candidate.model, column.task);
            let cell = cell.with_context(|| format!("{}; leave it out with --tasks", place()))?;
            let difference = cell.difference.with_context(place)?;
            Ok(Judged { task: &column.task, cell, difference })
        })
        .collect::<Result<_>>()?;
    let few = "too few documents for an interval of the average's difference: ask more with --limit";
    let before = baseline.average.context(few)?;
    let average = candidate.average.context(few)?;
    let difference = average.difference.context(few)?;
    let interval = difference.interval.context(few)?;
    ensure!(runs.len() == cells.len(), "{} runs for {} tasks", runs.len(), cells.len());
    let documents = runs.iter().map(|run| run.scores.len()).sum();
    let stderr = sight::stderr_below(difference.value, interval);
    let mut checks = vec![non_inferior(rules, difference.value, interval)];
    checks.extend(gain(None, &difference, rules.average_gain));
    checks.extend(task_losses(rules, &cells));
    checks.extend(cells.iter().filter_map(|judged| floor(rules, judged.task, judged.cell.score)));
    checks.extend(runs.iter().flat_map(|run| subject_floors(rules, run)));
    checks.extend(cells.iter().filter_map(|judged| gain(Some(judged.task), &judged.difference, rules.task_gain)));
    checks.extend(runs.iter().filter_map(|run| alike(rules, run)));
    let mut notes = comparison.notes.clone();
    notes.extend(idle_floors(rules, &checks));
    Ok(Verdict {
        baseline: baseline.model.clone(),
        candidate: candidate.model.clone(),
        protocol: comparison.protocol,
        rules: rules.place.clone(),
        sight: Sight::new(documents, stderr, rules.margin, rules.confidence),
        averages: [before.score, average.score],
        checks,
        notes,
    })
}

/// A task's score and its difference to the baseline's.
struct Judged<'a> {
    task: &'a str,
    cell: Cell,
    difference: Difference,
}

fn non_inferior(rules: &Rules, difference: f64, interval: Interval) -> Check {
    let (margin, confidence) = (rules.margin, rules.confidence);
    let interval = sight::at(confidence, difference, interval);
    let finding = match () {
        () if interval.low > -margin => Finding::Holds,
        () if interval.high < -margin => Finding::Regression,
        () => Finding::Open,
    };
    Check { task: None, rule: Rule::NonInferior { difference, interval, margin, confidence }, finding }
}

fn task_losses(rules: &Rules, cells: &[Judged]) -> Vec<Check> {
    let Some(loss) = rules.task_loss else { return Vec::new() };
    let p_of = |judged: &Judged| judged.difference.p_value.map(|p| sight::p_of_loss(judged.difference.value, p));
    let known: Vec<f64> = cells.iter().filter_map(p_of).collect();
    let mut adjusted = holm::adjusted(&known).into_iter();
    let check = |judged: &Judged| {
        let p = p_of(judged).and_then(|_| adjusted.next());
        let Difference { value, in_noise, .. } = judged.difference;
        let in_noise = loss.ignore_noise && in_noise && value < 0.0;
        let lost = value < 0.0 && p.is_some_and(|p| p < loss.significance) && !in_noise;
        let rule = Rule::TaskLoss { difference: value, p, significance: loss.significance, in_noise };
        Check {
            task: Some(judged.task.to_owned()),
            rule,
            finding: if lost { Finding::Regression } else { Finding::Holds },
        }
    };
    cells.iter().map(check).collect()
}

fn floor(rules: &Rules, task: &str, score: f64) -> Option<Check> {
    let floor = *rules.floors.get(task)?;
    // A score of exactly the floor holds it, whatever binary numbers make of both.
    let finding = if score < floor - 1e-9 { Finding::Regression } else { Finding::Holds };
    Some(Check { task: Some(task.to_owned()), rule: Rule::Floor { score, floor }, finding })
}

/// The floors of subjects, where the whole task was asked.
fn subject_floors(rules: &Rules, run: &Run) -> Vec<Check> {
    let Manifest { task, metric, .. } = &run.manifest;
    let of_subject = |name: &String| {
        let subject = name.strip_prefix(task.as_str())?.strip_prefix('/')?;
        let scores = run.scores.iter().filter(|score| score.subtask == subject);
        let values: Vec<f64> = scores.filter_map(|score| score.metrics.get(metric).copied()).collect();
        floor(rules, name, Estimate::mean(&values)?.value)
    };
    rules.floors.keys().filter_map(of_subject).collect()
}

/// Tells of floors that nothing was held against, which would else read as floors that hold.
fn idle_floors(rules: &Rules, checks: &[Check]) -> Option<String> {
    let is_floor = |check: &&Check| matches!(check.rule, Rule::Floor { .. });
    let applied: Vec<&str> = checks.iter().filter(is_floor).filter_map(|check| check.task.as_deref()).collect();
    let idle = rules.floors.keys().map(String::as_str).filter(|name| !applied.contains(name));
    let idle: Vec<&str> = idle.collect();
    match &idle[..] {
        [] => None,
        [name] => Some(format!("the floor of {name} was not applied: none of its documents were asked")),
        names => {
            Some(format!("the floors of {} were not applied: none of their documents were asked", names.join(", ")))
        }
    }
}

fn gain(task: Option<&str>, difference: &Difference, most: Option<f64>) -> Option<Check> {
    let (most, low) = (most?, difference.interval?.low);
    let finding = if difference.value > most && low > 0.0 { Finding::Suspect } else { Finding::Holds };
    let rule = Rule::Gain { difference: difference.value, low, most };
    Some(Check { task: task.map(str::to_owned), rule, finding })
}

fn alike(rules: &Rules, run: &Run) -> Option<Check> {
    let (most, uniform) = (rules.alike?, uniform::uniform(&run.scores)?);
    let finding = if uniform.share >= most { Finding::Suspect } else { Finding::Holds };
    Some(Check { task: Some(run.manifest.task.clone()), rule: Rule::Alike { uniform, most }, finding })
}

#[cfg(test)]
mod tests;
