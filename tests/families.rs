//! Every family's decoder against transformers, on the tiny checkpoints of tests/fixtures/families.

mod fixture;

use std::path::{Path, PathBuf};

use candle_core::Device;
use fireval::kernel::{Element, Isa};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::{Activation, ModelConfig, RopeScaling};
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::packed::Packed;
use fireval::weights::{Checkpoint, Dtype};
use fixture::open;
use half::bf16;
use safetensors::SafeTensors;

const FAMILIES: [&str; 18] = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "qwen3-moe-unnormalized",
    "gemma2",
    "gemma3",
    "phi3",
    "gemma3-vision", // its text model
    "phi3-partial",
    "llama-yarn",
    "qwen3-yarn",
    "llama-dynamic",
    "qwen3-moe-dense",
    "phi3-long", // its first sequence is longer than the trained length, its second is not
    "phi3-nf4",  // made by make_nf4.py
];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family)
}

fn candle(checkpoint: Checkpoint, config: &ModelConfig) -> CandleDecoder {
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    CandleDecoder::load(&checkpoint, config, &options).unwrap()
}

fn cpu<E: Element>(isa: Isa) -> impl Fn(Checkpoint, &ModelConfig) -> CpuDecoder<E> {
    move |checkpoint, config| {
        let options = cpu::LoadOptions { isa, rounded_to_f16: false, nf4: false, memory: u64::MAX };
        CpuDecoder::load(checkpoint, config, &options).unwrap()
    }
}

/// A sequence and the logits that transformers gives after each of its tokens.
struct Sequence {
    ids: Vec<u32>,
    logits: Vec<f32>, // (tokens, vocabulary)
}

fn reference(family: &str) -> Vec<Sequence> {
    stored(family, "logits")
}

/// Of the family's config as far as a GGUF states it.
fn reference_of_gguf(family: &str) -> Vec<Sequence> {
    let cannot_state_all = ["mistral", "qwen2", "gemma2", "gemma3"].contains(&family);
    stored(family, if cannot_state_all { "gguf" } else { "logits" })
}

