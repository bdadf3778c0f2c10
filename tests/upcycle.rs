//! Upcycling a dense model into a mixture, and merging an adapter: what is written computes what it should.

mod tiny;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use fireval::model::adapter::{Adapter, LoraPair, Matrix};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::model::decoder::{Decoder, Pasts};
use fireval::model::packed::Packed;
use fireval::random::Random;
use fireval::tokenizer::Tokenizer;
use fireval::transform::merge::{MergeSummary, merge};
use fireval::transform::upcycle::{UpcycleOptions, upcycle};
use fireval::weights::{Checkpoint, Dtype, Format};
use serde_json::{Value, json};
use tiny::{dense_config, message, write_adapter, write_folder, write_gguf};

fn decoder(path: &Path) -> CandleDecoder {
    let checkpoint = Checkpoint::open(path).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    CandleDecoder::load(&checkpoint, &config, &options).unwrap()
}

/// Logits of every position of two sequences.
fn logits(decoder: &CandleDecoder) -> Tensor {
    let vocabulary = decoder.config().vocab_size;
    let mut random = Random::new(5);
    let mut ids = |count: usize| (0..count).map(|_| random.below(vocabulary) as u32).collect::<Vec<_>>();
    let packed = Packed::rows(&[ids(23), ids(40)]);
    let rows: Vec<usize> = (0..packed.len()).collect();
    decoder.logits(&decoder.walk(&packed, Pasts::None).unwrap(), &rows).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn exact(experts: usize) -> UpcycleOptions {
    UpcycleOptions { experts, noise: 0.0, ..UpcycleOptions::default() }
}

/// A dense model and a place beside it.
struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new(config: &Value, dtype: Dtype) -> Models {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("dense")).unwrap();
        write_folder(&folder.path().join("dense"), config, dtype);
        Models { folder }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

#[test]
fn without_noise_the_mixture_computes_what_the_dense_model_does() {
    // Keys that are left out have other defaults in Mixtral's configuration than in Llama's and Mistral's.
    let mut bare = dense_config("llama");
    for key in ["rms_norm_eps", "rope_theta", "num_key_value_heads", "head_dim"] {
        bare.as_object_mut().unwrap().remove(key);
    }
    let mut tied = dense_config("mistral");
    tied["tie_word_embeddings"] = json!(true);
    tied["sliding_window"] = json!(8);
    let mut scaled = dense_config("llama");
    scaled["rope_scaling"] = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let mut newer = dense_config("llama");
    newer.as_object_mut().unwrap().remove("rope_theta");
    newer["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500.0});
    for config in [dense_config("llama"), bare, tied, scaled, newer] {
        let models = Models::new(&config, Dtype::F32);
        upcycle(&models.at("dense"), &models.at("mixture"), &exact(4)).unwrap();
        let difference =
            largest_difference(&logits(&decoder(&models.at("dense"))), &logits(&decoder(&models.at("mixture"))));
        assert!(difference < 1e-4, "{config}: {difference}");
    }
}

#[test]
fn a_gguf_upcycles_into_a_folder_that_stands_alone() {
    let models = Models::new(&dense_config("llama"), Dtype::F32);
    let gguf = models.at("dense.gguf");
    write_gguf(&gguf, &models.at("dense"), GgmlDType::Q4_1, |_| {});
    let summary = upcycle(&gguf, &models.at("mixture"), &exact(2)).unwrap();
    assert_eq!(summary.files, [models.at("mixture").join("model.safetensors")]);
    let (dense, mixture) = (decoder(&gguf), decoder(&models.at("mixture")));
    assert!(largest_difference(&logits(&dense), &logits(&mixture)) < 1e-4);
    let (from, to) = (Tokenizer::open(&gguf).unwrap(), Tokenizer::open(&models.at("mixture")).unwrap());
    assert_eq!(from.digest(), to.digest());
    assert_eq!((from.eos(), from.chat_template()), (to.eos(), to.chat_template()));
}

#[test]
fn the_configuration_is_mixtrals() {
    let models = Models::new(&dense_config("llama"), Dtype::BF16);
    let options = UpcycleOptions { experts: 3, top_k: 1, ..UpcycleOptions::default() };
    let summary = upcycle(&models.at("dense"), &models.at("mixture"), &options).unwrap();
    let checkpoint = Checkpoint::open(&models.at("mixture")).unwrap();
    let config = checkpoint.config_json();
    for (key, value) in [
        ("model_type", json!("mixtral")),
        ("architectures", json!(["MixtralForCausalLM"])),
        ("num_local_experts", json!(3)),
        ("num_experts_per_tok", json!(1)),
        ("router_aux_loss_coef", json!(0.02)),
        ("sliding_window", Value::Null),
        ("torch_dtype", json!("bfloat16")),
        ("eos_token_id", json!(1)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(ModelConfig::from_json(config, "config.json").unwrap(), summary.config);
    // 2 x 64 x 32 embeddings, 5 norms; per layer attention 2 x (64 + 32) x 32, router 3 x 32, experts 3 x 3 x 64 x 32.
    assert_eq!(summary.parameters, 4096 + 160 + 2 * (6144 + 96 + 18432));
    assert_eq!(checkpoint.weights_bytes(), 2 * summary.parameters);
    let expert = checkpoint.tensor("model.layers.1.block_sparse_moe.experts.2.w2.weight", &[32, 64]).unwrap();
    assert_eq!(expert.format, Format::BF16);
}

fn values(path: &Path, name: &str) -> Vec<f32> {
    Checkpoint::open(path).unwrap().stored(name).unwrap().to_f32().unwrap()
}

#[test]
fn noise_is_relative_seeded_and_each_experts_own() {
    let models = Models::new(&dense_config("llama"), Dtype::F32);
    let options = UpcycleOptions { noise: 0.3, seed: 7, ..UpcycleOptions::default() };
    for (name, options) in [
        ("one", options.clone()),
        ("again", UpcycleOptions { shard_bytes: 20_000, ..options.clone() }),
        ("other", UpcycleOptions { seed: 8, ..options }),
    ] {
        upcycle(&models.at("dense"), &models.at(name), &options).unwrap();
    }
    assert!(models.at("again").join("model.safetensors.index.json").exists());
    let dense = values(&models.at("dense"), "model.layers.0.mlp.up_proj.weight");
    let w3 = |expert: usize| format!("model.layers.0.block_sparse_moe.experts.{expert}.w3.weight");
    let relative: Vec<f32> =
        values(&models.at("one"), &w3(0)).iter().zip(&dense).map(|(noisy, value)| noisy / value - 1.0).collect();
    let variance = relative.iter().map(|ratio| ratio * ratio).sum::<f32>() / relative.len() as f32;
    assert!((variance.sqrt() - 0.3).abs() < 0.02, "{}", variance.sqrt());
    assert_ne!(values(&models.at("one"), &w3(0)), values(&models.at("one"), &w3(1)));

    let router = "model.layers.1.block_sparse_moe.gate.weight";
    for name in [w3(0).as_str(), router] {
        assert_eq!(values(&models.at("one"), name), values(&models.at("again"), name), "shards change nothing");
        assert_ne!(values(&models.at("one"), name), values(&models.at("other"), name));
    }
    let router = values(&models.at("one"), router);
    let deviation = (router.iter().map(|value| value * value).sum::<f32>() / router.len() as f32).sqrt();
    assert!((deviation - 0.02).abs() < 0.005, "{deviation}");
    let attention = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(values(&models.at("one"), attention), values(&models.at("dense"), attention));
}

#[test]
fn what_cannot_be_upcycled_is_refused() {
    let models = Models::new(&dense_config("llama"), Dtype::F32);
    let (dense, out) = (models.at("dense"), models.at("mixture"));
    let refused = |options: UpcycleOptions| message(upcycle(&dense, &out, &options));
    let options = UpcycleOptions::default;
    assert!(refused(UpcycleOptions { top_k: 5, ..options() }).contains("5 of 4 experts"));
    assert!(refused(UpcycleOptions { top_k: 0, ..options() }).contains("0 of 4 experts"));
    assert!(refused(UpcycleOptions { experts: 0, ..options() }).contains("0 experts"));
    assert!(refused(UpcycleOptions { noise: -0.1, ..options() }).contains("noise -0.1"));
    assert!(refused(UpcycleOptions { noise: f32::NAN, ..options() }).contains("noise NaN"));
    assert!(!out.exists(), "a refusal leaves nothing");

    std::fs::create_dir(&out).unwrap();
    upcycle(&dense, &out, &options()).unwrap();
    let error = message(upcycle(&dense, &out, &options()));
    assert!(error.contains("mixture: the folder is not empty"), "{error}");
    let error = message(upcycle(&out, &models.at("twice"), &options()));
    assert!(error.contains("already a mixture of 4 experts"), "{error}");
    let gemma = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/gemma2");
    let error = message(upcycle(&gemma, &models.at("gemma"), &options()));
    assert!(error.contains("Gemma2 has parts that a Mixtral has no place for"), "{error}");
    std::fs::write(models.at("file"), "").unwrap();
    assert!(message(upcycle(&dense, &models.at("file"), &options())).contains("there is a file of that name"));
}

/// A pair with A and B both random.
fn pair(module: &str, outputs: usize, inputs: usize) -> LoraPair {
    let mut random = Random::named(3, module);
    let mut matrix = |rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|_| 0.2 * random.normal() as f32).collect();
        Matrix { rows, columns, values }
    };
    LoraPair { module: module.to_owned(), scale: 0.5, a: matrix(4, inputs), b: matrix(outputs, 4) }
}

fn adapter() -> Adapter {
    Adapter {
        pairs: vec![
            pair("model.layers.0.self_attn.q_proj", 64, 32),
            pair("model.layers.0.block_sparse_moe.gate", 4, 32),
            pair("model.layers.1.block_sparse_moe.experts.3.w2", 32, 64),
            pair("model.layers.1.self_attn.o_proj", 32, 64),
        ],
        whole: Vec::new(),
    }
}

fn mixture(dtype: Dtype) -> Models {
    let models = Models::new(&dense_config("llama"), dtype);
    upcycle(&models.at("dense"), &models.at("mixture"), &UpcycleOptions::default()).unwrap();
    models
}

fn merged(
    models: &Models,
    base: &str,
    adapter: &Adapter,
    out: &str,
    dtype: Option<Dtype>,
) -> anyhow::Result<MergeSummary> {
    write_adapter(&models.at("adapter"), adapter);
    merge(&models.at(base), &models.at("adapter"), &models.at(out), dtype)
}

#[test]
fn merged_computes_what_the_adapter_does() {
    let models = mixture(Dtype::F32);
    let summary = merged(&models, "mixture", &adapter(), "merged", None).unwrap();
    assert_eq!(summary.merged, 4);
    let mut with_adapter = decoder(&models.at("mixture"));
    let base = logits(&with_adapter);
    with_adapter.set_adapter(&adapter()).unwrap();
    let applied = logits(&with_adapter);
    let after = logits(&decoder(&models.at("merged")));
    assert!(largest_difference(&applied, &after) < 1e-4);
    assert!(largest_difference(&base, &after) > 0.05, "the adapter changes something");
    assert_eq!(
        Tokenizer::open(&models.at("mixture")).unwrap().digest(),
        Tokenizer::open(&models.at("merged")).unwrap().digest()
    );
}

#[test]
fn a_merge_changes_nothing_else_and_keeps_the_dtype() {
    let models = mixture(Dtype::BF16);
    let adapter = Adapter { pairs: vec![pair("model.layers.0.self_attn.q_proj", 64, 32)], whole: Vec::new() };
    merged(&models, "mixture", &adapter, "merged", None).unwrap();
    let (before, after) =
        (Checkpoint::open(&models.at("mixture")).unwrap(), Checkpoint::open(&models.at("merged")).unwrap());
    assert_eq!(before.config_json(), after.config_json());
    assert_eq!(before.names(), after.names());
    for name in before.names() {
        let (before, after) = (before.stored(name).unwrap(), after.stored(name).unwrap());
        assert_eq!(after.format, Format::BF16);
        let is_merged = name == "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(before.bytes == after.bytes, !is_merged, "{name}");
    }
    // The sum is made in f32 and rounded once.
    merged(&models, "mixture", &adapter, "wide", Some(Dtype::F32)).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let rounded: Vec<f32> =
        values(&models.at("wide"), name).iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect();
    assert_eq!(values(&models.at("merged"), name), rounded);
    let config = Checkpoint::open(&models.at("wide")).unwrap().config_json().clone();
    assert_eq!(config["torch_dtype"], "float32");
}

#[test]
fn a_gguf_merges_into_a_folder() {
    let models = Models::new(&dense_config("llama"), Dtype::F32);
    let gguf = models.at("dense.gguf");
    write_gguf(&gguf, &models.at("dense"), GgmlDType::Q8_0, |_| {});
    let pairs = vec![pair("model.layers.0.self_attn.k_proj", 32, 32), pair("model.layers.1.mlp.down_proj", 32, 64)];
    let adapter = Adapter { pairs, whole: Vec::new() };
    merged(&models, "dense.gguf", &adapter, "merged", None).unwrap();
    let mut with_adapter = decoder(&gguf);
    with_adapter.set_adapter(&adapter).unwrap();
    let difference = largest_difference(&logits(&with_adapter), &logits(&decoder(&models.at("merged"))));
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn pairs_that_fit_nothing_are_named() {
    let models = mixture(Dtype::F32);
    let refused =
        |pairs: Vec<LoraPair>| message(merged(&models, "mixture", &Adapter { pairs, whole: Vec::new() }, "out", None));
    let error =
        refused(vec![pair("model.layers.0.self_attn.q_proj", 64, 32), pair("model.layers.7.self_attn.q_proj", 64, 32)]);
    assert!(error.contains("`model.layers.7.self_attn.q_proj` is no linear"), "{error}");
    let error = refused(vec![pair("model.layers.0.self_attn.q_proj", 32, 64)]);
    assert!(error.contains("`model.layers.0.self_attn.q_proj`") && error.contains("64 outputs"), "{error}");
    assert!(refused(Vec::new()).contains("no LoRA pair"));
    assert!(!models.at("out").exists(), "a refusal leaves nothing");
}

#[test]
fn the_real_gguf_upcycles_exactly() {
    let Some(path) = std::env::var_os("FIREVAL_SMOLLM2") else {
        println!("skipped: FIREVAL_SMOLLM2 is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mixture");
    upcycle(Path::new(&path), &out, &exact(2)).unwrap();
    let dense = logits(&decoder(Path::new(&path)));
    let difference = largest_difference(&dense, &logits(&decoder(&out)));
    assert!(difference < 1e-4, "{difference}");
}
