//! `--memory` is a promise about the peak of a training process too, measured from outside, and no number depends on it. In
//! a file of its own: the system remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use std::path::Path;

use binary::{Workplace, peak_of};
use fireval::weights::Dtype;
use serde_json::{Value, json};

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

/// A model of that config, stored in 4 bits as `nf4`, and dialogues of more tokens than the recipe takes.
fn workshop(config: &Value) -> Workplace {
    let place = Workplace::new();
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), config, Dtype::BF16);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level").join(name);
        std::fs::copy(fixture, place.path("model").join(name)).unwrap();
    }
    place.run(&["quantize", "model", "nf4"]).done();
    let line = |index: usize| {
        let answer = format!("{index:03} ").repeat(40);
        format!("{{\"conversation\": [{{\"human\": \"Say {index}.\", \"assistant\": \"{answer}\"}}]}}\n")
    };
    place.write("dialogues.jsonl", &(0..64).map(line).collect::<String>());
    place
}

fn wide(model_type: &str, changes: &[(&str, Value)]) -> Value {
    let mut config = tiny::dense_config(model_type);
    let shape = [("hidden_size", 512), ("intermediate_size", 1024), ("num_hidden_layers", 8), ("vocab_size", 512)];
    shape.iter().for_each(|(key, value)| config[*key] = json!(value));
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    config
}

#[test]
fn the_budget_is_kept_and_no_number_depends_on_it() {
    let place = workshop(&wide("llama", &[]));
    let train = |memory: &str| {
        place.write("recipe.toml", &recipe("llama", memory));
        let peak = peak_of(place.command(&["finetune", "recipe.toml", "--memory", memory, "--threads", "2"]));
        (peak, std::fs::read(place.path(memory).join("adapter_model.safetensors")).unwrap())
    };
    let (small, adapter) = train("97MiB");
    let (large, same) = train("2GiB");
    println!("{} of 97 MiB, {} of 2 GiB", small >> 20, large >> 20);
    assert!(small <= 97 << 20, "{} MiB", small >> 20);
    assert!(large <= 2 << 30 && large > small + (32 << 20), "{} MiB: more is used where more is allowed", large >> 20);
    assert!(adapter == same, "the same adapter to the bit");
    let plan = place.run(&["finetune", "recipe.toml", "--plan", "--memory", "97MiB"]).done();
    assert!(plan.contains("moments spilled to disk") && plan.contains("inputs spilled to disk"), "{plan}");
    let left = std::fs::read_dir(place.path("97MiB")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().contains("spill")), "a file is left");
    place.write("recipe.toml", &recipe("llama", "none"));
    let error = place.run(&["finetune", "recipe.toml", "--memory", "60MiB"]).failed();
    assert!(error.contains("can't hold a training step") && error.contains("--memory"), "{error}");
}

/// Pairs of rank 64 on every linear, so that moments count.
fn recipe(family: &str, output: &str) -> String {
    let dense = r#""gate_proj", "up_proj", "down_proj""#;
    let targets = if family == "mixtral" { r#""gate", "w1", "w2", "w3""# } else { dense };
    RECIPE.replace(dense, targets).replace("rank = 8", "rank = 64").replace("OUTPUT", output)
}

/// In bytes, from the plan's last lines.
fn planned(plan: &str) -> f64 {
    let at = plan.rfind("peak ").unwrap_or_else(|| panic!("no peak in\n{plan}"));
    let words: Vec<&str> = plan[at..].split_whitespace().take(3).collect();
    let unit = if words[2].starts_with("GiB") { 30 } else { 20 };
    words[1].parse::<f64>().unwrap() * f64::from(1 << unit)
}

#[test]
fn the_plan_is_the_peak_within_a_tenth() {
    let mixture = [("num_local_experts", json!(4)), ("num_experts_per_tok", json!(2))];
    let mixture = wide("mixtral", &mixture);
    let long = wide("llama", &[("hidden_size", json!(768)), ("num_hidden_layers", json!(12))]);
    let mut worst = 0f64;
    for (family, config, memories) in [
        ("llama", wide("llama", &[]), ["2GiB", "97MiB"]),
        ("llama", long, ["2GiB", "200MiB"]),
        ("mixtral", mixture, ["2GiB", "200MiB"]),
    ] {
        let place = workshop(&config);
        let kept = (memories[0], false);
        for (memory, recompute) in memories.map(|memory| (memory, true)).into_iter().chain([kept]) {
            let recipe = recipe(family, &format!("{memory}-{recompute}"));
            place.write("recipe.toml", &format!("recompute = {recompute}\n{recipe}"));
            let run = ["finetune", "recipe.toml", "--memory", memory, "--threads", "2"];
            let plan = place.run(&[&run[..], &["--plan"]].concat()).done();
            let (planned, peak) = (planned(&plan), peak_of(place.command(&run)) as f64);
            let within = &plan[plan.find("--memory").unwrap()..];
            println!("{family}: peak {:.0} MiB; planned {within}", peak / f64::from(1 << 20));
            worst = worst.max((planned / peak - 1.0).abs());
        }
    }
    assert!(worst <= 0.1, "{worst:.3} off");
}
