//! A merge holds one tensor and its pair, whatever the size of model and adapter: measured from outside. In a file of its
//! own: the system remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use binary::{Workplace, peak};
use fireval::model::adapter::peft;
use fireval::model::config::ModelConfig;
use fireval::train::initial;
use fireval::train::recipe::Lora;
use fireval::weights::Dtype;
use serde_json::json;

const WIDTH: usize = 512;
const WIDE: usize = 8192;
/// Of the largest tensor in f32.
const TENSOR: u64 = (WIDTH * WIDE * 4) as u64;

/// A model of some layers with an adapter of rank 128 on every large linear; its bytes.
fn written(place: &Workplace, layers: usize) -> u64 {
    let mut config = tiny::dense_config("llama");
    config["hidden_size"] = json!(WIDTH);
    config["intermediate_size"] = json!(WIDE);
    config["num_hidden_layers"] = json!(layers);
    let (model, adapter) = (place.path(&format!("model-{layers}")), place.path(&format!("adapter-{layers}")));
    std::fs::create_dir(&model).unwrap();
    tiny::write_folder(&model, &config, Dtype::F32);
    let config = ModelConfig::from_json(&config, "config.json").unwrap();
    let targets = json!(["gate_proj", "up_proj", "down_proj"]);
    let lora: Lora = serde_json::from_value(json!({"rank": 128, "alpha": 128.0, "targets": targets})).unwrap();
    let pairs = initial::adapter(&config, &lora, 1).unwrap();
    peft::write(&adapter, &pairs, &lora.peft_settings("model")).unwrap();
    let bytes = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().len();
    bytes(model.join("model.safetensors")) + bytes(adapter.join(peft::WEIGHTS_FILE))
}

#[test]
fn the_peak_does_not_grow_with_model_or_adapter() {
    let place = Workplace::new();
    let merged = |layers: usize| {
        let bytes = written(&place, layers);
        let (model, adapter) = (format!("model-{layers}"), format!("adapter-{layers}"));
        place.run(&["merge", &model, &format!("out-{layers}"), "--adapter", &adapter]).done();
        (peak(), bytes)
    };
    // From small to large, as the largest is remembered.
    let (small, one) = merged(1);
    let (large, six) = merged(6);
    println!("{} MiB for {} MiB, {} MiB for {} MiB", small >> 20, one >> 20, large >> 20, six >> 20);
    assert!(six - one > 12 * TENSOR, "the larger one is larger by many tensors");
    assert!(large < small + TENSOR / 2, "{} MiB more", (large - small) >> 20);
    // The tensor as it lies in the file, decoded, and encoded; the pair; and the program.
    assert!(large < 4 * TENSOR + (48 << 20), "{} MiB", large >> 20);
}
