//! `fireval merge`: three layouts of one adapter give the same bytes, whole weights are replaced, and `--verify` tells the
//! ways to run an adapter apart.

mod binary;
mod fixture;
mod tiny;

use std::collections::HashMap;
use std::path::Path;

use binary::Workplace;
use fireval::model::adapter::peft;
use fireval::model::config::ModelConfig;
use fireval::model::names;
use fireval::random::Random;
use fireval::train::initial;
use fireval::train::recipe::Lora;
use fireval::transform::merge::merge;
use fireval::weights::{Checkpoint, Dtype};
use fixture::fixture;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A fixture's model with a tokenizer, which a merged model has to have.
fn with_tokenizer(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    tiny::write_json(&folder.path().join("tokenizer.json"), &tiny::tokenizer_json());
    folder
}

/// The fused layout with `down_proj` inside and `gate_up_proj` outside: PEFT nests them in the order they are named.
fn nested_the_other_way() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixture("lora-v5").join(peft::WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = |name: &str| match name.contains(".mlp.experts.base_layer.") {
        true => name.replace(".base_layer", ""),
        false => name.replace(".mlp.experts.", ".mlp.experts.base_layer."),
    };
    let tensors: HashMap<String, TensorView> = file.iter().map(|(name, view)| (renamed(name), view)).collect();
    safetensors::serialize_to_file(&tensors, None, &folder.path().join(peft::WEIGHTS_FILE)).unwrap();
    std::fs::copy(fixture("lora-v5").join(peft::CONFIG_FILE), folder.path().join(peft::CONFIG_FILE)).unwrap();
    folder
}

#[test]
fn three_layouts_of_an_adapter_merge_to_the_same_bytes() {
    let (base, out) = (with_tokenizer("tiny-mixtral"), tempfile::tempdir().unwrap());
    let other = nested_the_other_way();
    let layouts = [fixture("lora"), fixture("lora-v5"), other.path().to_owned()];
    let merged: Vec<Vec<u8>> = (0..)
        .zip(&layouts)
        .map(|(index, layout)| {
            let out = out.path().join(index.to_string());
            let summary = merge(base.path(), layout, &out, None).unwrap();
            assert_eq!((summary.merged, summary.replaced), (34, 0));
            std::fs::read(out.join("model.safetensors")).unwrap()
        })
        .collect();
    assert_ne!(merged[0], std::fs::read(base.path().join("model.safetensors")).unwrap());
    assert!(merged[0] == merged[1] && merged[0] == merged[2]);
}

