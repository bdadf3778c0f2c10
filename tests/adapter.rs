//! PEFT's files: both layouts read to the same pairs, what is written is read back, and every way a file can lie is told.

mod fixture;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fireval::model::adapter::peft::{self, PeftSettings};
use fireval::model::adapter::target::Target;
use fireval::model::adapter::{Adapter, Matrix};
use fireval::model::config::{Activation, Architecture, Mixture, ModelConfig, RopeScaling};
use fixture::fixture;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// The config of `tests/fixtures/tiny-mixtral`.
fn tiny() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Mixtral,
        vocab_size: 512,
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        rotary_dim: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        local_rope: None,
        max_position_embeddings: 32_768,
        tie_word_embeddings: false,
        sliding_window: None,
        full_attention: Vec::new(),
        activation: Activation::Silu,
        attention_bias: false,
        head_norms: false,
        sandwich_norms: false,
        norm_plus_one: false,
        embedding_scale: None,
        attention_scale: 0.25,
        attention_softcap: None,
        final_softcap: None,
        mixture: Some(Mixture { experts: 4, top_k: 2, router_aux_loss_coef: 0.02, normalize: true }),
        dense_widths: Vec::new(),
    }
}

fn settings() -> PeftSettings {
    let targets = Target::ALL[..8].iter().map(|&target| (target, None)).collect();
    PeftSettings { base_model: "tiny-mixtral".to_owned(), rank: 16, alpha: 16.0, targets, ..PeftSettings::default() }
}

type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn stored(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join(peft::WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (&str, TensorView)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.iter().map(owned).collect()
}

/// A copy of a fixture with its tensors changed.
fn changed(name: &str, change: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = stored(&fixture(name));
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join(peft::WEIGHTS_FILE)).unwrap();
    std::fs::copy(fixture(name).join(peft::CONFIG_FILE), folder.path().join(peft::CONFIG_FILE)).unwrap();
    folder
}

fn refusal(folder: &Path) -> String {
    format!("{:#}", peft::read(folder, &tiny()).unwrap_err())
}

#[test]
fn the_old_layout_gives_a_pair_for_every_linear() {
    let adapter = peft::read(&fixture("lora"), &tiny()).unwrap();
    assert_eq!(adapter.parameters(), 90_240); // peft's own count (ref.json)
    let modules: Vec<&str> = adapter.pairs.iter().map(|pair| pair.module.as_str()).collect();
    assert_eq!(modules.len(), 34);
    assert_eq!(modules[..2], ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]);
    assert_eq!(modules[4], "model.layers.0.block_sparse_moe.gate");
    assert_eq!(modules[33], "model.layers.1.block_sparse_moe.experts.3.w3");
    assert!(adapter.pairs.iter().all(|pair| pair.scale == 1.0 && pair.a.rows == 16));
}

#[test]
fn the_fused_layout_of_newer_peft_gives_the_same_pairs() {
    let old = peft::read(&fixture("lora"), &tiny()).unwrap();
    let new = peft::read(&fixture("lora-v5"), &tiny()).unwrap();
    assert_eq!(old, new);
}