fn stored(family: &str, kind: &str) -> Vec<Sequence> {
    let bytes = std::fs::read(folder(family).join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: String| -> Vec<[u8; 4]> {
        let data = file.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let sequence = |index: usize| Sequence {
        ids: words(format!("ids.{index}")).into_iter().map(u32::from_le_bytes).collect(),
        logits: words(format!("{kind}.{index}")).into_iter().map(f32::from_le_bytes).collect(),
    };
    vec![sequence(0), sequence(1)]
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
}

/// The largest difference of any log-probability after any token from transformers'.
fn difference(decoder: &impl Decoder, sequences: &[Sequence]) -> f64 {
    let rows = sequences.iter().flat_map(|sequence| sequence.logits.chunks_exact(decoder.config().vocab_size));
    largest_difference(&log_probabilities(decoder, sequences), &rows.flat_map(log_softmax).collect::<Vec<_>>())
}

fn largest_difference(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

/// Of every token of the vocabulary, after every token of the sequences.
fn log_probabilities(decoder: &impl Decoder, sequences: &[Sequence]) -> Vec<f64> {
    let vocabulary = decoder.config().vocab_size;
    let mut packed = Packed::default();
    for sequence in sequences {
        let first = packed.push(&sequence.ids[..4], None); // in two segments, as a trie has them
        packed.push(&sequence.ids[4..], Some(first));
    }
    let hidden = decoder.walk(&packed, Pasts::None).unwrap();
    let wanted: Vec<Wanted> =
        (0..packed.len()).flat_map(|row| (0..vocabulary as u32).map(move |token| Wanted { row, token })).collect();
    decoder.score(&hidden, &wanted).unwrap().iter().map(|score| score.log_probability).collect()
}

/// Both homes' makers of a decoder are held to this.
fn agrees<D: Decoder>(path: &Path, reference: &[Sequence], load: impl Fn(Checkpoint, &ModelConfig) -> D) {
    let (checkpoint, config) = open(path);
    let found = difference(&load(checkpoint, &config), reference);
    println!("{}: {found:.1e}", path.display());
    assert!(found < 1e-4, "{}: off by {found}", path.display());
}

fn both_agree(path: &Path, reference: &[Sequence]) {
    agrees(path, reference, candle);
    for isa in Isa::supported() {
        agrees(path, reference, cpu::<f32>(isa));
    }
}

#[test]
fn every_family_agrees_with_transformers() {
    for family in FAMILIES {
        both_agree(&folder(family), &reference(family));
    }
}

#[test]
fn every_family_agrees_from_gguf() {
    let none = [
        "qwen3-moe-unnormalized",
        "gemma3-vision",
        "qwen3-yarn",
        "llama-dynamic",
        "qwen3-moe-dense",
        "phi3-nf4",
        "phi3-long",
    ];
    let has_none = |family: &&str| none.contains(family);
    for family in FAMILIES.into_iter().filter(|family| !has_none(family)) {
        both_agree(&folder(family).with_extension("gguf"), &reference_of_gguf(family));
    }
}

/// bf16 has three digits: near, and not equal.
#[test]
fn every_family_is_near_in_bf16() {
    for family in FAMILIES {
        for isa in Isa::supported() {
            let (checkpoint, config) = open(&folder(family));
            let found = difference(&cpu::<bf16>(isa)(checkpoint, &config), &reference(family));
            println!("{family} {isa:?}: {found:.1e}");
            assert!((1e-4..1.0).contains(&found), "{family}: off by {found}");
        }
    }
}

/// What is rounded to the dtype is the same in both homes (Gemma's scale of the embedding, too), so in f16 they differ no
/// more than in f32.
#[test]
fn both_homes_agree_in_f16() {
    for family in FAMILIES.into_iter().filter(|family| !family.ends_with("nf4")) {
        let (checkpoint, config) = open(&folder(family));
        let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F16, nf4: false };
        let theirs = CandleDecoder::load(&checkpoint, &config, &options).unwrap();
        let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: true, nf4: false, memory: u64::MAX };
        let ours = CpuDecoder::<f32>::load(checkpoint, &config, &options).unwrap();
        let sequences = reference(family);
        let found = largest_difference(&log_probabilities(&ours, &sequences), &log_probabilities(&theirs, &sequences));
        assert!(found < 1e-4, "{family}: off by {found}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let (checkpoint, config) = open(&folder("llama"));
    let decoder = candle(checkpoint, &config);
    let hidden = decoder.walk(&Packed::rows(&[vec![1, 2]]), Pasts::None).unwrap();
    let beyond = Wanted { row: 1, token: config.vocab_size as u32 };
    let refused = |error: anyhow::Error| assert!(error.to_string().contains("outside the model's vocabulary"));
    refused(decoder.score(&hidden, &[beyond]).unwrap_err());
    let (checkpoint, config) = open(&folder("llama"));
    let decoder = cpu::<f32>(Isa::best())(checkpoint, &config);
    let hidden = decoder.walk(&Packed::rows(&[vec![1, 2]]), Pasts::None).unwrap();
    refused(decoder.score(&hidden, &[beyond]).unwrap_err());
}

/// Without any one of the things that set a family apart its logits are others: no fixture passes by luck.
#[test]
fn every_difference_between_families_shows() {
    let shows = |family: &str, what: &str, change: &dyn Fn(&mut ModelConfig)| {
        let (checkpoint, mut config) = open(&folder(family));
        let before = config.clone();
        change(&mut config);
        assert_ne!(before, config, "{family} has no {what}");
        let found = difference(&candle(checkpoint, &config), &reference(family));
        assert!(found > 1e-2, "{family} without {what}: off by {found} only");
    };
    shows("llama", "rope scaling", &|config| config.rope_scaling = RopeScaling::None);
    shows("phi3", "rope scaling", &|config| config.rope_scaling = RopeScaling::None);
    shows("gemma3", "rope scaling", &|config| config.rope_scaling = RopeScaling::None);
    for family in ["llama-yarn", "qwen3-yarn"] {
        shows(family, "rope scaling", &|config| config.rope_scaling = RopeScaling::None);
    }
    shows("qwen3-yarn", "ramp between pairs", &|config| {
        let RopeScaling::Yarn { truncate, .. } = &mut config.rope_scaling else { panic!("qwen3-yarn has no YaRN") };
        *truncate = true;
    });
    shows("gemma3", "local rope", &|config| config.local_rope = None);
    for family in ["mistral", "qwen2", "gemma2", "gemma3", "phi3"] {
        shows(family, "window", &|config| config.sliding_window = None);
    }
    for family in ["qwen2", "gemma2", "gemma3"] {
        shows(family, "full layers", &|config| config.full_attention.clear());
    }
    shows("phi3-long", "long factors", &|config| {
        let RopeScaling::LongRope { short_factor, long_factor, .. } = &mut config.rope_scaling else {
            panic!("no LongRoPE")
        };
        long_factor.clone_from(short_factor);
    });
    shows("phi3-partial", "whole heads' rotation", &|config| {
        config.rotary_dim = config.head_dim;
        let RopeScaling::LongRope { short_factor, long_factor, .. } = &mut config.rope_scaling else {
            panic!("no LongRoPE")
        };
        short_factor.push(1.0);
        long_factor.push(1.0);
    });
    shows("qwen2", "biases", &|config| config.attention_bias = false);
    for family in ["qwen3", "qwen3-moe", "gemma3"] {
        shows(family, "head norms", &|config| config.head_norms = false);
    }
    for family in ["gemma2", "gemma3"] {
        shows(family, "whole norms", &|config| config.norm_plus_one = false);
        shows(family, "norms after", &|config| config.sandwich_norms = false);
        shows(family, "scaled embeddings", &|config| config.embedding_scale = None);
        shows(family, "attention scale", &|config| config.attention_scale = (config.head_dim as f64).powf(-0.5));
        shows(family, "tanh gate", &|config| config.activation = Activation::Silu);
    }
    shows("gemma2", "capped scores", &|config| config.attention_softcap = None);
    shows("gemma2", "capped logits", &|config| config.final_softcap = None);
    let normalize = |wanted: bool| move |config: &mut ModelConfig| config.mixture.as_mut().unwrap().normalize = wanted;
    shows("mixtral", "normalised experts", &normalize(false));
    shows("qwen3-moe", "normalised experts", &normalize(false));
    shows("qwen3-moe-unnormalized", "plain experts", &normalize(true));
}
