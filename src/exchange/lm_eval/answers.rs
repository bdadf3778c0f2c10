//! The samples of one of the harness's tasks: what was asked of each document, by digest, and what was answered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::sample::DEFAULT_TOKENS;
use crate::request::{Request, Response};
use crate::task::request_digest;

/// The answers to one task's documents.
pub struct Answers {
    pub path: PathBuf,
    by_row: BTreeMap<usize, Answered>,
}

/// The answer to one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Of the file, from 1.
    pub line: usize,
    /// sha256 of the requests, as our own documents have it.
    pub digest: String,
    /// Where a generation was to end: stop strings, and the most tokens.
    pub ending: Option<(Vec<String>, usize)>,
    pub responses: Vec<Response>,
    /// By our names: `acc`, `exact_match,strict-match`.
    pub metrics: BTreeMap<String, f64>,
}

impl Answers {
    /// Reads a `samples_*.jsonl`.
    pub fn read(path: &Path) -> Result<Answers> {
        let place = || format!("can't read {}", path.display());
        let file = BufReader::new(File::open(path).with_context(place)?);
        let mut answers = Answers { path: path.to_owned(), by_row: BTreeMap::new() };
        for (index, text) in file.lines().enumerate() {
            let text = text.with_context(place)?;
            let (row, filter, answered) = parse(&text, index + 1).with_context(|| answers.place(index + 1))?;
            answers.add(row, &filter, answered).with_context(|| answers.place(index + 1))?;
        }
        Ok(answers)
    }

    pub fn place(&self, line: usize) -> String {
        format!("{}, line {line}", self.path.display())
    }

    /// Documents.
    pub fn len(&self) -> usize {
        self.by_row.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_row.is_empty()
    }

    /// The answer to the document in `row` of the split.
    pub fn of(&self, row: usize) -> Option<&Answered> {
        self.by_row.get(&row)
    }

    /// A document has a line for each of the task's filters, which differ in their metrics alone.
    fn add(&mut self, row: usize, filter: &str, answered: Answered) -> Result<()> {
        let named = |(name, value): (&String, &f64)| match filter {
            "none" => (name.clone(), *value),
            filter => (format!("{name},{filter}"), *value),
        };
        let metrics: BTreeMap<String, f64> = answered.metrics.iter().map(named).collect();
        match self.by_row.get_mut(&row) {
            None => {
                self.by_row.insert(row, Answered { metrics, ..answered });
            }
            Some(before) => {
                let twice = metrics.keys().find(|name| before.metrics.contains_key(*name));
                ensure!(twice.is_none(), "`doc_id`: document {row} stands in line {} already", before.line);
                ensure!(
                    before.digest == answered.digest && before.responses == answered.responses,
                    "`resps`: document {row} was asked and answered otherwise in line {}",
                    before.line
                );
                before.metrics.extend(metrics);
            }
        }
        Ok(())
    }
}

fn parse(text: &str, line: usize) -> Result<(usize, String, Answered)> {
    let sample: Value = serde_json::from_str(text).context("not a line of JSON; is the file cut off?")?;
    let row =
        sample["doc_id"].as_u64().and_then(|row| usize::try_from(row).ok()).context("`doc_id`: no such number")?;
    let requests = requests(&sample["arguments"])?;
    let responses = responses(&sample["resps"], &requests)?;
    let ending = match &requests[..] {
        [Request::Generate { stop, max_tokens, .. }] => Some((stop.clone(), *max_tokens)),
        _ => None,
    };
    let filter = sample["filter"].as_str().context("`filter`: no such text")?;
    let names = sample["metrics"].as_array().context("`metrics`: no such list")?;
    let metric = |name: &Value| {
        let name = name.as_str().context("`metrics`: not a list of names")?;
        let value = sample[name].as_f64().with_context(|| format!("`{name}`: no such number"))?;
        Ok((name.to_owned(), value))
    };
    let metrics = names.iter().map(metric).collect::<Result<_>>()?;
    Ok((row, filter.to_owned(), Answered { line, digest: request_digest(&requests), ending, responses, metrics }))
}

/// `{"gen_args_0": {"arg_0": context, "arg_1": continuation or the arguments of a generation}, ...}`.
fn requests(arguments: &Value) -> Result<Vec<Request>> {
    let all = arguments.as_object().filter(|all| !all.is_empty());
    let all = all.context("`arguments`: not an object of gen_args_0, gen_args_1, ...: written by an older lm_eval?")?;
    let request = |index: usize| {
        let key = format!("gen_args_{index}");
        let pair = all.get(&key).with_context(|| format!("`arguments.{key}`: no such object"))?;
        let context = pair["arg_0"].as_str().with_context(|| format!("`arguments.{key}.arg_0`: no such text"))?;
        match &pair["arg_1"] {
            Value::String(continuation) => {
                Ok(Request::LogLikelihood { context: context.into(), continuation: continuation.clone() })
            }
            Value::Object(settings) => {
                generation(context, settings).with_context(|| format!("`arguments.{key}.arg_1`"))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                bail!("`arguments.{key}.arg_1`: neither a text nor an object")
            }
        }
    };
    (0..all.len()).map(request).collect()
}

fn generation(context: &str, settings: &serde_json::Map<String, Value>) -> Result<Request> {
    let sampled = settings.get("do_sample").and_then(Value::as_bool) == Some(true);
    ensure!(!sampled, "`do_sample`: every protocol answers greedily; run lm_eval without --gen_kwargs");
    let until = settings.get("until").and_then(Value::as_array).context("`until`: no such list")?;
    let stop: Option<Vec<String>> = until.iter().map(|text| text.as_str().map(str::to_owned)).collect();
    let max_tokens = match settings.get("max_gen_toks") {
        None | Some(Value::Null) => DEFAULT_TOKENS,
        Some(count) => usize::try_from(count.as_u64().context("`max_gen_toks`: no such number")?)?,
    };
    Ok(Request::Generate { context: context.into(), stop: stop.context("`until`: not a list of texts")?, max_tokens })
}

