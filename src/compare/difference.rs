//! The statistics of a cell: its interval, and how far it is from the first model's. `crate::stats` has the formulas; here is
//! which of them an answer calls for.

use std::collections::BTreeMap;

use super::{Cell, Difference};
use crate::eval::Run;
use crate::protocol::Protocol;
use crate::published::{self, Published};
use crate::stats::paired::{Flips, p_value_of};
use crate::stats::strata::{self, Part, Weighing};
use crate::stats::{Estimate, Interval, LEVEL, Z, bootstrap, proportion};

/// A measured score with its interval.
pub fn measured_cell(run: &Run, estimate: Estimate) -> Cell {
    let Estimate { value, stderr, n } = estimate;
    let values = values(run);
    let strata: usize = run.scores.iter().map(|score| &score.subtask).collect::<std::collections::BTreeSet<_>>().len();
    let right_or_wrong = values.as_deref().is_some_and(is_right_or_wrong);
    let interval = match (right_or_wrong, strata, values) {
        (true, 0 | 1, _) => Some(proportion::wilson(value, n as f64, Z)),
        (true, _, _) => Some(proportion::wilson(value, proportion::effective_size(value, stderr, n), Z)),
        (false, 1, Some(values)) => bootstrap::of_mean(&values, &run.manifest.task).map(|found| found.interval(LEVEL)),
        (false, _, _) => {
            stderr.map(|stderr| Interval { low: value - Z * stderr, high: value + Z * stderr }.clipped(0.0, 1.0))
        }
    };
    let correct = (right_or_wrong && strata == 1).then(|| (value * n as f64).round() as usize);
    Cell { score: value, stderr, interval, documents: Some(n), correct, difference: None }
}

/// A published score with the binomial error of the documents behind it.
pub fn published_cell(row: &Published, task: &str) -> Option<Cell> {
    let percent = row.score(task)?;
    let (score, size) = (percent / 100.0, published::size(task)?);
    Some(Cell {
        score,
        stderr: Some((score * (1.0 - score) / size.effective).sqrt()),
        interval: Some(proportion::wilson(score, size.effective, Z)),
        documents: Some(size.documents),
        correct: size.counted.then(|| proportion::recovered_count(percent, published::HALF, size.documents)).flatten(),
        difference: None,
    })
}

/// The mean of `cells` as strata; `score` is their unrounded mean where it is known better than from the cells.
pub fn average_cell(cells: &[Option<Cell>], score: Option<f64>) -> Option<Cell> {
    let cells: Option<Vec<Cell>> = cells.iter().copied().collect();
    let cells = cells.filter(|cells| !cells.is_empty())?;
    let weight = 1.0 / cells.len() as f64;
    let mean = cells.iter().map(|cell| cell.score).sum::<f64>() / cells.len() as f64;
    let squares: Option<f64> = cells.iter().map(|cell| cell.stderr.map(|stderr| stderr * stderr)).sum();
    let parts: Option<Vec<Part>> =
        cells.iter().map(|cell| Some(Part { weight, value: cell.score, interval: cell.interval? })).collect();
    let score = score.unwrap_or(mean);
    Some(Cell {
        score,
        stderr: squares.map(|sum| sum.sqrt() * weight),
        interval: parts.map(|parts| moved(strata::joined(&parts), score - mean)),
        documents: cells.iter().map(|cell| cell.documents).sum(),
        correct: None,
        difference: None,
    })
}

/// How far `after` is from `before`, document by document.
pub fn paired(protocol: Protocol, first: &Run, other: &Run, before: &Cell, after: &Cell) -> Difference {
    let value = after.score - before.score;
    let stderr = paired_stderr(protocol, first, other);
    let flips = flips(first, other);
    let strata = differences_by_subtask(first, other).unwrap_or_default();
    let (interval, p_value) = match (&strata[..], flips) {
        ([_], Some(flips)) => (Some(flips.interval(Z)), Some(flips.p_value())),
        ([only], None) => match bootstrap::of_mean(only, &first.manifest.task) {
            Some(found) => (Some(found.interval(LEVEL)), Some(found.p_value(0.0))),
            None => (None, None),
        },
        (strata, _) => {
            let interval = strata::interval_of_difference(strata, weighing(protocol));
            (interval, interval.map(|interval| p_value_of(value, interval, Z)))
        }
    };
    Difference { value, stderr, interval, p_value, holm: None, flips, in_noise: false, paired: true }
}

