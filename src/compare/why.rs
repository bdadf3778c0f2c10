//! Where a difference comes from: each task's share of the change of the average, MMLU's by subject, and the documents
//! that only one of two models got right.

use anyhow::Result;

use super::{Comparison, Contender, Outcome, difference};
use crate::eval::Run;
use crate::protocol::Protocol;
use crate::stats::strata::Weighing;

/// Scores no further apart are one score: sums of the same numbers end in other last digits.
const SAME: f64 = 1e-9;

/// A part of the change of the average.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The task, or for a subject `mmlu/astronomy`.
    pub name: String,
    /// In fractions of the average: the shares of all tasks add up to its change.
    pub change: f64,
    /// Documents gained and lost; none where answers are neither right nor wrong, and for published rows.
    pub flips: Option<(usize, usize)>,
}

/// What made one model's average differ from the first one's.
#[derive(Clone, Debug, PartialEq)]
pub struct Origins {
    pub model: String,
    /// The change of the average that the shares explain.
    pub change: f64,
    /// Largest first.
    pub tasks: Vec<Share>,
    /// Subtasks of tasks that have some, largest first.
    pub subtasks: Vec<Share>,
}

/// The origins for each model but the first. Tasks without a score on both sides have no share, and then there is no
/// average either.
pub fn origins(comparison: &Comparison, contenders: &[Contender]) -> Vec<Origins> {
    let others = comparison.rows.iter().zip(contenders).skip(1);
    others
        .map(|(row, contender)| {
            let weight = 1.0 / comparison.columns.len() as f64;
            let share = |(column, cell): (&super::Column, &Option<super::Cell>)| {
                let difference = (*cell)?.difference?;
                let flips = difference.flips.map(|flips| (flips.gained, flips.lost));
                Some(Share { name: column.task.clone(), change: difference.value * weight, flips })
            };
            let tasks: Vec<Share> = comparison.columns.iter().zip(&row.cells).filter_map(share).collect();
            let subtasks = match (&contenders[0].outcome, &contender.outcome) {
                (Outcome::Measured(first), Outcome::Measured(other)) => {
                    let pairs = first.iter().zip(other);
                    pairs.flat_map(|(first, other)| by_subtask(comparison.protocol, first, other, weight)).collect()
                }
                (Outcome::Published(_), _) | (_, Outcome::Published(_)) => Vec::new(),
            };
            let change = tasks.iter().map(|share| share.change).sum();
            Origins { model: row.model.clone(), change, tasks: sorted(tasks), subtasks: sorted(subtasks) }
        })
        .collect()
}

fn sorted(mut shares: Vec<Share>) -> Vec<Share> {
    shares.sort_by(|a, b| b.change.abs().total_cmp(&a.change.abs()).then_with(|| a.name.cmp(&b.name)));
    shares
}

/// The shares of a task's subtasks; nothing for a task that has none.
fn by_subtask(protocol: Protocol, first: &Run, other: &Run, task_weight: f64) -> Vec<Share> {
    let mut names: Vec<&str> = first.scores.iter().map(|score| score.subtask.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let differences = difference::differences_by_subtask(first, other).unwrap_or_default();
    if names.len() < 2 {
        return Vec::new();
    }
    let (strata, documents) = (names.len() as f64, first.scores.len() as f64);
    let share = |(name, differences): (&str, Vec<f64>)| {
        let size = differences.len() as f64;
        let weight = match difference::weighing(protocol) {
            Weighing::Alike => 1.0 / strata,
            Weighing::BySize => size / documents,
        };
        let count = |what: f64| differences.iter().filter(|&&difference| difference == what).count();
        Share {
            name: format!("{}/{name}", first.manifest.task),
            change: task_weight * weight * differences.iter().sum::<f64>() / size,
            flips: difference::flips(first, other).map(|_| (count(1.0), count(-1.0))),
        }
    };
    names.into_iter().zip(differences).map(share).collect()
}

/// A document that the two runs scored differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flip {
    /// Its place in both runs.
    pub index: usize,
    pub before: f64,
    pub now: f64,
}

/// The documents whose reported metric differs, the largest change first, then in the order of evaluation. Refuses runs that
/// did not answer the same questions.
pub fn flips(first: (&str, &Run), other: (&str, &Run)) -> Result<Vec<Flip>> {
    super::alike::check_pair(first, other)?;
    let (first, other) = (first.1, other.1);
    let metric = &first.manifest.metric;
    let pairs = first.scores.iter().zip(&other.scores).enumerate();
    let flip = |(index, (before, now)): (usize, (&crate::score::DocScore, &crate::score::DocScore))| {
        let (before, now) = (*before.metrics.get(metric)?, *now.metrics.get(metric)?);
        ((before - now).abs() > SAME).then_some(Flip { index, before, now })
    };
    let mut flips: Vec<Flip> = pairs.filter_map(flip).collect();
    flips.sort_by(|a, b| (b.now - b.before).abs().total_cmp(&(a.now - a.before).abs()).then(a.index.cmp(&b.index)));
    Ok(flips)
}
