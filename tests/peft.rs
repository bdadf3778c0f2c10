//! Adapters from and for real peft. As peft saves them, in every shape that fireval honours, both homes give the logits that
//! transformers and peft give (tests/fixtures/adapters/make.py); as fireval writes them, peft gives the logits that both
//! homes give.
//!
//! The second part needs a Python with torch, transformers and peft (`python3`, or what `FIREVAL_PYTHON` names) and is
//! skipped, with a message, where there is none. It has run with transformers 5.24.0 and peft 0.21.2, and with 4.57.6 and
//! 0.17.1.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use fireval::kernel::Isa;
use fireval::model::adapter::Adapter;
use fireval::model::adapter::peft::{self, PeftAdapter};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::packed::Packed;
use fireval::random::Random;
use fireval::settings;
use fireval::train::initial;
use fireval::train::recipe::Lora;
use fireval::weights::{Checkpoint, Dtype};
use safetensors::SafeTensors;

const CASES: [&str; 10] = [
    "mixtral.parameters",
    "qwen3-moe.parameters",
    "mixtral.gate-up",
    "mixtral.all-linear",
    "mixtral.saved",
    "qwen2.saved-head",
    "qwen2.saved-embedding",
    "qwen2.saved-norms",
    "qwen2.patterns",
    "qwen2.layers",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn base(case: &str) -> PathBuf {
    fixtures().join("families").join(case.split('.').next().unwrap())
}

fn adapter(case: &str) -> PathBuf {
    fixtures().join("adapters").join(case)
}

/// A sequence and its logits, (tokens, vocabulary).
fn reference(case: &str) -> (Vec<u32>, Vec<f32>) {
    let path = adapter(case).join("reference.safetensors");
    (tensor(&path, "ids", u32::from_le_bytes), tensor(&path, "logits", f32::from_le_bytes))
}

fn tensor<T>(path: &Path, name: &str, number: fn([u8; 4]) -> T) -> Vec<T> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().chunks_exact(4).map(|word| number(word.try_into().unwrap())).collect()
}

/// The largest difference of a log-probability from the reference's.
fn off(decoder: &impl Decoder, (ids, logits): &(Vec<u32>, Vec<f32>)) -> f64 {
    let vocabulary = decoder.config().vocab_size;
    let hidden = decoder.walk(&Packed::rows(&[ids]), Pasts::None).unwrap();
    let tokens = |row| (0..vocabulary as u32).map(move |token| Wanted { row, token });
    let wanted: Vec<Wanted> = (0..ids.len()).flat_map(tokens).collect();
    let found = decoder.score(&hidden, &wanted).unwrap();
    let mut largest = 0f64;
    for (found, logits) in found.chunks(vocabulary).zip(logits.chunks(vocabulary)) {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (found, &logit) in found.iter().zip(logits) {
            largest = largest.max((found.log_probability - (f64::from(logit) - sum.ln())).abs());
        }
    }
    largest
}

fn config_of(checkpoint: &Checkpoint) -> ModelConfig {
    ModelConfig::of(checkpoint).unwrap()
}

fn candle(checkpoint: &Checkpoint, config: &ModelConfig) -> CandleDecoder {
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    CandleDecoder::load(checkpoint, config, &options).unwrap()
}

fn cpu(checkpoint: Checkpoint, config: &ModelConfig) -> CpuDecoder<f32> {
    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: u64::MAX };
    CpuDecoder::load(checkpoint, config, &options).unwrap()
}

