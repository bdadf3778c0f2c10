//! The same evaluation in twenty ways: shuffled, split, cut short, in waves of other sizes, on other numbers of threads.
#![allow(dead_code)] // each test file uses a part

use std::path::Path;

use fireval::engine::budget::Limits;
use fireval::engine::local::LocalEngine;
use fireval::engine::{Engine, Work};
use fireval::memory::Memory;
use fireval::model::decoder::Decoder;
use fireval::model_id::ModelId;
use fireval::progress::Progress;
use fireval::random::Random;
use fireval::request::{Request, Response};
use fireval::tokenizer::Tokenizer;

/// An engine around a decoder of the model at `path`, with an identity that says nothing.
pub fn engine<D: Decoder>(path: &Path, decoder: D) -> LocalEngine<D> {
    let text = || "test".to_owned();
    let id = ModelId {
        weights: text(),
        adapter: None,
        tokenizer: text(),
        dtype: text(),
        quantization: None,
        engine: text(),
    };
    LocalEngine::new(id, decoder, Tokenizer::open(path).unwrap(), Limits::of(Memory(8 << 30)))
}

/// Responses by document. Checks that each document arrives once, and that the progress ends where it said.
pub fn answers<D: Decoder>(engine: &mut LocalEngine<D>, documents: &[&[Request]]) -> Vec<Vec<Response>> {
    let work = Work { documents, protocol: None, sampling: None, progress: Progress::hidden() };
    let mut answers: Vec<Option<Vec<Response>>> = documents.iter().map(|_| None).collect();
    let mut done = |document: usize, responses: Vec<Response>| {
        assert!(answers[document].replace(responses).is_none(), "document {document} arrives twice");
        Ok(())
    };
    engine.answer(&work, &mut done).unwrap();
    assert_eq!(work.progress.done(), work.progress.total());
    answers.into_iter().map(|responses| responses.expect("every document is answered")).collect()
}

/// Twenty ways against one. `tolerance`: how far log-likelihoods may be apart; with 0 they and the greedy marks have the
/// same bits. Tokens and generated texts never differ.
pub fn check<D: Decoder>(engine: &mut LocalEngine<D>, documents: &[Vec<Request>], tolerance: f64) {
    let all: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
    engine.limits = Limits::of(Memory(8 << 30));
    let expected = answers(engine, &all);
    for way in 0..20 {
        let mut random = Random::named(way, "way");
        let mut order: Vec<usize> = (0..all.len()).collect();
        random.shuffle(&mut order);
        order.truncate(all.len() - random.below(all.len() / 2));
        let wave_tokens = [1, 9, 40, 100, 16_384][random.below(5)];
        engine.limits = Limits { memory: Memory(8 << 30), wave_tokens, running: 1 + random.below(4) };
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1 + random.below(3)).build().unwrap();
        for shard in order.chunks(order.len().div_ceil(1 + random.below(4))) {
            let asked: Vec<&[Request]> = shard.iter().map(|&document| all[document]).collect();
            let given = threads.install(|| answers(engine, &asked));
            for (document, responses) in shard.iter().zip(&given) {
                for (given, expected) in responses.iter().zip(&expected[*document]) {
                    same(given, expected, tolerance, &format!("way {way}, document {document}"));
                }
            }
        }
    }
}

fn same(given: &Response, expected: &Response, tolerance: f64, place: &str) {
    match (given, expected) {
        (
            Response::LogLikelihood { sum, tokens, is_greedy },
            Response::LogLikelihood { sum: expected, tokens: same, is_greedy: greedy },
        ) => {
            assert_eq!(tokens, same, "{place}");
            assert!((sum - expected).abs() <= tolerance, "{place}: {sum}, expected {expected}");
            assert!(tolerance > 0.0 || is_greedy == greedy, "{place}");
        }
        (given, expected) => assert_eq!(given, expected, "{place}"),
    }
}