/// For each request a list of one answer: `["-2.75", "False"]`, or a text.
fn responses(resps: &Value, requests: &[Request]) -> Result<Vec<Response>> {
    let all = resps.as_array().context("`resps`: no such list")?;
    ensure!(all.len() == requests.len(), "`resps`: {} for {} requests", all.len(), requests.len());
    let response = |(index, (repeats, request)): (usize, (&Value, &Request))| {
        let place = || format!("`resps[{index}]`");
        let [answer] = repeats.as_array().map(Vec::as_slice).with_context(place)? else {
            bail!("`resps[{index}]`: asked several times; every protocol asks once")
        };
        match request {
            Request::LogLikelihood { .. } => log_likelihood(answer).with_context(place),
            Request::Generate { .. } => {
                let text = answer.as_str().with_context(place)?.to_owned();
                Ok(Response::Generate { text, tokens: Vec::new() })
            }
        }
    };
    all.iter().zip(requests).enumerate().map(response).collect()
}

/// The harness makes texts of numbers and truth values.
fn log_likelihood(answer: &Value) -> Result<Response> {
    let [sum, is_greedy] = answer.as_array().map(Vec::as_slice).context("not a list")? else {
        bail!("not a log-likelihood and whether it is greedy")
    };
    let sum = match sum {
        Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    };
    let sum: f64 = sum.filter(|sum: &f64| sum.is_finite()).context("its log-likelihood is not a finite number")?;
    let is_greedy = match is_greedy {
        Value::Bool(flag) => *flag,
        Value::String(text) if text == "True" => true,
        Value::String(text) if text == "False" => false,
        other => bail!("{other} is neither True nor False"),
    };
    Ok(Response::LogLikelihood { sum, tokens: Vec::new(), is_greedy })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Value {
        json!({
            "doc_id": 3,
            "arguments": {"gen_args_0": {"arg_0": "Q:", "arg_1": " a"}, "gen_args_1": {"arg_0": "Q:", "arg_1": " b"}},
            "resps": [[["-1.5", "True"]], [["-2.25", "False"]]],
            "filter": "none",
            "metrics": ["acc"],
            "acc": 1.0,
        })
    }

    #[test]
    fn a_line_is_what_was_asked_and_answered() {
        let (row, filter, answered) = parse(&sample().to_string(), 7).unwrap();
        assert_eq!((row, filter.as_str(), answered.line), (3, "none", 7));
        let answer = |sum, is_greedy| Response::LogLikelihood { sum, tokens: Vec::new(), is_greedy };
        assert_eq!(answered.responses, [answer(-1.5, true), answer(-2.25, false)]);
        // tasks/protocol.md, section 9: context, 0x1e, continuation, 0x1f.
        assert_eq!(answered.digest, crate::digest::sha256_hex(b"Q:\x1e a\x1fQ:\x1e b\x1f"));
        assert_eq!(answered.metrics["acc"], 1.0);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        let error = |change: &dyn Fn(&mut Value)| {
            let mut sample = sample();
            change(&mut sample);
            format!("{:#}", parse(&sample.to_string(), 1).unwrap_err())
        };
        assert!(error(&|s| s["doc_id"] = json!("3")).contains("`doc_id`"));
        assert!(error(&|s| s["arguments"] = json!([["Q:", " a"]])).contains("older lm_eval"));
        assert!(error(&|s| s["arguments"]["gen_args_1"]["arg_0"] = json!(1)).contains("`arguments.gen_args_1.arg_0`"));
        assert!(error(&|s| s["resps"][1] = json!([["-1", "True"], ["-1", "True"]])).contains("several times"));
        assert!(error(&|s| s["resps"][1] = json!([["nan", "True"]])).contains("`resps[1]`"));
        assert!(error(&|s| s["resps"][0] = json!([["-1", "yes"]])).contains("neither True nor False"));
        assert!(error(&|s| s["resps"] = json!([])).contains("0 for 2 requests"));
        assert!(error(&|s| s["acc"] = Value::Null).contains("`acc`"));
        let generated = |settings: Value| {
            error(&move |s| {
                s["arguments"] = json!({"gen_args_0": {"arg_0": "Q:", "arg_1": settings}});
                s["resps"] = json!([["text"]]);
            })
        };
        assert!(generated(json!({"until": ["x"], "do_sample": true})).contains("`do_sample`"));
        assert!(generated(json!({"do_sample": false})).contains("`until`"));
    }

    #[test]
    fn filters_of_a_document_are_brought_together() {
        let mut answers = Answers { path: "s.jsonl".into(), by_row: BTreeMap::new() };
        let (row, _, answered) = parse(&sample().to_string(), 1).unwrap();
        answers.add(row, "strict", answered.clone()).unwrap();
        answers.add(row, "loose", Answered { line: 2, ..answered.clone() }).unwrap();
        let names: Vec<&str> = answers.of(3).unwrap().metrics.keys().map(String::as_str).collect();
        assert_eq!((answers.len(), names), (1, vec!["acc,loose", "acc,strict"]));
        let twice = answers.add(row, "loose", answered.clone()).unwrap_err().to_string();
        assert!(twice.contains("line 1"), "{twice}");
        let other = Answered { responses: Vec::new(), ..answered };
        assert!(answers.add(row, "third", other).unwrap_err().to_string().contains("otherwise"));
    }
}
