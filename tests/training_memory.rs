//! `--memory` is a promise about the peak of a training process too, measured from outside, and no number depends on it. In
//! a file of its own: the system remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use std::path::Path;

use binary::{Workplace, peak};
use fireval::weights::writer::Dtype;
use serde_json::json;

const RECIPE: &str = r#"
model = "nf4"
data = ["dialogues.jsonl"]
output = "OUTPUT"
format = "chat-template"
max_tokens = 96
quantization = "nf4"
dtype = "bf16"
steps = 1
seed = 1

[lora]
rank = 8
alpha = 8
dropout = 0.1
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

[optimizer]
learning_rate = 1e-3

[schedule]
kind = "linear"

[batch]
dialogues = 4
accumulation = 16
"#;

#[test]
fn the_budget_is_kept_and_no_number_depends_on_it() {
    let place = Workplace::new();
    let mut config = tiny::dense_config("llama");
    for (key, value) in
        [("hidden_size", 512), ("intermediate_size", 1024), ("num_hidden_layers", 8), ("vocab_size", 512)]
    {
        config[key] = json!(value);
    }
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), &config, Dtype::BF16);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level").join(name);
        std::fs::copy(fixture, place.path("model").join(name)).unwrap();
    }
    place.run(&["quantize", "model", "nf4"]).done();
    let line = |index: usize| {
        let answer = format!("{index:03} ").repeat(20);
        format!("{{\"conversation\": [{{\"human\": \"Say {index}.\", \"assistant\": \"{answer}\"}}]}}\n")
    };
    place.write("dialogues.jsonl", &(0..64).map(line).collect::<String>());
    let train = |memory: &str| {
        place.write("recipe.toml", &RECIPE.replace("OUTPUT", memory));
        place.run(&["finetune", "recipe.toml", "--memory", memory, "--threads", "2"]).done();
        (peak(), std::fs::read(place.path(memory).join("adapter_model.safetensors")).unwrap())
    };
    // From small to large, as the largest is remembered.
    let (small, adapter) = train("160MiB");
    let (large, same) = train("2GiB");
    println!("{} of 160 MiB, {} of 2 GiB", small >> 20, large >> 20);
    assert!(small <= 160 << 20, "{} MiB", small >> 20);
    assert!(large <= 2 << 30 && large > small + (32 << 20), "{} MiB: more is used where more is allowed", large >> 20);
    assert!(adapter == same, "the same adapter to the bit");
    place.write("recipe.toml", &RECIPE.replace("OUTPUT", "none"));
    let error = place.run(&["finetune", "recipe.toml", "--memory", "100MiB"]).failed();
    assert!(error.contains("can't hold a training step") && error.contains("--memory"), "{error}");
}
