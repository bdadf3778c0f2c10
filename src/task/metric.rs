//! From a document's responses to its metrics. `tasks/protocol.md`, section 4.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use regex::Regex;

use super::Document;
use super::definition::{Definition, Filter, Generation, Prompt, Take};
use super::prompt::{Claim, Item};
use crate::protocol::Protocol;
use crate::python;
use crate::request::Response;
use crate::score::{DocScore, RequestScore};

/// What an answer is when none is found.
const INVALID: &str = "[invalid]";

type Metrics = BTreeMap<String, f64>;

pub fn score(task: &Definition, protocol: Protocol, document: &Document, responses: &[Response]) -> Result<DocScore> {
    ensure!(
        responses.len() == document.requests.len(),
        "{} responses to {} requests",
        responses.len(),
        document.requests.len()
    );
    let metrics = match &document.item {
        Item::Choice { choices, gold, .. } => choice_metrics(&log_likelihoods(responses)?, choices, *gold),
        Item::True { single, several, .. } => true_metrics(protocol, &log_likelihoods(responses)?, single, several),
        Item::Partial { gold, .. } => metrics([("acc", is(first_largest(&log_likelihoods(responses)?) == *gold))]),
        Item::Text { target, .. } => text_metrics(task, protocol, text_of(responses)?, target)?,
    };
    let output = match responses {
        [Response::Generate { text, .. }] => Some(text.clone()),
        _ => None,
    };
    Ok(DocScore {
        task: task.name.clone(),
        subtask: document.subtask.clone(),
        doc: document.row,
        digest: document.digest.clone(),
        requests: responses.iter().filter_map(RequestScore::of).collect(),
        output,
        metrics,
    })
}

/// The metrics that [`score`] gives, and with them the means over groups.
pub fn names(task: &Definition, protocol: Protocol) -> Vec<String> {
    let is_v1 = match protocol {
        Protocol::LeaderboardV1 => true,
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => false,
    };
    let fixed = |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
    let mut names = match &task.prompt {
        Prompt::MultipleChoice { .. } => fixed(&["acc", "acc_norm"]),
        Prompt::MultipleTrue { .. } if is_v1 => fixed(&["mc1", "mc2"]),
        Prompt::MultipleTrue { .. } => fixed(&["mc2", "acc"]),
        Prompt::PartialContext { .. } => fixed(&["acc"]),
        Prompt::Generation { .. } if is_v1 => fixed(&["acc"]),
        Prompt::Generation { generation, .. } => generation.filters.iter().map(Filter::metric).collect(),
    };
    let whole = names.clone();
    for group in task.groups.iter().filter(|_| !is_v1) {
        names.extend(whole.iter().map(|name| format!("{name},{}", group.name)));
    }
    names
}

fn metrics<const N: usize>(values: [(&str, f64); N]) -> Metrics {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn is(right: bool) -> f64 {
    f64::from(u8::from(right))
}

fn log_likelihoods(responses: &[Response]) -> Result<Vec<f64>> {
    let sums = responses.iter().map(|response| match response {
        Response::LogLikelihood { sum, .. } if !sum.is_nan() => Ok(*sum),
        Response::LogLikelihood { .. } => {
            bail!("a log-likelihood is not a number: the model's weights or logits are broken")
        }
        Response::Generate { .. } => bail!("generated text where a log-likelihood was asked for"),
    });
    sums.collect()
}

fn text_of(responses: &[Response]) -> Result<&str> {
    match responses {
        [Response::Generate { text, .. }] => Ok(text),
        _ => bail!("one generated text was asked for"),
    }
}

/// numpy's argmax: the first of equals.
pub fn first_largest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, index| if values[index] > values[best] { index } else { best })
}

/// `acc_norm` divides by the choice's length in code points, without the space before it.
pub fn normed(sums: &[f64], choices: &[String]) -> Vec<f64> {
    sums.iter().zip(choices).map(|(sum, choice)| sum / choice.chars().count() as f64).collect()
}

fn choice_metrics(sums: &[f64], choices: &[String], gold: usize) -> Metrics {
    let normed = normed(sums, choices);
    metrics([("acc", is(first_largest(sums) == gold)), ("acc_norm", is(first_largest(&normed) == gold))])
}

/// leaderboard-v1 answers mc1's requests first; lm-eval-latest asks for mc2's alone and calls the value `acc`.
fn true_metrics(protocol: Protocol, sums: &[f64], single: &[Claim], several: &[Claim]) -> Metrics {
    match protocol {
        Protocol::LeaderboardV1 => {
            let (first, rest) = sums.split_at(single.len());
            // The true choices are those before the first false one, even where a true one follows it.
            let is_true: Vec<bool> = several
                .iter()
                .scan(true, |before, claim| {
                    *before &= claim.is_true;
                    Some(*before)
                })
                .collect();
            metrics([("mc1", is(first_largest(first) == 0)), ("mc2", true_share(rest, &is_true))])
        }
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => {
            let is_true: Vec<bool> = several.iter().map(|claim| claim.is_true).collect();
            let share = true_share(sums, &is_true);
            metrics([("mc2", share), ("acc", share)])
        }
    }
}

