//! Generated texts as the harnesses generate them: where they end, what is cut, and what a model's generation config does
//! to them. On a model whose next token depends on the last one alone, as each test chains them.

mod invariance;
mod tiny;

use std::path::Path;

use fireval::engine::local::LocalEngine;
use fireval::engine::{Engine, Work};
use fireval::kernel::Isa;
use fireval::model::candle::{self, CandleDecoder};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{CpuDecoder, LoadOptions};
use fireval::model::decoder::Decoder;
use fireval::model::names;
use fireval::progress::Progress;
use fireval::protocol::Protocol;
use fireval::request::{Request, Response};
use fireval::weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

const PROTOCOLS: [Protocol; 2] = [Protocol::LeaderboardV1, Protocol::LmEvalLatest];

/// The tokens of tiny's tokenizer that tests end texts with.
const END: u32 = 1; // </s>
const TURN: u32 = 2; // <|user|>

/// Vocabulary and width, so that each token has a dimension of its own.
const SIZE: usize = 64;

fn letter(letter: char) -> u32 {
    4 + letter as u32 - 'a' as u32
}

/// After token `from` the logit of `to` is 8 times `weight`, for each (from, to, weight); all others are 0.
fn write_chain(folder: &Path, chain: &[(u32, u32, f32)], generation: Value, tokenizer: Value) {
    let mut config = tiny::dense_config("llama");
    for (key, value) in [("hidden_size", SIZE), ("vocab_size", SIZE), ("num_hidden_layers", 1)] {
        config[key] = json!(value);
    }
    config["max_position_embeddings"] = json!(16);
    let weights = |name: &str, shape: &[usize]| {
        let mut weights = vec![if shape.len() == 1 { 1.0 } else { 0.0 }; shape.iter().product()];
        match name {
            names::EMBEDDING => (0..SIZE).for_each(|token| weights[token * SIZE + token] = 1.0),
            names::HEAD => {
                chain.iter().for_each(|&(from, to, weight)| weights[to as usize * SIZE + from as usize] = weight);
            }
            _ => {}
        }
        weights
    };
    tiny::write_folder_with(folder, &config, Dtype::F32, weights);
    tiny::write_json(&folder.join("generation_config.json"), &generation);
    tiny::write_json(&folder.join("tokenizer_config.json"), &tokenizer);
}

/// Letters one after another, then `end`.
fn spelled(text: &str, end: u32) -> Vec<(u32, u32, f32)> {
    let tokens: Vec<u32> = text.chars().map(letter).chain([end]).collect();
    tokens.windows(2).map(|pair| (pair[0], pair[1], 1.0)).collect()
}

/// `<|user|>` is special, and the end of text is `eos`.
fn tokenizer(eos: &str) -> Value {
    json!({"bos_token": "<s>", "eos_token": eos,
        "added_tokens_decoder": {"2": {"content": "<|user|>", "special": true}}})
}

fn cpu(folder: &Path) -> LocalEngine<CpuDecoder<f32>> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: 1 << 30 };
    invariance::engine(folder, CpuDecoder::load(checkpoint, &config, &options).unwrap())
}

fn candle(folder: &Path) -> LocalEngine<CandleDecoder> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = candle::LoadOptions { device: candle_core::Device::Cpu, dtype: Dtype::F32, nf4: false };
    invariance::engine(folder, CandleDecoder::load(&checkpoint, &config, &options).unwrap())
}

fn answer<D: Decoder>(
    engine: &mut LocalEngine<D>,
    request: Request,
    protocol: Option<Protocol>,
) -> anyhow::Result<Response> {
    let requests = [request];
    let work = Work { documents: &[&requests[..]], protocol, sampling: None, progress: Progress::hidden() };
    let mut answers = Vec::new();
    engine.answer(&work, &mut |_, responses| {
        answers.extend(responses);
        Ok(())
    })?;
    Ok(answers.remove(0))
}

/// The text that at most six new tokens after `context` become, and these tokens.
fn generated<D: Decoder>(
    engine: &mut LocalEngine<D>,
    context: &str,
    stop: &[&str],
    protocol: Option<Protocol>,
) -> (String, Vec<u32>) {
    let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
    let request = Request::Generate { context: context.into(), stop, max_tokens: 6 };
    match answer(engine, request, protocol).unwrap() {
        Response::Generate { text, tokens } => (text, tokens),
        Response::LogLikelihood { .. } => panic!("a text was asked for"),
    }
}

#[test]
fn the_tokenizer_s_end_ends_a_text_where_the_generation_config_has_another() {
    let folder = tempfile::tempdir().unwrap();
    let chain = [spelled("xb", TURN), vec![(TURN, letter('c'), 1.0), (letter('c'), END, 1.0)]].concat();
    write_chain(folder.path(), &chain, json!({"eos_token_id": END}), tokenizer("<|user|>"));
    for protocol in [Some(PROTOCOLS[0]), Some(PROTOCOLS[1]), None] {
        let found = generated(&mut cpu(folder.path()), "x", &[], protocol);
        assert_eq!(found, ("b".to_owned(), vec![letter('b'), TURN]), "{protocol:?}");
    }
    // And the other one, as before.
    let found = generated(&mut cpu(folder.path()), "c", &[], Some(PROTOCOLS[0]));
    assert_eq!(found, (String::new(), vec![END]));
}

