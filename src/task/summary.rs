//! From documents' scores to a task's estimates. `tasks/protocol.md`, section 6.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::definition::{Definition, Group};
use crate::protocol::Protocol;
use crate::score::DocScore;
use crate::stats::Estimate;

/// Every metric's estimate; with subtasks, leaderboard-v1's unweighted mean of them or lm-eval's mean by size, and for
/// the latter also the groups (`acc,stem`).
pub fn estimates(task: &Definition, protocol: Protocol, scores: &[DocScore]) -> Result<BTreeMap<String, Estimate>> {
    ensure!(!scores.is_empty(), "no documents were scored");
    let mut estimates = BTreeMap::new();
    for metric in scores[0].metrics.keys() {
        let parts = by_subtask(scores, metric)?;
        let all: Vec<Estimate> = parts.iter().map(|(_, estimate)| *estimate).collect();
        let joined = match protocol {
            Protocol::LeaderboardV1 => Estimate::macro_mean(&all),
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => {
                estimates.extend(groups(task, metric, &parts));
                Estimate::micro_mean(&all)
            }
        };
        // A single part is its own mean; pooling it would only move its last digit.
        let joined = if let [only] = all[..] { Some(only) } else { joined };
        estimates.insert(metric.clone(), joined.expect("there are scores"));
    }
    Ok(estimates)
}

fn by_subtask<'a>(scores: &'a [DocScore], metric: &str) -> Result<Vec<(&'a str, Estimate)>> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for score in scores {
        let value = score.metrics.get(metric);
        ensure!(value.is_some(), "{} document {} has no `{metric}`", score.subtask, score.doc);
        values.entry(&score.subtask).or_default().extend(value);
    }
    Ok(values.into_iter().filter_map(|(name, values)| Some((name, Estimate::mean(&values)?))).collect())
}

fn groups(task: &Definition, metric: &str, parts: &[(&str, Estimate)]) -> Vec<(String, Estimate)> {
    let estimate = |group: &Group| {
        let inside = parts.iter().filter(|(name, _)| group.subtasks.iter().any(|member| member == name));
        let inside: Vec<Estimate> = inside.map(|(_, estimate)| *estimate).collect();
        Some((format!("{metric},{}", group.name), Estimate::micro_mean(&inside)?))
    };
    task.groups.iter().filter_map(estimate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;

    fn score(subtask: &str, acc: f64) -> DocScore {
        DocScore {
            task: "mmlu".to_owned(),
            subtask: subtask.to_owned(),
            doc: 0,
            digest: String::new(),
            requests: Vec::new(),
            output: None,
            metrics: BTreeMap::from([("acc".to_owned(), acc)]),
        }
    }

    #[test]
    fn subjects_weigh_alike_on_the_leaderboard_and_by_size_today() {
        let task = Task::load("mmlu", None).unwrap();
        let scores =
            [score("astronomy", 1.0), score("astronomy", 1.0), score("philosophy", 0.0), score("astronomy", 0.0)];
        let v1 = task.estimates(Protocol::LeaderboardV1, &scores).unwrap();
        assert!((v1["acc"].value - 1.0 / 3.0).abs() < 1e-12 && v1.len() == 1);
        let latest = task.estimates(Protocol::LmEvalLatest, &scores).unwrap();
        assert_eq!(latest["acc"].value, 0.5);
        assert!((latest["acc,stem"].value - 2.0 / 3.0).abs() < 1e-12 && latest["acc,humanities"].value == 0.0);
        assert!(!latest.contains_key("acc,other"));
    }
}
