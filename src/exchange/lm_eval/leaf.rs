//! What the harness counts as a task: one of ours, or one of MMLU's subjects; and what a results file says of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::super::known::{Known, known};
use super::sample::generation;
use crate::eval::Run;
use crate::request::Request;
use crate::score::DocScore;
use crate::stats::Estimate;
use crate::task::{Document, Record, Task};

/// A task's run, and what its samples say beyond it.
pub struct Measured<'a> {
    pub task: &'a Task,
    pub run: &'a Run,
    /// In the order of the run's scores.
    pub documents: &'a [Document],
    pub records: Vec<Record>,
    /// Documents of the split, by subtask.
    pub sizes: BTreeMap<String, usize>,
}

/// What the harness calls a task: one of ours, or one of MMLU's subjects.
pub struct Leaf<'a> {
    pub name: String,
    pub alias: String,
    pub subtask: &'a str,
    pub of: &'a Measured<'a>,
    pub known: Option<&'static Known>,
    /// Into the run's scores.
    pub indices: Vec<usize>,
}

/// One metric's values over documents.
pub struct MetricKey<'a> {
    /// As stored: `acc`, `exact_match,strict-match`.
    pub stored: &'a str,
    pub name: &'a str,
    pub filter: &'a str,
}

impl<'a> Leaf<'a> {
    pub fn new(of: &'a Measured<'a>, subtask: &'a str, index: usize) -> Leaf<'a> {
        let known = known(of.task.name());
        let base = of.task.name().split('/').next().unwrap_or_default();
        let name = known.map_or_else(
            || if subtask == base { base.to_owned() } else { format!("{base}_{subtask}") },
            |known| known.leaf(subtask),
        );
        let alias = if subtask == base { name.clone() } else { subtask.to_owned() };
        Leaf { name, alias, subtask, of, known, indices: vec![index] }
    }

    fn scores(&self) -> impl Iterator<Item = &'a DocScore> {
        self.indices.iter().map(|&index| &self.of.run.scores[index])
    }

    pub fn estimate(&self, metric: &str) -> Result<Estimate> {
        let values: Option<Vec<f64>> = self.scores().map(|score| score.metrics.get(metric).copied()).collect();
        values.and_then(|values| Estimate::mean(&values)).with_context(|| format!("{}: no `{metric}`", self.name))
    }

    /// The metrics that the harness reports of it.
    pub fn metrics(&self) -> Vec<MetricKey<'a>> {
        let stored: Vec<&str> = match self.known {
            Some(known) => known.metrics.to_vec(),
            // A task of one's own has all of its metrics; mc2 stands under `acc` too.
            None => self
                .of
                .run
                .scores
                .first()
                .into_iter()
                .flat_map(|score| score.metrics.keys())
                .map(String::as_str)
                .collect(),
        };
        let key = |stored: &'a str| match stored.split_once(',') {
            Some((name, filter)) => MetricKey { stored, name, filter },
            None => MetricKey { stored, name: stored, filter: "none" },
        };
        stored.into_iter().map(key).collect()
    }

    pub fn result(&self) -> Result<Value> {
        let mut result = Map::new();
        result.insert("name".to_owned(), json!(self.name));
        result.insert("alias".to_owned(), json!(self.alias));
        result.insert("sample_len".to_owned(), json!(self.indices.len()));
        for MetricKey { stored, name, filter } in self.metrics() {
            let estimate = self.estimate(stored)?;
            result.insert(format!("{name},{filter}"), json!(estimate.value));
            result.insert(format!("{name}_stderr,{filter}"), stderr(estimate));
        }
        Ok(result.into())
    }

    pub fn better(&self) -> Value {
        self.metrics().iter().map(|metric| (metric.name.to_owned(), Value::Bool(true))).collect::<Map<_, _>>().into()
    }

    pub fn counts(&self) -> Value {
        let original = self.of.sizes.get(self.subtask).copied().unwrap_or(self.indices.len());
        json!({"original": original, "effective": self.indices.len()})
    }

    /// What the harness would have read from the task's file, as far as it is the same here.
    pub fn config(&self) -> Value {
        let task = self.of.task;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("task", json!(self.name));
        if self.alias != self.name {
            put("task_alias", json!(self.alias));
        }
        put("dataset_path", json!(task.hub().map(|hub| hub.repository.as_str())));
        let subject = (self.alias != self.name).then_some(self.subtask);
        put("dataset_name", json!(subject.or(self.known.and_then(|known| known.config))));
        put(&format!("{}_split", task.split()), json!(task.split()));
        put("num_fewshot", json!(task.shots()));
        let kinds: Vec<&str> = self.metrics().iter().map(|metric| metric.name).collect();
        let distinct = kinds.iter().enumerate().filter(|(at, kind)| !kinds[..*at].contains(kind)).map(|(_, kind)| kind);
        let metric = |name: &&str| json!({"metric": name, "aggregation": "mean", "higher_is_better": true});
        put("metric_list", distinct.map(metric).collect());
        let output = match self.first_request() {
            Some(Request::Generate { stop, max_tokens, .. }) => {
                put("generation_kwargs", generation(stop, *max_tokens));
                "generate_until"
            }
            Some(Request::LogLikelihood { .. }) | None => "multiple_choice",
        };
        put("output_type", json!(output));
        put("repeats", json!(1));
        put("metadata", json!({"version": self.known.map(|known| known.version), "definition": task.digest()}));
        config.into()
    }

    fn first_request(&self) -> Option<&'a Request> {
        self.of.documents[self.indices[0]].requests.first()
    }
}

/// The harness's error of a mean.
pub fn stderr(estimate: Estimate) -> Value {
    estimate.stderr.map_or(json!("N/A"), |stderr| json!(stderr))
}
