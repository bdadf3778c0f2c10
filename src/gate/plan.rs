//! How many documents a gate needs, before any is asked; and whether those that it has can tell anything at all.
//!
//! The error of the average is foretold from how often two models answer differently (`stats::power`), which is an assumption:
//! [`Assumed`] has two with their sources, and a user's own. Documents are taken as drawn from all that could be asked, as in
//! Miller 2024 (arXiv 2411.00640), so the whole suite has an error too.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::sight::Sight;
use crate::compare::TaskFile;
use crate::eval::TaskDocuments;
use crate::protocol::Protocol;
use crate::published::{self, COLUMNS, MMLU_SUBJECTS, Published};
use crate::stats::normal::quantile;
use crate::stats::power;

/// The 95 % quantile of a normal number: nine in ten absolute ones are below it.
const NINE_IN_TEN: f64 = 1.644_853_626_951_473;

/// How often two models answer a document differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Assumed {
    /// As a fine-tune and its base: on ARC 8 %, HellaSwag 4, MMLU 10, Winogrande 10, GSM8K 20; TruthfulQA's shares differ
    /// with a standard deviation of 0.09. Round numbers, those of `benches/statistics.rs`.
    FineTune,
    /// As float16 and bfloat16 of the same weights: what the noise floor in `results/published/` comes to.
    ReRun,
    /// This share of every task that counts right answers; TruthfulQA as for a fine-tune.
    Flips(f64),
}

impl Assumed {
    /// The variance of the paired difference of one document of a task of [`COLUMNS`].
    pub fn variance(self, task: &str) -> Result<f64> {
        let of_fine_tune = || match task {
            "arc_challenge" => Some(0.08),
            "hellaswag" => Some(0.04),
            "mmlu" | "winogrande" => Some(0.10),
            "gsm8k" => Some(0.20),
            "truthfulqa" => Some(0.09 * 0.09),
            _ => None,
        };
        let unknown = || format!("nothing is known of {task}; the six tasks are {}", names().join(", "));
        match self {
            Assumed::FineTune => of_fine_tune().with_context(unknown),
            Assumed::Flips(_) if task == "truthfulqa" => of_fine_tune().with_context(unknown),
            Assumed::Flips(share) => Ok(power::variance_of_flips(share, 0.0)),
            Assumed::ReRun => {
                let floor = published::noise_floor(task)?.with_context(unknown)?;
                let size = published::size(task).with_context(unknown)?;
                Ok(size.effective * (floor / NINE_IN_TEN).powi(2))
            }
        }
    }
}

fn names() -> Vec<&'static str> {
    COLUMNS.iter().map(|(task, _)| *task).collect()
}

/// A task's part in a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub task: &'static str,
    /// That are to be asked, and that there are.
    pub documents: usize,
    pub all: usize,
    /// The standard deviation of one document's paired difference.
    pub deviation: f64,
    /// Of the average's variance.
    pub share: f64,
}

/// What a gate needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub margin: f64,
    pub power: f64,
    pub confidence: f64,
    pub assumed: Assumed,
    /// The smallest `--limit` that suffices; none where all documents are asked.
    pub limit: Option<usize>,
    /// Whether what is planned suffices: false where all documents do not.
    pub enough: bool,
    pub parts: Vec<Part>,
    /// Of what is planned.
    pub sight: Sight,
    /// The smallest margin that what is planned shows with `power`.
    pub smallest_margin: f64,
}

/// Plans for the six tasks under leaderboard-v1. `margin` a fraction, `confidence` one-sided.
pub fn plan(margin: f64, power: f64, confidence: f64, assumed: Assumed) -> Result<Plan> {
    ensure!(margin > 0.0 && margin < 1.0, "a margin between 0 and 100 points");
    ensure!((0.5..1.0).contains(&power), "a power of at least 0.5 and below 1, as 0.8");
    ensure!(confidence > 0.5 && confidence < 1.0, "a one-sided confidence between 0.5 and 1, as 0.975");
    if let Assumed::Flips(share) = assumed {
        ensure!(share > 0.0 && share <= 1.0, "a share of flips above 0 and at most 1, as 0.08");
    }
    let variances: Vec<f64> = names().iter().map(|task| assumed.variance(task)).collect::<Result<_>>()?;
    let errors = quantile(confidence) + quantile(power);
    let suffices = |limit: Option<usize>| stderr(&variances, limit) * errors <= margin;
    let largest = COLUMNS.iter().filter_map(|(task, _)| published::size(task)).map(|size| size.documents).max();
    let largest = largest.unwrap_or_default();
    let enough = suffices(None);
    // The error falls with the limit, so the first that suffices is found by halving.
    let limits: Vec<usize> = (1..=largest).collect();
    let first = limits.partition_point(|&limit| !suffices(Some(limit))) + 1;
    let limit = (enough && first < largest).then_some(first);
    let error = stderr(&variances, limit);
    let part = |(task, variance): (&'static str, &f64)| Part {
        task,
        documents: strata(task, limit).iter().sum(),
        all: strata(task, None).iter().sum(),
        deviation: variance.sqrt(),
        share: of_task(&strata(task, limit), *variance) / (6.0 * error).powi(2),
    };
    let parts: Vec<Part> = names().into_iter().zip(&variances).map(part).collect();
    let documents = parts.iter().map(|part| part.documents).sum();
    let sight = Sight::new(documents, error, margin, confidence);
    Ok(Plan { margin, power, confidence, assumed, limit, enough, parts, sight, smallest_margin: error * errors })
}

