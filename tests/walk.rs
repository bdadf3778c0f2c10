//! The walk over tiny models: what is asked together, in what waves, on how many threads does not matter.

mod invariance;
mod tiny;

use std::path::Path;

use fireval::engine::budget::Limits;
use fireval::engine::local::LocalEngine;
use fireval::engine::{Engine, Work};
use fireval::memory::Memory;
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::progress::Progress;
use fireval::random::Random;
use fireval::request::{Request, Response};
use fireval::weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

fn engine(config: &Value) -> LocalEngine<CandleDecoder> {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_folder(folder.path(), config, Dtype::F32);
    load(folder.path())
}

fn load(folder: &Path) -> LocalEngine<CandleDecoder> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { device: candle_core::Device::Cpu, dtype: Dtype::F32, nf4: false };
    let decoder = CandleDecoder::load(&checkpoint, &config, &options).unwrap();
    invariance::engine(folder, decoder)
}

fn mixture_config() -> Value {
    let mut config = tiny::dense_config("mixtral");
    config["num_local_experts"] = json!(4);
    config["num_experts_per_tok"] = json!(2);
    config
}

fn word(random: &mut Random) -> String {
    (0..1 + random.below(5)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

/// Documents under two headers, with two to four answers of some words, some equal; every fifth is a generation.
fn documents(count: usize) -> Vec<Vec<Request>> {
    let mut random = Random::named(3, "documents");
    let headers = ["some examples come first. ", "other examples. and more of them. "];
    let document = |index: usize| {
        let context = format!("{}{} {}", headers[index * 2 / count], word(&mut random), word(&mut random));
        if index.is_multiple_of(5) {
            let stop = vec![word(&mut random)[..1].to_owned(), "q".to_owned()];
            return vec![Request::Generate { context: context.into(), stop, max_tokens: 1 + random.below(30) }];
        }
        let context: std::sync::Arc<str> = context.into();
        let ask = |continuation: String| Request::LogLikelihood { context: context.clone(), continuation };
        let mut requests: Vec<Request> =
            (0..1 + random.below(3)).map(|_| ask(format!(" {} {}", word(&mut random), word(&mut random)))).collect();
        requests.push(requests[0].clone());
        requests
    };
    (0..count).map(document).collect()
}

#[test]
fn an_answer_does_not_depend_on_its_company() {
    for config in [tiny::dense_config("llama"), mixture_config()] {
        // candle's products differ in their last bits with the number of rows.
        invariance::check(&mut engine(&config), &documents(40), 1e-4);
    }
}

fn generations(engine: &mut LocalEngine<CandleDecoder>, documents: &[Vec<Request>]) -> Vec<Response> {
    let asked: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
    invariance::answers(engine, &asked).into_iter().flatten().collect()
}

#[test]
fn texts_are_the_same_however_many_run_together() {
    let mut engine = engine(&tiny::dense_config("llama"));
    let mut random = Random::named(4, "prompts");
    let prompt = |index: usize| {
        let context = format!("one two three. {} {}", word(&mut random), word(&mut random));
        vec![Request::Generate { context: context.into(), stop: vec!["e".to_owned()], max_tokens: 10 + 3 * index }]
    };
    let mut documents: Vec<Vec<Request>> = (0..12).map(prompt).collect();
    documents.push(documents[3].clone());
    let all = generations(&mut engine, &documents);
    let ends: Vec<usize> = all
        .iter()
        .map(|response| match response {
            Response::Generate { tokens, .. } => tokens.len(),
            Response::LogLikelihood { .. } => panic!("a text was asked for"),
        })
        .collect();
    assert!(ends.iter().min() != ends.iter().max(), "documents end at different steps: {ends:?}");
    assert_eq!(all[3], all[12]);
    for running in [1, 3] {
        engine.limits.running = running;
        assert_eq!(generations(&mut engine, &documents), all, "{running} at once");
    }
}

#[test]
fn a_stop_string_ends_a_text_and_the_earliest_cuts_it() {
    let mut engine = engine(&tiny::dense_config("llama"));
    let ask = |stop: &[&str]| {
        let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        vec![vec![Request::Generate { context: "abc xyz".into(), stop, max_tokens: 40 }]]
    };
    let [Response::Generate { text: whole, tokens: uncut }] = &generations(&mut engine, &ask(&[]))[..] else {
        panic!("a text")
    };
    assert!(whole.len() > 12 && whole.is_ascii(), "{whole:?}");
    let stop = &whole[6..9];
    let first = whole.find(stop).unwrap();
    let [Response::Generate { text, tokens }] = &generations(&mut engine, &ask(&[stop, "nowhere to be found"]))[..]
    else {
        panic!("a text")
    };
    assert_eq!(*text, whole[..first]);
    assert!(tokens.len() < uncut.len(), "it did not go on to its end");
}

#[test]
fn a_budget_that_holds_nothing_says_what_is_needed() {
    let mut engine = engine(&tiny::dense_config("llama"));
    engine.limits = Limits::of(Memory(1 << 20));
    let documents = documents(4);
    let asked: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
    let work = Work { documents: &asked, protocol: None, sampling: None, progress: Progress::hidden() };
    let error = tiny::message(engine.answer(&work, &mut |_, _| Ok(())));
    assert!(error.contains("1 MiB") && error.contains("--memory"), "{error}");
}