#[test]
fn both_homes_compute_what_peft_computes() {
    for case in CASES {
        let reference = reference(case);
        let plain = Checkpoint::open(&base(case)).unwrap();
        let untouched = off(&cpu(Checkpoint::open(&base(case)).unwrap(), &config_of(&plain)), &reference);
        assert!(untouched > 1e-2, "{case}: the adapter does something ({untouched})");
        let mut checkpoint = Checkpoint::open(&base(case)).unwrap();
        let (config, pairs) = peft::lay_over(&adapter(case), &mut checkpoint).unwrap();
        let mut decoder = candle(&checkpoint, &config);
        decoder.set_adapter(&pairs).unwrap();
        let in_candle = off(&decoder, &reference);
        let mut decoder = cpu(checkpoint, &config);
        decoder.set_adapter(&pairs).unwrap();
        let on_kernels = off(&decoder, &reference);
        println!("{case}: candle {in_candle:.1e}, kernels {on_kernels:.1e}");
        assert!(in_candle.max(on_kernels) < 1e-4, "{case}: candle {in_candle}, kernels {on_kernels}");
    }
}

#[test]
fn what_replaces_a_weight_is_no_mere_pair() {
    let config = config_of(&Checkpoint::open(&base("mixtral")).unwrap());
    let error = peft::read(&adapter("mixtral.saved"), &config).unwrap_err().to_string();
    assert!(error.contains("also replaces lm_head.weight, model.embed_tokens.weight"), "{error}");
    let opened = PeftAdapter::open(&adapter("mixtral.saved"), &config).unwrap();
    assert_eq!(opened.replaced().count(), 2);
    assert!(opened.modules().all(|module| module.ends_with("v_proj")));
    assert!(opened.pair("model.layers.0.self_attn.v_proj").unwrap().is_some());
    assert!(opened.pair("model.layers.0.self_attn.q_proj").unwrap().is_none());
}

/// A copy of a case with its config changed.
fn changed(case: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(adapter(case).join(peft::WEIGHTS_FILE), folder.path().join(peft::WEIGHTS_FILE)).unwrap();
    let text = std::fs::read_to_string(adapter(case).join(peft::CONFIG_FILE)).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join(peft::CONFIG_FILE), config.to_string()).unwrap();
    folder
}

#[test]
fn settings_that_do_not_fit_the_file_are_refused() {
    let refusal = |case: &str, key: &str, value: serde_json::Value| {
        let folder = changed(case, |config| config[key] = value);
        let mut checkpoint = Checkpoint::open(&base(case)).unwrap();
        format!("{:#}", peft::lay_over(folder.path(), &mut checkpoint).unwrap_err())
    };
    let error = refusal("qwen2.layers", "layers_to_transform", [0].as_slice().into());
    assert!(error.contains("layers.2.") && error.contains("does not target it"), "{error}");
    let error = refusal("qwen2.layers", "layers_to_transform", serde_json::Value::Null);
    assert!(error.contains("layers.1.") && error.contains("is the file whole?"), "{error}");
    let error = refusal("qwen2.saved-head", "modules_to_save", ["lm_head", "norm"].as_slice().into());
    assert!(error.contains("`modules_to_save` names `norm`"), "{error}");
    let error = refusal("qwen2.saved-norms", "modules_to_save", ["input_layernorm"].as_slice().into());
    assert!(error.contains("model.norm.weight is neither"), "{error}");
    let error = refusal("qwen2.patterns", "rank_pattern", serde_json::json!({"k_proj": 3}));
    assert!(error.contains("layers.1.mlp.down_proj` has rank 1") && error.contains("says 2"), "{error}");
}

const MIXTRAL: &str = r#"targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]"#;
const QWEN: &str = r#"targets = ["q_proj", "gate", "gate_proj", "up_proj", "down_proj"]"#;