/// Sizes of a task's strata under a limit.
fn strata(task: &str, limit: Option<usize>) -> Vec<usize> {
    let sizes = match task {
        "mmlu" => MMLU_SUBJECTS.map(|(_, documents)| documents).to_vec(),
        other => published::size(other).map(|size| size.documents).into_iter().collect(),
    };
    sizes.into_iter().map(|size| limit.map_or(size, |limit| size.min(limit))).collect()
}

/// The variance of a task's mean difference, its strata weighing alike.
fn of_task(strata: &[usize], variance: f64) -> f64 {
    let weight = 1.0 / strata.len() as f64;
    strata.iter().map(|&size| weight * weight * variance / size as f64).sum()
}

/// Of the average of the six tasks.
fn stderr(variances: &[f64], limit: Option<usize>) -> f64 {
    let tasks = names().into_iter().zip(variances);
    tasks.map(|(task, variance)| of_task(&strata(task, limit), *variance)).sum::<f64>().sqrt() / 6.0
}

/// The least error that the average of `questions` can have, of a candidate as near to its baseline as a re-run; beside a
/// published row, of one with the row's scores. None where a task is not one of the six as they are built in.
pub fn least_stderr(questions: &[TaskDocuments], protocol: Protocol, row: Option<&Published>) -> Result<Option<f64>> {
    let mut sum = 0.0;
    for asked in questions {
        let task = asked.task.name().split('/').next().unwrap_or_default();
        let size = published::size(task).filter(|_| TaskFile::of(&asked.task) == TaskFile::BuiltIn);
        let Some(size) = size else { return Ok(None) };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        asked.documents.iter().for_each(|document| *counts.entry(&document.subtask).or_default() += 1);
        let counts = match protocol {
            Protocol::LeaderboardV1 => counts.into_values().collect(),
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => vec![asked.documents.len()],
        };
        sum += match row.and_then(|row| row.score(task)) {
            None => of_task(&counts, Assumed::ReRun.variance(task)?),
            Some(percent) => {
                let binomial = percent / 100.0 * (1.0 - percent / 100.0);
                // Shares in 0..1 vary less than right and wrong answers with their mean, how much less is not known.
                let known = if task == "truthfulqa" { 0.0 } else { binomial };
                binomial / size.effective + of_task(&counts, known)
            }
        };
    }
    Ok((!questions.is_empty()).then(|| sum.sqrt() / questions.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_whole_suite_by_hand() {
        // Variances of the means: .08/1172, .04/10042, .1/9528.2, .0081/817, .1/1267, .2/1319; a sixth of the root of their sum.
        let sum: f64 = 6.826e-5 + 3.983e-6 + 1.0495e-5 + 9.914e-6 + 7.893e-5 + 1.5163e-4;
        let whole = plan(0.01, 0.8, 0.975, Assumed::FineTune).unwrap();
        assert!((whole.sight.stderr - sum.sqrt() / 6.0).abs() > 1e-5, "a limit suffices");
        let variances: Vec<f64> = names().iter().map(|task| Assumed::FineTune.variance(task).unwrap()).collect();
        assert!((stderr(&variances, None) - sum.sqrt() / 6.0).abs() < 1e-7, "{}", stderr(&variances, None));
    }

    #[test]
    fn the_limit_is_the_smallest_that_suffices() {
        let found = plan(0.01, 0.8, 0.975, Assumed::FineTune).unwrap();
        let limit = found.limit.unwrap();
        assert!(found.enough && found.sight.at_margin >= 0.8 - 1e-9 && found.smallest_margin <= 0.01);
        let variances: Vec<f64> = names().iter().map(|task| Assumed::FineTune.variance(task).unwrap()).collect();
        assert!(stderr(&variances, Some(limit - 1)) * (quantile(0.975) + quantile(0.8)) > 0.01);
        assert_eq!(found.parts[0].documents, limit.min(1_172));
        assert!((found.parts.iter().map(|part| part.share).sum::<f64>() - 1.0).abs() < 1e-9);
        // Two models that hardly differ need fewer.
        let near = plan(0.01, 0.8, 0.975, Assumed::ReRun).unwrap();
        assert!(near.limit.unwrap() < limit);
    }

    #[test]
    fn the_whole_suite_may_not_be_enough() {
        let found = plan(0.002, 0.8, 0.975, Assumed::FineTune).unwrap();
        assert!(!found.enough && found.limit.is_none() && found.sight.documents == 28_659);
        assert!(found.smallest_margin > 0.002 && found.sight.at_margin < 0.5);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (margin, power, confidence) in [(0.0, 0.8, 0.975), (0.01, 0.3, 0.975), (0.01, 1.0, 0.975), (0.01, 0.8, 0.5)]
        {
            assert!(plan(margin, power, confidence, Assumed::FineTune).is_err());
        }
        assert!(plan(0.01, 0.8, 0.975, Assumed::Flips(0.0)).is_err());
        assert!(Assumed::FineTune.variance("own").unwrap_err().to_string().contains("hellaswag"));
    }

    #[test]
    fn re_runs_flip_as_the_noise_floor_says() {
        // GSM8K: nine in ten pairs within 1.21 points, so a standard error of 0.7356 points: 1,319 times its square.
        let found = Assumed::ReRun.variance("gsm8k").unwrap();
        assert!((found - 1_319.0 * (0.0121_f64 / 1.644_854).powi(2)).abs() < 1e-6, "{found}");
        assert!((found - 0.0714).abs() < 1e-4, "{found}");
    }
}
