//! The stored truth: what one document scored, with everything needed to count it again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::request::Response;

/// One request's answer as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestScore {
    /// Natural log-probability, summed over `cont_ids`.
    pub ll: f64,
    pub is_greedy: bool,
    pub cont_ids: Vec<u32>,
}

/// One document's outcome. A document is known by task, subtask, row of the official split and the row's digest,
/// never by its place in a shuffled or limited list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocScore {
    pub task: String,
    /// The MMLU subject; the task's own name elsewhere.
    pub subtask: String,
    /// Row number in the official split (for MMLU in the subject's part of it), from 0.
    pub doc: usize,
    /// sha256 of the document's requests: prompts that differ are not the same document.
    pub digest: String,
    pub requests: Vec<RequestScore>,
    /// Generated text after cutting; none for multiple choice.
    pub output: Option<String>,
    /// Fractions in 0..1 under the reference's names (`acc`, `acc_norm`, `mc2`, `exact_match,strict-match`, ...).
    pub metrics: BTreeMap<String, f64>,
}

impl RequestScore {
    /// The stored part of a log-likelihood; `None` for generated text.
    pub fn of(response: &Response) -> Option<RequestScore> {
        match response {
            Response::LogLikelihood { sum, tokens, is_greedy } => {
                Some(RequestScore { ll: *sum, is_greedy: *is_greedy, cont_ids: tokens.clone() })
            }
            Response::Generate { .. } => None,
        }
    }
}
