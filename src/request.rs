//! What a task asks of a model, and what a model answers. Strings in, numbers out: tokens are the engine's business.

use std::sync::Arc;

/// One question to a model. The requests of a document share one context: a suite's contexts are 100 MB and would be
/// 400 otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// The natural log-probability of `continuation` right after `context`.
    LogLikelihood { context: Arc<str>, continuation: String },
    /// Greedy decoding after `context`, at most `max_tokens` new tokens, cut at the earliest of `stop` or the
    /// model's end of text.
    Generate { context: Arc<str>, stop: Vec<String>, max_tokens: usize },
}

/// The answer to the [`Request`] of the same name.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// `sum`: natural logs, summed over the continuation's `tokens`; `is_greedy`: each of them was the argmax.
    LogLikelihood { sum: f64, tokens: Vec<u32>, is_greedy: bool },
    /// `text`: decoded without special tokens and already cut; `tokens`: the new tokens, before the cut.
    Generate { text: String, tokens: Vec<u32> },
}
