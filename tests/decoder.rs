//! The candle home against transformers (a stored tiny Mixtral) and candle-transformers (random dense models).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::packed::Packed;
use fireval::random::Random;
use fireval::weights::{Checkpoint, Dtype};
use serde_json::{Value, json};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-mixtral")
}

fn load(folder: &Path) -> CandleDecoder {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    CandleDecoder::load(&checkpoint, &config, &options).unwrap()
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture().join("reference.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn logits(decoder: &CandleDecoder, packed: &Packed) -> Tensor {
    let rows: Vec<usize> = (0..packed.len()).collect();
    decoder.logits(&decoder.walk(packed, Pasts::None).unwrap(), &rows).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn every_logit_of_the_tiny_mixtral_agrees() {
    let (decoder, reference) = (load(&fixture()), reference());
    let expected: HashMap<String, Tensor> =
        Tensor::read_npz(fixture().join("logits.npz")).unwrap().into_iter().collect();
    let sequences: Vec<(&String, Vec<u32>)> =
        reference["sequences"].as_object().unwrap().iter().map(|(name, value)| (name, ids(value))).collect();
    // All five lie in one layout: neighbours change nothing.
    let rows: Vec<&Vec<u32>> = sequences.iter().map(|(_, ids)| ids).collect();
    let packed = Packed::rows(&rows);
    let all = logits(&decoder, &packed);
    for ((name, _), segment) in sequences.iter().zip(&packed.segments) {
        let ours = all.narrow(0, segment.start, segment.len).unwrap();
        let difference = largest_difference(&ours, &expected[&format!("{name}.logits.f32")]);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn scores_of_the_tiny_mixtral_agree() {
    let (decoder, reference) = (load(&fixture()), reference());
    for (name, score) in reference["scores"].as_object().unwrap() {
        let ids = ids(&reference["sequences"][name]);
        let first = score["context_len"].as_u64().unwrap() as usize;
        let wanted: Vec<Wanted> = (first..ids.len()).map(|at| Wanted { row: at - 1, token: ids[at] }).collect();
        let hidden = decoder.walk(&Packed::rows(&[&ids[..ids.len() - 1]]), Pasts::None).unwrap();
        let found = decoder.score(&hidden, &wanted).unwrap();
        let expected: Vec<f64> = serde_json::from_value(score["token_logprobs"].clone()).unwrap();
        for (ours, theirs) in found.iter().zip(&expected) {
            assert!((ours.log_probability - theirs).abs() < 1e-4, "{name}: {ours:?}, reference {theirs}");
        }
        assert_eq!(found.iter().all(|score| score.is_greedy), score["greedy"].as_bool().unwrap());
    }
}

#[test]
fn routers_choose_the_same_experts() {
    let (decoder, reference) = (load(&fixture()), reference());
    for (name, layers) in reference["router"].as_object().unwrap() {
        let packed = Packed::rows(&[ids(&reference["sequences"][name])]);
        for (ours, theirs) in decoder.routes(&packed).unwrap().iter().zip(layers.as_array().unwrap()) {
            let theirs: Vec<[u32; 2]> = serde_json::from_value(theirs["top2"].clone()).unwrap();
            assert_eq!(*ours, theirs.concat(), "{name}: the chosen experts, best first");
        }
    }
}

#[test]
fn greedy_continuations_are_equal() {
    let (decoder, reference) = (load(&fixture()), reference());
    for (name, expected) in reference["greedy"].as_object().unwrap() {
        let (prompt, expected) = (ids(&reference["sequences"][name]), ids(expected));
        let mut pasts = [decoder.past(prompt.len() + expected.len()).unwrap()];
        let packed = Packed::rows(&[&prompt]);
        let hidden = decoder.walk(&packed, Pasts::Begin { pasts: &mut pasts, leaves: &[0] }).unwrap();
        let mut found = decoder.greedy(&hidden, &[packed.len() - 1]).unwrap();
        while found.len() < expected.len() {
            let mut packed = Packed::default();
            packed.push_at(&found[found.len() - 1..], decoder.past_len(&pasts[0]));
            let hidden = decoder.walk(&packed, Pasts::Continue(&mut pasts)).unwrap();
            found.extend(decoder.greedy(&hidden, &[0]).unwrap());
        }
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_trie_gives_what_its_sequences_give_alone() {
    let decoder = load(&fixture());
    let mut packed = Packed::default();
    let stem = packed.push(&[5, 9, 77, 301], None);
    let branch = packed.push(&[12, 13], Some(stem));
    packed.push(&[400, 2], Some(stem));
    packed.push(&[8, 8, 8], Some(branch));
    let together = logits(&decoder, &packed);
    for (sequence, rows) in [
        (vec![5, 9, 77, 301, 12, 13, 8, 8, 8], vec![0, 1, 2, 3, 4, 5, 8, 9, 10]),
        (vec![5, 9, 77, 301, 400, 2], vec![0, 1, 2, 3, 6, 7]),
    ] {
        let alone = logits(&decoder, &Packed::rows(&[sequence]));
        let rows = Tensor::from_vec(rows.iter().map(|&row| row as u32).collect(), rows.len(), &Device::Cpu).unwrap();
        assert!(largest_difference(&alone, &together.index_select(&rows, 0).unwrap()) < 1e-5);
    }
}

#[test]
fn rounded_weights_are_near_and_nf4_is_further_off() {
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let packed = Packed::rows(&[[5u32, 9, 77, 301, 12]]);
    let run = |dtype, nf4| {
        let options = LoadOptions { device: Device::Cpu, dtype, nf4 };
        logits(&CandleDecoder::load(&checkpoint, &config, &options).unwrap(), &packed)
    };
    let exact = run(Dtype::F32, false);
    let difference = |other| largest_difference(&exact, &other);
    let (half, brain, nf4) =
        (difference(run(Dtype::F16, false)), difference(run(Dtype::BF16, false)), difference(run(Dtype::F32, true)));
    assert!(0.0 < half && half < brain && brain < nf4 && nf4 < 20.0, "f16 {half}, bf16 {brain}, nf4 {nf4}");
}

/// A dense checkpoint with random weights in a temporary folder.
fn random_checkpoint(config: &Value) -> tempfile::TempDir {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, inner, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let head_dim = hidden / size("num_attention_heads");
    let keys = size("num_key_value_heads") * head_dim;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let tensors: HashMap<String, Tensor> =
        shapes.into_iter().map(|(name, shape)| random_tensor(name, &shape)).collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn random_tensor(name: String, shape: &[usize]) -> (String, Tensor) {
    let mut random = Random::named(11, &name);
    let spread = if shape.len() == 1 { 0.5 } else { 1.0 / (shape[1] as f64).sqrt() };
    let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (centre + spread * random.normal()) as f32).collect();
    (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
}

fn variables(folder: &Path) -> candle_nn::VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn dense_config(model_type: &str) -> Value {
    json!({
        "architectures": [if model_type == "llama" { "LlamaForCausalLM" } else { "MistralForCausalLM" }],
        "model_type": model_type, "hidden_act": "silu", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false
    })
}

fn random_ids(count: usize, vocab: usize) -> Vec<u32> {
    let mut random = Random::new(5);
    (0..count).map(|_| random.below(vocab) as u32).collect()
}

/// candle-transformers answers for the last position only, so it is asked prefix by prefix.
fn agrees_with(folder: &Path, last_logits: impl Fn(&Tensor) -> Tensor) {
    let ids = random_ids(40, 97);
    let ours = logits(&load(folder), &Packed::rows(&[&ids]));
    for end in 1..=ids.len() {
        let prefix = Tensor::from_slice(&ids[..end], (1, end), &Device::Cpu).unwrap();
        let theirs = last_logits(&prefix).flatten_all().unwrap();
        let difference = largest_difference(&ours.get(end - 1).unwrap(), &theirs);
        assert!(difference < 1e-4, "prefix of {end}: {difference}");
    }
}

fn agrees_as_llama(config: Value) {
    use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
    let folder = random_checkpoint(&config);
    let theirs = serde_json::from_value::<LlamaConfig>(config).unwrap().into_config(false);
    let model = Llama::load(variables(folder.path()), &theirs).unwrap();
    agrees_with(folder.path(), |prefix| {
        let mut cache = Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
        model.forward(prefix, 0, &mut cache).unwrap()
    });
}

#[test]
fn a_dense_llama_agrees_with_candle_transformers() {
    agrees_as_llama(dense_config("llama"));
}

#[test]
fn llama3_rope_scaling_agrees_with_candle_transformers() {
    let mut config = dense_config("llama");
    config["rope_scaling"] = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        "rope_type": "llama3"
    });
    agrees_as_llama(config);
}

fn agrees_as_mistral(window: Option<usize>) {
    use candle_transformers::models::mistral::{Config, Model};
    let mut config = dense_config("mistral");
    config["sliding_window"] = json!(window);
    let folder = random_checkpoint(&config);
    config.as_object_mut().unwrap().remove("architectures");
    let theirs: Config = serde_json::from_value(config).unwrap();
    let vars = variables(folder.path());
    agrees_with(folder.path(), |prefix| Model::new(&theirs, vars.clone()).unwrap().forward(prefix, 0).unwrap());
}

#[test]
fn a_mistral_agrees_with_candle_transformers() {
    agrees_as_mistral(None);
}

#[test]
fn a_sliding_window_hides_what_is_further_back() {
    let folder = random_checkpoint(&{
        let mut config = dense_config("mistral");
        config["sliding_window"] = json!(8);
        config["num_hidden_layers"] = json!(1);
        config
    });
    let decoder = load(folder.path());
    let ids = random_ids(20, 97);
    let last = |ids: &[u32]| logits(&decoder, &Packed::rows(&[ids])).get(ids.len() - 1).unwrap();
    let mut outside = ids.clone();
    outside[11] = (outside[11] + 1) % 97; // nine back from the last of twenty: just out of a window of eight
    assert!(largest_difference(&last(&ids), &last(&outside)) == 0.0);
    let mut inside = ids.clone();
    inside[12] = (inside[12] + 1) % 97; // eight keys are seen, the last itself among them
    assert!(largest_difference(&last(&ids), &last(&inside)) > 1e-3);
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let error = load(&fixture()).walk(&Packed::rows(&[[512u32]]), Pasts::None).err().unwrap().to_string();
    assert!(error.contains("512"), "{error}");
}