/// qwen2's embedding is its head; an adapter that trained one of the two has made them two.
#[test]
fn whole_weights_are_replaced_and_tied_ones_come_apart() {
    let stored = |path: &Path, name: &str| Checkpoint::open(path).unwrap().stored(name).unwrap().to_f32().unwrap();
    let base = with_tokenizer("families/qwen2");
    let embedding = stored(base.path(), names::EMBEDDING);
    let out = tempfile::tempdir().unwrap();
    for (case, name, kept) in
        [("saved-head", names::HEAD, names::EMBEDDING), ("saved-embedding", names::EMBEDDING, names::HEAD)]
    {
        let adapter = fixture("adapters").join(format!("qwen2.{case}"));
        let merged = out.path().join(case);
        let summary = merge(base.path(), &adapter, &merged, Some(Dtype::F32)).unwrap();
        assert_eq!((summary.merged, summary.replaced), (3, 1), "{case}");
        let bytes = std::fs::read(adapter.join(peft::WEIGHTS_FILE)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let trained = file.tensor(&format!("base_model.model.{name}")).unwrap();
        let trained = trained.data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
        assert_eq!(stored(&merged, name), trained.collect::<Vec<_>>(), "{case}");
        assert_eq!(stored(&merged, kept), embedding, "{case}");
        let checkpoint = Checkpoint::open(&merged).unwrap();
        assert_eq!(checkpoint.config_json()["tie_word_embeddings"], json!(false));
        let config = ModelConfig::of(&checkpoint).unwrap();
        names::check(&checkpoint, &config).unwrap();
    }
    // As the model has it: bf16, the new head like the embedding.
    let kept = out.path().join("kept");
    merge(base.path(), &fixture("adapters/qwen2.saved-head"), &kept, None).unwrap();
    let checkpoint = Checkpoint::open(&kept).unwrap();
    let formats: Vec<_> = checkpoint.names().iter().map(|name| checkpoint.stored(name).unwrap().format).collect();
    assert!(formats.iter().all(|&format| format == fireval::weights::Format::BF16), "{formats:?}");
}

/// A model of some size with an adapter on everything, and a fireval.toml.
fn workplace() -> Workplace {
    let place = Workplace::new();
    let mut config = tiny::dense_config("llama");
    config["hidden_size"] = json!(64);
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), &config, Dtype::BF16);
    let config = ModelConfig::from_json(&config, "config.json").unwrap();
    let targets = json!(["q_proj", "v_proj", "up_proj", "gate_proj", "down_proj"]);
    let lora: Lora = serde_json::from_value(json!({"rank": 4, "alpha": 8.0, "targets": targets})).unwrap();
    let mut adapter = initial::adapter(&config, &lora, 3).unwrap();
    for pair in &mut adapter.pairs {
        let mut random = Random::named(4, &pair.module);
        pair.b.values.iter_mut().for_each(|value| *value = (0.2 * random.normal()) as f32);
    }
    peft::write(&place.path("adapter"), &adapter, &lora.peft_settings("model")).unwrap();
    place.write("fireval.toml", "[model.ft]\npath = \"model\"\nadapter = \"adapter\"\nquantization = \"nf4\"\n");
    place
}

/// The numbers of the line of `told` that begins so.
fn numbers(told: &str, line: &str) -> Vec<f64> {
    let line = told.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {told}"));
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn verify_tells_the_ways_apart_and_whose_a_score_is() {
    let place = workplace();
    let told = place.run(&["merge", "ft", "merged", "--verify"]).done();
    assert!(told.contains("10 of 21 tensors updated"), "{told}");
    let rounding = numbers(&told, "adapter on bf16 against merged, bf16");
    let quantised = numbers(&told, "adapter on 4 bits against adapter on bf16");
    let both = numbers(&told, "adapter on 4 bits against merged, bf16");
    // Largest and mean: rounding to bf16 is little, 4 bits are much.
    assert!(rounding[0] > 0.0 && rounding[1] < rounding[0], "{told}");
    assert!(quantised[1] > 2.0 * rounding[1] && both[1] > 2.0 * rounding[1], "{told}");
    assert!(told.contains("A score of `ft` belongs to: adapter on 4 bits."), "{told}");
    // In f32 a merge is the adapter but for the order of sums.
    let wide = place.run(&["merge", "model", "wide", "--adapter", "adapter", "--dtype", "f32", "--verify"]).done();
    assert!(wide.contains("A score of `model` belongs to: adapter on bf16."), "{wide}");
    // A model that is stored in 4 bits has no other base.
    place.run(&["quantize", "model", "nf4"]).done();
    let told = place.run(&["merge", "nf4", "from-nf4", "--adapter", "adapter", "--verify"]).done();
    assert_eq!(told.matches(" against ").count(), 1, "{told}");
    assert!(told.contains("A score of `nf4` belongs to: adapter on 4 bits."), "{told}");
}

#[test]
fn tokenizer_and_configuration_come_along() {
    let place = workplace();
    place.run(&["merge", "ft", "merged"]).done();
    let json = |name: &str| -> Value { serde_json::from_str(&place.read(name)).unwrap() };
    assert_eq!(json("merged/config.json")["torch_dtype"], json!("bfloat16"));
    assert_eq!(place.read("merged/tokenizer.json"), place.read("model/tokenizer.json"));
    let again = place.run(&["merge", "ft", "merged"]);
    assert!(again.code == 2 && again.stderr.contains("the folder is not empty"), "{}", again.stderr);
}
