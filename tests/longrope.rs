//! LongRoPE: a sequence beyond the trained length is another from its first token on. What it shares with shorter ones is
//! computed for each, and a document that outgrows the length while it is generated is read again.

mod invariance;
mod tiny;

use std::path::Path;

use fireval::kernel::Isa;
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{CpuDecoder, LoadOptions};
use fireval::model::decoder::{Decoder, Pasts};
use fireval::model::packed::Packed;
use fireval::random::Random;
use fireval::request::{Request, Response};
use fireval::tokenizer::Tokenizer;
use fireval::weights::{Checkpoint, Dtype};
use serde_json::json;

/// The length that the model of [`folder`] was trained on.
const TRAINED: usize = 40;

fn folder() -> tempfile::TempDir {
    let mut config = tiny::dense_config("phi3");
    let factors = |step: f64| (0..8).map(|pair| 1.0 + step * f64::from(pair)).collect::<Vec<f64>>();
    (config["max_position_embeddings"], config["original_max_position_embeddings"]) = (json!(256), json!(TRAINED));
    config["rope_scaling"] = json!({"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(2.0)});
    let folder = tempfile::tempdir().unwrap();
    tiny::write_folder(folder.path(), &config, Dtype::F32);
    folder
}

fn decoder(path: &Path) -> CpuDecoder<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: 8 << 30 };
    CpuDecoder::load(checkpoint, &config, &options).unwrap()
}

/// Beginnings of one text, `from` to `to` letters long: as many tokens, or a few less.
fn contexts(from: usize, to: usize) -> Vec<String> {
    let mut random = Random::named(5, "letters");
    let text: String = (0..to).map(|_| char::from(b'd' + random.below(20) as u8)).collect();
    (from..to).map(|length| text[..length].to_owned()).collect()
}

#[test]
fn answers_have_the_same_bits_in_the_company_of_longer_and_shorter_ones() {
    let folder = folder();
    let document = |(index, context): (usize, String)| -> Vec<Request> {
        if index.is_multiple_of(5) {
            return vec![Request::Generate { context: context.into(), stop: Vec::new(), max_tokens: 9 }];
        }
        let context: std::sync::Arc<str> = context.into();
        let ask =
            |continuation: &str| Request::LogLikelihood { context: context.clone(), continuation: continuation.into() };
        vec![ask("z"), ask("xyz"), ask("uvwxyz")]
    };
    let documents: Vec<Vec<Request>> = contexts(28, 52).into_iter().enumerate().map(document).collect();
    invariance::check(&mut invariance::engine(folder.path(), decoder(folder.path())), &documents, 0.0);
}

#[test]
fn a_document_that_grows_long_is_generated_as_if_each_token_was_read_alone() {
    let folder = folder();
    let (decoder, tokenizer) = (decoder(folder.path()), Tokenizer::open(folder.path()).unwrap());
    let contexts = contexts(TRAINED - 6, TRAINED + 3);
    let generate = |context: &String| {
        vec![Request::Generate { context: context.as_str().into(), stop: Vec::new(), max_tokens: 9 }]
    };
    let documents: Vec<Vec<Request>> = contexts.iter().map(generate).collect();
    let asked: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
    let mut crossings = 0;
    let answers = invariance::answers(&mut invariance::engine(folder.path(), self::decoder(folder.path())), &asked);
    for (context, answer) in contexts.iter().zip(answers) {
        let [Response::Generate { tokens, .. }] = &answer[..] else { panic!("{answer:?}") };
        let mut ids = tokenizer.encode(context, false).unwrap();
        crossings += usize::from(ids.len() <= TRAINED && ids.len() + tokens.len() > TRAINED + 1);
        for &token in tokens {
            let hidden = decoder.walk(&Packed::rows(&[&ids]), Pasts::None).unwrap();
            assert_eq!(decoder.greedy(&hidden, &[ids.len() - 1]).unwrap(), [token], "after {} tokens", ids.len());
            ids.push(token);
        }
    }
    assert!(crossings > 2, "{crossings} documents outgrow the trained length");
}