#[test]
fn what_is_written_has_pefts_names_and_is_read_back() {
    let adapter = peft::read(&fixture("lora"), &tiny()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a/b");
    peft::write(&place, &adapter, &settings()).unwrap();
    assert_eq!(stored(&place), stored(&fixture("lora")));
    assert_eq!(peft::read(&place, &tiny()).unwrap(), adapter);
    let read = |path: PathBuf| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let (ours, theirs) = (read(place.join(peft::CONFIG_FILE)), read(fixture("lora").join(peft::CONFIG_FILE)));
    for (key, value) in ours.iter().filter(|(key, _)| *key != "target_modules") {
        assert_eq!(Some(value), theirs.get(key), "{key}");
    }
    let left: Vec<_> = std::fs::read_dir(&place).unwrap().collect();
    assert_eq!(left.len(), 2, "no temporary file stays behind");
}

#[test]
fn half_precision_is_widened() {
    let halved = changed("lora", |tensors| {
        for (dtype, _, bytes) in tensors.values_mut() {
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let rounded = values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
            (*dtype, *bytes) = (Dtype::BF16, rounded);
        }
    });
    let (full, halved) = (peft::read(&fixture("lora"), &tiny()).unwrap(), peft::read(halved.path(), &tiny()).unwrap());
    for (a, b) in full.matrices().zip(halved.matrices()) {
        assert!(a.values.iter().zip(&b.values).all(|(x, y)| (x - y).abs() <= x.abs() / 128.0));
    }
}

#[test]
fn settings_that_are_not_the_pairs_own_are_refused() {
    let mut adapter = peft::read(&fixture("lora"), &tiny()).unwrap();
    adapter.pairs[3].a = Matrix::zeros(8, 64);
    let folder = tempfile::tempdir().unwrap();
    let error = peft::write(folder.path(), &adapter, &settings()).unwrap_err().to_string();
    assert!(error.contains("o_proj") && error.contains("rank 8"), "{error}");
}

#[test]
fn every_tensor_is_used_or_named() {
    let gate = "base_model.model.model.layers.0.block_sparse_moe.gate";
    let rename = |from: String, to: String| {
        refusal(changed("lora", |t| drop(t.remove(&from).map(|tensor| t.insert(to, tensor)))).path())
    };
    let error = rename(format!("{gate}.lora_A.weight"), format!("{gate}.lora_magnitude_vector.weight"));
    assert!(error.contains("gate.lora_magnitude_vector.weight"), "{error}");
    let error = refusal(changed("lora", |t| drop(t.remove(&format!("{gate}.lora_B.weight")))).path());
    assert!(error.contains("gate` has a lora_A but no lora_B"), "{error}");
    let error = refusal(changed("lora", |t| drop(t.remove(&format!("{gate}.lora_A.weight")))).path());
    assert!(error.contains("gate` has a lora_B but no lora_A"), "{error}");
    let error = refusal(
        changed("lora", |tensors| {
            for half in ["A", "B"] {
                let tensor = tensors.remove(&format!("{gate}.lora_{half}.weight")).unwrap();
                tensors.insert(format!("base_model.model.lm_head.lora_{half}.weight"), tensor);
            }
        })
        .path(),
    );
    assert!(error.contains("`lm_head` is no linear"), "{error}");
    let error = refusal(changed("lora", HashMap::clear).path());
    assert!(error.contains("no LoRA pair"), "{error}");
}

#[test]
fn ranks_shapes_and_types_that_do_not_fit_are_refused() {
    let a = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
    let with = |dtype, shape: &[usize], size: usize| {
        refusal(changed("lora", |t| drop(t.insert(a.to_owned(), (dtype, shape.to_vec(), vec![0; size])))).path())
    };
    let error = with(Dtype::F32, &[8, 64], 8 * 64 * 4);
    assert!(error.contains("layers.1.self_attn.q_proj` has rank 8") && error.contains("says 16"), "{error}");
    let error = with(Dtype::F32, &[16, 65], 16 * 65 * 4);
    assert!(error.contains("(16, 65)") && error.contains("64 inputs"), "{error}");
    assert!(with(Dtype::F32, &[16, 8, 8], 16 * 64 * 4).contains("not that of a matrix"));
    assert!(with(Dtype::I32, &[16, 64], 16 * 64 * 4).contains("I32"));
    assert!(with(Dtype::F32, &[0, 64], 0).contains("rank 0"));
    let fused = "base_model.model.model.layers.0.mlp.experts.lora_A.weight".to_owned();
    let error = refusal(changed("lora-v5", |t| drop(t.insert(fused, (Dtype::F32, vec![0, 128], Vec::new())))).path());
    assert!(error.contains("not one rank for each of 4 experts"), "{error}");
    let nan = changed("lora", |t| t.get_mut(a).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(refusal(nan.path()).contains("not finite"));
}

#[test]
fn a_cut_or_missing_file_is_named() {
    let folder = changed("lora", |_| ());
    let path = folder.path().join(peft::WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    for (length, told) in [
        (0, "the file is empty"),
        (7, "not a whole safetensors file"),
        (100, "not a whole safetensors file"),
        (bytes.len() - 1, "more or fewer bytes of weights than the file has"),
    ] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains("adapter_model.safetensors: ") && error.contains(told), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(folder.path()).contains("adapter_model.safetensors"));
    std::fs::write(folder.path().join(peft::CONFIG_FILE), "{\"r\": 1").unwrap();
    assert!(refusal(folder.path()).contains("adapter_config.json is not a JSON object"));
}

#[test]
fn an_adapter_of_a_mixture_does_not_fit_a_dense_model() {
    let dense = ModelConfig { mixture: None, architecture: Architecture::Mistral, ..tiny() };
    let error = format!("{:#}", peft::read(&fixture("lora"), &dense).unwrap_err());
    assert!(error.contains("block_sparse_moe"), "{error}");
    assert_eq!(Adapter::default().parameters(), 0);
}