/// The share of the probability that true choices have. Where every probability underflows to 0 the harness divides 0 by
/// 0; the leaderboard showed such a model's score as 0, and so does this.
fn true_share(sums: &[f64], is_true: &[bool]) -> f64 {
    let probabilities: Vec<f64> = sums.iter().map(|sum| sum.exp()).collect();
    let all: f64 = probabilities.iter().sum();
    let of_true: f64 = probabilities.iter().zip(is_true).filter(|(_, is_true)| **is_true).map(|(p, _)| p).sum();
    if all > 0.0 { of_true / all } else { 0.0 }
}

fn text_metrics(task: &Definition, protocol: Protocol, output: &str, target: &str) -> Result<Metrics> {
    let Prompt::Generation { generation, .. } = &task.prompt else { bail!("the task generates nothing") };
    Ok(match protocol {
        Protocol::LeaderboardV1 => {
            let filter = &generation.filters[0];
            let answer = |text| filter.answer(text).map_or(INVALID.to_owned(), |found| found.replace(',', ""));
            let (found, gold) = (answer(output), answer(target));
            metrics([("acc", is(found == gold && found != INVALID))])
        }
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => {
            let score = |filter: &Filter| {
                let found = filter.answer_or_invalid(output);
                (filter.metric(), is(generation.alike(&found, target)))
            };
            generation.filters.iter().map(score).collect()
        }
    })
}

impl Filter {
    /// What lm-eval calls the share of its answers that are right.
    fn metric(&self) -> String {
        format!("exact_match,{}", self.name)
    }

    /// The answer in `text`, or what the harness puts for none.
    pub fn answer_or_invalid(&self, text: &str) -> String {
        self.answer(text).unwrap_or_else(|| INVALID.to_owned())
    }

    /// The answer in `text`: of the first or last match its first non-empty group (the whole match without groups),
    /// stripped. lm-eval's `RegexFilter` (`lm_eval/filters/extraction.py`).
    fn answer(&self, text: &str) -> Option<String> {
        let mut matches = self.regex.captures_iter(text);
        let found = match self.take {
            Take::First => matches.next(),
            Take::Last => matches.last(),
        }?;
        let groups = if found.len() > 1 { 1..found.len() } else { 0..1 };
        let group = groups.filter_map(|index| found.get(index)).find(|group| !group.is_empty())?;
        Some(python::strip(group.as_str()).to_owned())
    }
}

impl Generation {
    /// lm-eval's `exact_match` (`lm_eval/api/metrics.py`): both sides without what is ignored, in lower case.
    fn alike(&self, found: &str, target: &str) -> bool {
        let plain = |text: &str| {
            let delete = |text: String, regex: &Regex| regex.replace_all(&text, "").into_owned();
            self.ignore.iter().fold(text.to_owned(), delete).to_lowercase()
        };
        plain(found) == plain(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;

    fn claims(labels: &[u8]) -> Vec<Claim> {
        labels.iter().map(|&label| Claim { text: String::new(), is_true: label == 1 }).collect()
    }

    #[test]
    fn choices_are_normed_by_code_points() {
        // -4/2 beats -3/1; "éé" counts two.
        let found = choice_metrics(&[-3.0, -4.0], &["a".to_owned(), "éé".to_owned()], 1);
        assert_eq!(found, metrics([("acc", 0.0), ("acc_norm", 1.0)]));
        assert_eq!(first_largest(&[-1.0, -1.0]), 0, "the first of equals");
    }

    #[test]
    fn the_protocols_count_unsorted_truths_differently() {
        let (single, several) = (claims(&[1, 0]), claims(&[1, 0, 1]));
        let p = |x: f64| x.ln();
        let v1 = true_metrics(Protocol::LeaderboardV1, &[p(0.1), p(0.2), p(0.2), p(0.3), p(0.5)], &single, &several);
        assert!((v1["mc2"] - 0.2).abs() < 1e-12 && v1["mc1"] == 0.0);
        let latest = true_metrics(Protocol::LmEvalLatest, &[p(0.2), p(0.3), p(0.5)], &single, &several);
        assert!((latest["mc2"] - 0.7).abs() < 1e-12 && latest["acc"] == latest["mc2"]);
        assert_eq!(true_share(&[-2000.0, -2000.0], &[true, false]), 0.0, "underflow");
    }

    #[test]
    fn answers_are_taken_as_each_protocol_takes_them() {
        let task = Task::load("gsm8k", None).unwrap().definition;
        let gold = "She has <<2+3=5>>5.\n#### 1,005";
        let v1 = |output| text_metrics(&task, Protocol::LeaderboardV1, output, gold).unwrap()["acc"];
        assert_eq!((v1("so #### 1005"), v1("#### 1,005"), v1("#### 1005."), v1("it is 1005")), (1.0, 1.0, 0.0, 0.0));
        let latest = |output| {
            let found = text_metrics(&task, Protocol::LmEvalLatest, output, gold).unwrap();
            (found["exact_match,strict-match"], found["exact_match,flexible-extract"])
        };
        assert_eq!(latest("#### 1005."), (1.0, 1.0));
        assert_eq!(latest("it is $1,005."), (0.0, 1.0));
        assert_eq!(latest("1005 then 7"), (0.0, 0.0));
        assert_eq!(latest("#### 1005.00"), (0.0, 0.0));
        assert_eq!(latest("no number"), (0.0, 0.0));
    }
}
