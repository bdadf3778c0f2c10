//! The samples: a line for each document and filter, with the prompts, the answers and their hashes.

use std::io::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::leaf::{Leaf, MetricKey};
use crate::digest::sha256_hex;
use crate::python::float_repr;
use crate::request::Request;
use crate::score::DocScore;
use crate::task::{Document, Task};

/// The most tokens that the harness generates where a task does not say.
pub const DEFAULT_TOKENS: usize = 256;

impl<'a> Leaf<'a> {
    /// A line for each document and filter; returns the hash over all documents that `task_hashes` holds.
    pub fn write_samples(&self, out: &mut impl Write) -> Result<String> {
        let mut hashes = String::new();
        for filter in self.filters() {
            for &index in &self.indices {
                let sample = self.sample(index, filter)?;
                for key in ["doc_hash", "prompt_hash", "target_hash"] {
                    hashes.push_str(sample[key].as_str().unwrap_or_default());
                }
                serde_json::to_writer(&mut *out, &sample)?;
                out.write_all(b"\n")?;
            }
        }
        Ok(sha256_hex(hashes.as_bytes()))
    }

    /// The filters of its metrics, each once.
    fn filters(&self) -> Vec<&'a str> {
        let mut filters: Vec<&str> = self.metrics().iter().map(|metric| metric.filter).collect();
        filters.dedup();
        filters
    }

    fn sample(&self, index: usize, filter: &str) -> Result<Value> {
        let (document, record, score) =
            (&self.of.documents[index], &self.of.records[index], &self.of.run.scores[index]);
        let answers = Answers::of(self.of.task, score, filter)?;
        let metrics: Vec<MetricKey> = self.metrics().into_iter().filter(|metric| metric.filter == filter).collect();
        let mut sample = Map::new();
        let mut put = |key: &str, value: Value| sample.insert(key.to_owned(), value);
        put("doc_id", json!(document.row));
        put("doc", Value::Object(record.row.clone()));
        put("target", json!(record.target));
        put("arguments", arguments(&document.requests));
        put("resps", answers.raw);
        put("filtered_resps", answers.filtered);
        put("filter", json!(filter));
        put("metrics", metrics.iter().map(|metric| metric.name).collect());
        let row = serde_json::to_string_pretty(&record.row)?;
        put("doc_hash", json!(sha256_hex(row.as_bytes())));
        put("prompt_hash", json!(sha256_hex(context(document)?.as_bytes())));
        put("target_hash", json!(sha256_hex(record.target.as_bytes())));
        for metric in &metrics {
            put(metric.name, json!(score.metrics.get(metric.stored)));
        }
        Ok(sample.into())
    }
}

/// What a model answered, in the harness's nested lists of strings.
struct Answers {
    raw: Value,
    filtered: Value,
}

impl Answers {
    fn of(task: &Task, score: &DocScore, filter: &str) -> Result<Answers> {
        if let Some(text) = &score.output {
            let filtered = task.filtered(text).into_iter().find(|(name, _)| name == filter);
            let (_, filtered) = filtered.with_context(|| format!("{}: no filter {filter}", task.name()))?;
            return Ok(Answers { raw: json!([[text]]), filtered: json!([filtered]) });
        }
        let bool_repr = |flag: bool| if flag { "True" } else { "False" };
        let answers: Vec<Value> =
            score.requests.iter().map(|r| json!([float_repr(r.ll), bool_repr(r.is_greedy)])).collect();
        Ok(Answers { raw: answers.iter().map(|answer| json!([answer])).collect(), filtered: answers.into() })
    }
}

fn arguments(requests: &[Request]) -> Value {
    let argument = |(index, request): (usize, &Request)| {
        let pair = match request {
            Request::LogLikelihood { context, continuation } => json!({"arg_0": &**context, "arg_1": continuation}),
            Request::Generate { context, stop, max_tokens } => {
                json!({"arg_0": &**context, "arg_1": generation(stop, *max_tokens)})
            }
        };
        (format!("gen_args_{index}"), pair)
    };
    Value::Object(requests.iter().enumerate().map(argument).collect())
}

/// The harness's arguments of a greedy generation.
pub fn generation(stop: &[String], max_tokens: usize) -> Value {
    let mut arguments = json!({"until": stop, "do_sample": false, "temperature": 0.0});
    if max_tokens != DEFAULT_TOKENS {
        arguments["max_gen_toks"] = json!(max_tokens);
    }
    arguments
}

fn context(document: &Document) -> Result<&str> {
    match document.requests.first() {
        Some(Request::LogLikelihood { context, .. } | Request::Generate { context, .. }) => Ok(context),
        None => bail!("{} document {} asks nothing", document.subtask, document.row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_limits_than_the_harness_s_are_said() {
        assert_eq!(generation(&["x".to_owned()], 256), json!({"until": ["x"], "do_sample": false, "temperature": 0.0}));
        assert_eq!(generation(&[], 64)["max_gen_toks"], 64);
    }
}