#[test]
fn a_stop_string_is_seen_in_a_special_token() {
    let folder = tempfile::tempdir().unwrap();
    let chain = [spelled("xb", TURN), vec![(TURN, letter('c'), 1.0), (letter('c'), END, 1.0)]].concat();
    write_chain(folder.path(), &chain, json!({}), tokenizer("</s>"));
    for protocol in PROTOCOLS {
        let found = generated(&mut cpu(folder.path()), "x", &["<|user|>"], Some(protocol));
        assert_eq!(found, ("b".to_owned(), vec![letter('b'), TURN]), "{protocol:?}");
        let whole = generated(&mut cpu(folder.path()), "x", &["q"], Some(protocol));
        assert_eq!(whole, ("bc".to_owned(), vec![letter('b'), TURN, letter('c'), END]), "{protocol:?}");
    }
}

#[test]
fn the_end_of_text_is_cut_where_it_is_spelled() {
    let folder = tempfile::tempdir().unwrap();
    // `abc` is one token, which here is spelled in three.
    write_chain(folder.path(), &spelled("xdabce", END), json!({"eos_token_id": END}), tokenizer("abc"));
    for protocol in PROTOCOLS {
        let (text, tokens) = generated(&mut cpu(folder.path()), "x", &[], Some(protocol));
        assert_eq!((text.as_str(), tokens.len()), ("d", 4), "{protocol:?}");
    }
    assert_eq!(generated(&mut cpu(folder.path()), "x", &[], None).0, "dabce", "a chat may say so");
}

#[test]
fn leaderboard_v1_loses_as_many_new_tokens_as_its_prompt_was_cut_by() {
    let folder = tempfile::tempdir().unwrap();
    write_chain(folder.path(), &spelled("xdefg", END), json!({"eos_token_id": END}), tokenizer("</s>"));
    let text = |letters: usize, protocol| generated(&mut cpu(folder.path()), &"x".repeat(letters), &[], protocol);
    // 16 positions leave ten tokens beside six new ones.
    let new = [letter('d'), letter('e'), letter('f'), letter('g'), END].to_vec();
    for (letters, kept) in [(10, "defg"), (12, "fg"), (14, ""), (30, "")] {
        assert_eq!(text(letters, Some(Protocol::LeaderboardV1)), (kept.to_owned(), new.clone()), "{letters}");
        assert_eq!(text(letters, Some(Protocol::LmEvalLatest)).0, "defg");
    }
}

#[test]
fn a_repetition_penalty_acts_on_logits() {
    let (a, b) = (letter('a'), letter('b'));
    // After `a` itself again (8) or `b` (7.2); by 1.3 the first is 6.15, and the second, where it was said, 5.54.
    let chain = [spelled("xa", a), vec![(a, b, 0.9), (b, END, 1.0)]].concat();
    let both = |generation: Value, context: &str| {
        let folder = tempfile::tempdir().unwrap();
        write_chain(folder.path(), &chain, generation, tokenizer("</s>"));
        let protocol = Some(Protocol::LmEvalLatest);
        let found = generated(&mut cpu(folder.path()), context, &[], protocol).1;
        assert_eq!(found, generated(&mut candle(folder.path()), context, &[], protocol).1);
        found
    };
    assert_eq!(both(json!({}), "x"), [a; 6]);
    assert_eq!(both(json!({"repetition_penalty": 1.3}), "x"), [a, b, END]);
    assert_eq!(both(json!({"repetition_penalty": 1.3}), "bx"), [a; 6], "the prompt counts");
}

#[test]
fn a_model_s_own_limit_goes_before_lm_eval_s() {
    let folder = tempfile::tempdir().unwrap();
    let a = letter('a');
    write_chain(folder.path(), &spelled("xa", a), json!({"max_new_tokens": 8}), tokenizer("</s>"));
    let tokens = |context: &str, protocol| generated(&mut cpu(folder.path()), context, &[], protocol).1.len();
    assert_eq!(tokens("xx", Some(Protocol::LmEvalLatest)), 8);
    assert_eq!((tokens("xx", Some(Protocol::LeaderboardV1)), tokens("xx", None)), (6, 6));
    assert_eq!(tokens(&"x".repeat(30), Some(Protocol::LmEvalLatest)), 6, "ten of 16 positions are the prompt's");
}

#[test]
fn a_generation_config_that_is_not_followed_is_refused_where_a_text_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    write_chain(folder.path(), &spelled("xa", END), json!({"no_repeat_ngram_size": 3}), tokenizer("</s>"));
    let mut engine = cpu(folder.path());
    let text = Request::Generate { context: "x".into(), stop: Vec::new(), max_tokens: 6 };
    let error = tiny::message(answer(&mut engine, text, Some(Protocol::LmEvalLatest)));
    assert!(error.contains("generation_config.json: `no_repeat_ngram_size` is 3"), "{error}");
    let score = Request::LogLikelihood { context: "x".into(), continuation: "a".to_owned() };
    answer(&mut engine, score, Some(Protocol::LmEvalLatest)).unwrap();
}

#[test]
fn a_context_of_white_space_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_chain(folder.path(), &spelled("xa", END), json!({}), tokenizer("</s>"));
    let blank = Request::LogLikelihood { context: " ".into(), continuation: "a".to_owned() };
    for protocol in PROTOCOLS {
        let error = tiny::message(answer(&mut cpu(folder.path()), blank.clone(), Some(protocol)));
        assert!(error.contains("document 0 of the evaluation: the context \" \" has no token"), "{error}");
    }
}
