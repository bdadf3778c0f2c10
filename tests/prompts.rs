//! The protocols against the harnesses themselves: CPython's generator, prompts (by hash), and metrics.
//!
//! What is in `tests/fixtures/protocol` stands alone. With FIREVAL_DATA (the six benchmarks whole) and FIREVAL_REFERENCE
//! (hashes of every document's prompts, scored documents) set, every document of both protocols is checked as well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fireval::protocol::Protocol;
use fireval::python::Random;
use fireval::request::{Request, Response};
use fireval::task::{DataSource, Task, known_tasks, suite};
use serde_json::Value;

const PROTOCOLS: [Protocol; 2] = [Protocol::LeaderboardV1, Protocol::LmEvalLatest];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/protocol").join(name)
}

fn folder(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        println!("skipped: {variable} is not set");
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

#[test]
fn the_generator_is_cpython_s() {
    let vectors = json(&fixture("python_random_vectors.json"));
    let numbers = |value: &Value| -> Vec<usize> { serde_json::from_value(value.clone()).unwrap() };
    for vector in vectors["vectors"].as_array().unwrap() {
        let fresh = || Random::new(vector["seed"].as_i64().unwrap());
        let seed = &vector["seed"];
        let mut random = fresh();
        let words: Vec<usize> = (0..8).map(|_| random.getrandbits(32) as usize).collect();
        assert_eq!(words, numbers(&vector["getrandbits32"]), "seed {seed}");
        let mut random = fresh();
        for expected in vector["random"].as_array().unwrap() {
            assert_eq!(random.random(), expected.as_f64().unwrap(), "seed {seed}");
        }
        for (n, expected) in vector["randbelow"].as_object().unwrap() {
            let mut random = fresh();
            let found: Vec<usize> = (0..8).map(|_| random.below(n.parse().unwrap())).collect();
            assert_eq!(found, numbers(expected), "seed {seed}, below {n}");
        }
        for case in vector["sample"].as_array().unwrap() {
            let size = |key: &str| case[key].as_u64().unwrap() as usize;
            let mut random = fresh();
            let found = [random.sample(size("n"), size("k")), random.sample(size("n"), size("k"))];
            let expected: Vec<Vec<usize>> = serde_json::from_value(case["two_in_a_row"].clone()).unwrap();
            assert_eq!(found.as_slice(), expected, "seed {seed}, {case}");
        }
        for (n, expected) in vector["shuffle"].as_object().unwrap() {
            let mut items: Vec<usize> = (0..n.parse().unwrap()).collect();
            fresh().shuffle(&mut items);
            let expected = numbers(expected); // the first of them, for the longest
            assert_eq!(items[..expected.len()], expected, "seed {seed}, shuffle {n}");
        }
    }
    assert!(vectors["vectors"].as_array().unwrap().len() >= 7);
}

/// The reference's file of a task.
fn reference_name(task: &str, protocol: Protocol) -> &str {
    match (task, protocol) {
        ("truthfulqa", Protocol::LeaderboardV1) => "truthfulqa_mc",
        ("truthfulqa", Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) => "truthfulqa_mc2",
        _ => task,
    }
}

/// `hendrycksTest-astronomy` and `mmlu_astronomy` are `astronomy`; other tasks have their own name there.
fn subtask(name: &str) -> &str {
    ["hendrycksTest-", "mmlu_"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Compares every document with the stored hashes, which come in evaluation order; returns how many there were.
fn prompts_agree(prompts: &Path, data: &DataSource, protocol: Protocol) -> usize {
    let mut checked = 0;
    for name in known_tasks() {
        let path = prompts.join(protocol.name()).join(reference_name(&name, protocol)).with_extension("tsv");
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        let documents = Task::load(&name, None).unwrap().documents(protocol, data, None, None).unwrap();
        assert_eq!(documents.len(), lines.len(), "{name}");
        for (document, line) in documents.iter().zip(lines) {
            let place = format!("{} {name} {line:?}", protocol.name());
            if name == "mmlu" {
                assert_eq!(document.subtask, subtask(line[0]), "{place}");
            }
            assert_eq!(document.row, line[1].parse::<usize>().unwrap(), "{place}");
            assert_eq!(document.requests.len(), line[2].parse::<usize>().unwrap(), "{place}");
            assert_eq!(document.digest, line[3], "{place}");
        }
        checked += documents.len();
    }
    println!("{}: {checked} documents agree", protocol.name());
    checked
}

#[test]
fn every_prompt_of_the_bundled_slice_is_the_harness_s() {
    let prompts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks/data/prompts");
    for protocol in PROTOCOLS {
        assert_eq!(prompts_agree(&prompts, &DataSource::Bundled, protocol), 5 * 40 + 6 * 10);
    }
}

#[test]
fn every_prompt_of_the_whole_data_is_the_harness_s() {
    let (Some(data), Some(reference)) = (folder("FIREVAL_DATA"), folder("FIREVAL_REFERENCE")) else { return };
    for protocol in PROTOCOLS {
        let found = prompts_agree(&reference.join("prompts"), &DataSource::Folder(data.clone()), protocol);
        assert_eq!(found, 28_659, "{}", protocol.name());
    }
}

#[test]
fn a_limit_gives_the_first_documents_of_the_whole_run() {
    for protocol in PROTOCOLS {
        for name in known_tasks() {
            let task = Task::load(&name, None).unwrap();
            let digests = |limit| -> Vec<(String, String)> {
                let documents = task.documents(protocol, &DataSource::Bundled, limit, None).unwrap();
                documents.into_iter().map(|document| (document.subtask, document.digest)).collect()
            };
            let (all, some) = (digests(None), digests(Some(3)));
            let parts = if name == "mmlu" { 6 } else { 1 };
            assert_eq!(some.len(), 3 * parts, "{name}");
            assert!(some.iter().all(|document| all.contains(document)), "{name}");
            assert_eq!(all[..3], some[..3], "{name}");
        }
    }
}

#[test]
fn the_group_openllm_draws_otherwise_on_two_tasks_from_the_second_document_on() {
    for name in known_tasks() {
        let task = Task::load(&name, None).unwrap();
        let digests = |protocol| -> Vec<String> {
            let documents = task.documents(protocol, &DataSource::Bundled, Some(2), None).unwrap();
            documents.into_iter().map(|document| document.digest).collect()
        };
        let (alone, grouped) = (digests(Protocol::LmEvalLatest), digests(Protocol::LmEvalLatestOpenllm));
        assert_eq!(alone[0], grouped[0], "{name}");
        assert_eq!(alone[1] == grouped[1], !["hellaswag", "winogrande"].contains(&name.as_str()), "{name}");
    }
}

#[test]
fn one_subject_of_mmlu_is_a_task() {
    let load = |name| Task::load(name, None).unwrap();
    let documents =
        |name| load(name).documents(Protocol::LeaderboardV1, &DataSource::Bundled, None, None).map(|found| found.len());
    assert_eq!(documents("mmlu/astronomy").unwrap(), 10);
    assert_eq!(load("mmlu/astronomy").name(), "mmlu/astronomy");
    let error = format!("{:#}", documents("mmlu/astronmy").unwrap_err());
    assert!(error.contains("did you mean `astronomy`?"), "{error}");
    assert!(Task::load("arc_challenge/x", None).unwrap_err().to_string().contains("no subtasks"));
    assert!(Task::load("helaswag", None).unwrap_err().to_string().contains("did you mean `hellaswag`?"));
    assert_eq!(suite("openllm").unwrap().tasks, known_tasks());
}

/// Feeds the harness's own answers in and expects its metrics out.
fn metrics_agree(reference: &Path, data: &DataSource) -> usize {
    let mut checked = 0;
    for protocol in PROTOCOLS {
        for name in known_tasks() {
            let task = Task::load(&name, None).unwrap();
            let file = reference.join(protocol.name()).join("smollm2-135m-instruct");
            let file = file.join(reference_name(&name, protocol)).with_extension("jsonl");
            let documents = task.documents(protocol, data, None, None).unwrap();
            for line in std::fs::read_to_string(file).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let row = line["doc_index"].as_u64().unwrap() as usize;
                let subtask = subtask(line["subtask"].as_str().unwrap());
                let document = documents
                    .iter()
                    .find(|document| document.row == row && (name != "mmlu" || document.subtask == subtask))
                    .unwrap_or_else(|| panic!("{name} {subtask} {row}"));
                let found = task.score(protocol, document, &responses(&line)).unwrap().metrics;
                let expected: BTreeMap<String, f64> = serde_json::from_value(line["metrics"].clone()).unwrap();
                for (metric, expected) in &expected {
                    let found = found[metric.as_str()];
                    assert!((found - expected).abs() < 1e-9, "{name} {row} {metric}: {found}, reference {expected}");
                }
                assert!(!expected.is_empty());
                prompt_agrees(&document.requests, &line);
                checked += 1;
            }
        }
    }
    checked
}

fn responses(line: &Value) -> Vec<Response> {
    match line["requests"].as_array().filter(|requests| !requests.is_empty() && requests[0].get("ll").is_some()) {
        Some(requests) => requests
            .iter()
            .map(|request| Response::LogLikelihood {
                sum: request["ll"].as_f64().unwrap(),
                tokens: Vec::new(),
                is_greedy: request["greedy"].as_bool().unwrap(),
            })
            .collect(),
        None => vec![Response::Generate { text: line["output"].as_str().unwrap().to_owned(), tokens: Vec::new() }],
    }
}

fn prompt_agrees(requests: &[Request], line: &Value) {
    match &requests[0] {
        Request::LogLikelihood { context, continuation } => {
            assert_eq!(&**context, line["context"].as_str().unwrap());
            assert_eq!(continuation, line["requests"][0]["continuation"].as_str().unwrap());
        }
        Request::Generate { context, .. } => assert_eq!(&**context, line["context"].as_str().unwrap()),
    }
}

#[test]
fn the_harness_s_answers_give_the_harness_s_metrics() {
    let (Some(data), Some(reference)) = (folder("FIREVAL_DATA"), folder("FIREVAL_REFERENCE")) else { return };
    let checked = metrics_agree(&reference.join("scores"), &DataSource::Folder(data));
    assert_eq!(checked, 97);
}