/// How far `after` is from `before`, of which one is only a published score.
pub fn unpaired(before: &Cell, after: &Cell) -> Difference {
    let value = after.score - before.score;
    let squares = before.stderr.zip(after.stderr).map(|(a, b)| a * a + b * b);
    let interval = before.interval.zip(after.interval).map(|(low, high)| {
        strata::joined(&[
            Part { weight: -1.0, value: before.score, interval: low },
            Part { weight: 1.0, value: after.score, interval: high },
        ])
    });
    let p_value = interval.map(|interval| p_value_of(value, interval, Z));
    let stderr = squares.map(f64::sqrt);
    Difference { value, stderr, interval, p_value, holm: None, flips: None, in_noise: false, paired: false }
}

/// The difference `value` of two averages, from those of their tasks, which are strata.
pub fn of_average(cells: &[Option<Cell>], value: f64) -> Option<Difference> {
    let differences: Option<Vec<Difference>> = cells.iter().map(|cell| cell.and_then(|cell| cell.difference)).collect();
    let differences = differences?;
    if let [only] = differences[..] {
        // The same difference has the same test; what it says of single documents stays with its task.
        return Some(Difference { holm: None, flips: None, in_noise: false, ..only });
    }
    let weight = 1.0 / differences.len() as f64;
    let squares: Option<f64> = differences.iter().map(|difference| Some(difference.stderr?.powi(2))).sum();
    let parts: Option<Vec<Part>> = differences
        .iter()
        .map(|difference| Some(Part { weight, value: difference.value, interval: difference.interval? }))
        .collect();
    let mean = differences.iter().map(|difference| difference.value).sum::<f64>() * weight;
    let interval = parts.map(|parts| moved(strata::joined(&parts), value - mean));
    Some(Difference {
        value,
        stderr: squares.map(|sum| sum.sqrt() * weight),
        interval,
        p_value: interval.map(|interval| p_value_of(value, interval, Z)),
        holm: None,
        flips: None,
        in_noise: false,
        paired: differences.iter().all(|difference| difference.paired),
    })
}

fn moved(interval: Interval, by: f64) -> Interval {
    Interval { low: interval.low + by, high: interval.high + by }
}

pub fn weighing(protocol: Protocol) -> Weighing {
    match protocol {
        Protocol::LeaderboardV1 => Weighing::Alike,
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => Weighing::BySize,
    }
}

/// The reported metric of every document.
fn values(run: &Run) -> Option<Vec<f64>> {
    run.scores.iter().map(|score| score.metrics.get(&run.manifest.metric).copied()).collect()
}

fn is_right_or_wrong(values: &[f64]) -> bool {
    values.iter().all(|&value| value == 0.0 || value == 1.0)
}

/// Who was right where; none where answers are neither right nor wrong.
pub fn flips(first: &Run, other: &Run) -> Option<Flips> {
    let (before, now) = (values(first)?, values(other)?);
    let counted = is_right_or_wrong(&before) && is_right_or_wrong(&now);
    counted.then(|| Flips::of(before.iter().zip(&now).map(|(&before, &now)| (before == 1.0, now == 1.0))))
}

/// Whether the run's interval is the bootstrap's: answers are shares, and it has no subtasks.
pub fn is_bootstrapped(run: &Run) -> bool {
    let has_subtasks = run.scores.iter().any(|score| score.subtask != run.scores[0].subtask);
    !has_subtasks && values(run).is_some_and(|values| !is_right_or_wrong(&values))
}

/// The differences of each subtask, in the order of their names.
pub fn differences_by_subtask(first: &Run, other: &Run) -> Option<Vec<Vec<f64>>> {
    let (before, now) = (values(first)?, values(other)?);
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (score, (before, now)) in first.scores.iter().zip(before.iter().zip(&now)) {
        parts.entry(&score.subtask).or_default().push(now - before);
    }
    Some(parts.into_values().collect())
}

/// The standard error of the mean difference document by document; with subtasks in the way the protocol averages them.
pub fn paired_stderr(protocol: Protocol, first: &Run, other: &Run) -> Option<f64> {
    let parts = differences_by_subtask(first, other)?;
    let parts: Vec<Estimate> = parts.iter().filter_map(|differences| Estimate::mean(differences)).collect();
    let mean = match (&parts[..], weighing(protocol)) {
        ([only], _) => Some(*only),
        (_, Weighing::Alike) => Estimate::macro_mean(&parts),
        (_, Weighing::BySize) => Estimate::micro_mean(&parts),
    };
    mean?.stderr
}