/// `[lora]` of a recipe: family, targets, and the rest beside a rank of 2 and an alpha of 4.
const WRITTEN: [(&str, &str, &str); 9] = [
    ("mixtral", r#"targets = ["q_proj", "v_proj"]"#, ""),
    ("mixtral", MIXTRAL, ""),
    ("mixtral", MIXTRAL, "rank_stabilized = true"),
    ("mixtral", MIXTRAL, r#"layers = "1""#),
    ("mixtral", MIXTRAL, "ranks = { w1 = 1, w3 = 1, w2 = 3, gate = 1, q_proj = 3 }\nalphas = { w2 = 5.5, k_proj = 1 }"),
    ("mixtral", MIXTRAL, "ranks = { w1 = 3, w3 = 3 }\nrank_stabilized = true\nlayers = \"0\""),
    ("qwen2", r#"targets = ["q_proj", "up_proj"]"#, "ranks = { up_proj = 1 }\nlayers = \"0, 2\""),
    ("qwen3-moe", QWEN, ""),
    ("qwen3-moe", QWEN, "ranks = { gate_proj = 1, up_proj = 1, down_proj = 3 }\nrank_stabilized = true"),
];

/// A Python that has what `tests/peft/logits.py` imports.
fn python() -> Option<String> {
    let python = std::env::var("FIREVAL_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let versions =
        "import peft, torch, transformers; print('transformers', transformers.__version__, 'peft', peft.__version__)";
    let run = Command::new(&python).args(["-c", versions]).output().ok()?;
    println!("{python}: {}", String::from_utf8_lossy(&run.stdout).trim());
    run.status.success().then_some(python)
}

/// The adapter of a case of `WRITTEN`, with numbers in B too.
fn made(lora: &Lora, config: &ModelConfig) -> Adapter {
    let mut adapter = initial::adapter(config, lora, 5).unwrap();
    for pair in &mut adapter.pairs {
        let mut random = Random::named(6, &pair.module);
        pair.b.values.iter_mut().for_each(|value| *value = (0.2 * random.normal()) as f32);
    }
    adapter
}

#[test]
fn peft_computes_what_both_homes_compute() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = vec![3, 99, 41, 7, 7, 120, 64, 15];
    let mut jobs = Vec::new();
    for (index, (family, targets, rest)) in WRITTEN.into_iter().enumerate() {
        let lora: Lora = settings::parse(&format!("rank = 2\nalpha = 4\n{targets}\n{rest}"), "lora").unwrap();
        let config = config_of(&Checkpoint::open(&base(family)).unwrap());
        let (adapter, out) = (folder.path().join(index.to_string()), folder.path().join(format!("{index}.logits")));
        let pairs = made(&lora, &config);
        peft::write(&adapter, &pairs, &lora.peft_settings(family)).unwrap();
        assert_eq!(peft::read(&adapter, &config).unwrap(), pairs, "{family} {rest}");
        jobs.push(serde_json::json!({"model": base(family), "adapter": adapter, "out": out, "ids": ids}));
    }
    let Some(python) = python() else {
        eprintln!("skipped: no Python with torch, transformers and peft (name one with FIREVAL_PYTHON)");
        return;
    };
    let list = folder.path().join("jobs.json");
    std::fs::write(&list, serde_json::Value::Array(jobs).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/logits.py");
    let run = Command::new(python).args([&script, &list]).output().unwrap();
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    for (index, (family, _, rest)) in WRITTEN.into_iter().enumerate() {
        let checkpoint = Checkpoint::open(&base(family)).unwrap();
        let config = config_of(&checkpoint);
        let pairs = peft::read(&folder.path().join(index.to_string()), &config).unwrap();
        let logits = tensor(&folder.path().join(format!("{index}.logits")), "logits", f32::from_le_bytes);
        let reference = (ids.clone(), logits);
        let mut decoder = candle(&checkpoint, &config);
        assert!(off(&decoder, &reference) > 1e-2, "{family} {rest}: peft applies something");
        decoder.set_adapter(&pairs).unwrap();
        let in_candle = off(&decoder, &reference);
        let mut decoder = cpu(checkpoint, &config);
        decoder.set_adapter(&pairs).unwrap();
        let on_kernels = off(&decoder, &reference);
        println!("{family} {rest:?}: candle {in_candle:.1e}, kernels {on_kernels:.1e}");
        assert!(in_candle.max(on_kernels) < 1e-4, "{family} {rest}: candle {in_candle}, kernels {on_kernels}; {told}");
    }
}
