//! `--memory` is a promise about the peak of a training process too, measured from outside, and no number depends on it. In
//! a file of its own: the system remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use std::path::Path;

use binary::{Workplace, peak, peak_of};
use fireval::weights::writer::Dtype;
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
        place.write("recipe.toml", &RECIPE.replace("OUTPUT", memory));
        let ended = place.run(&["finetune", "recipe.toml", "--memory", memory, "--threads", "2"]);
        let told = ended.stderr.clone();
        ended.done();
        (peak(), std::fs::read(place.path(memory).join("adapter_model.safetensors")).unwrap(), told)
    };
    // From small to large, as the largest is remembered.
    let (small, adapter, told) = train("160MiB");
    let (large, same, silent) = train("2GiB");
    println!("{} of 160 MiB, {} of 2 GiB\n{told}", small >> 20, large >> 20);
    assert!(small <= 160 << 20, "{} MiB", small >> 20);
    assert!(large <= 2 << 30 && large > small + (32 << 20), "{} MiB: more is used where more is allowed", large >> 20);
    assert!(adapter == same, "the same adapter to the bit");
    assert!(told.contains("spilled to disk") && !silent.contains("disk"), "{told}\n{silent}");
    let left: Vec<_> =
        std::fs::read_dir(place.path("160MiB")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("spill")), "{left:?}");
    place.write("recipe.toml", &RECIPE.replace("OUTPUT", "none"));
    let error = place.run(&["finetune", "recipe.toml", "--memory", "100MiB"]).failed();
    assert!(error.contains("can't hold a training step") && error.contains("--memory"), "{error}");
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
    let dense = r#""gate_proj", "up_proj", "down_proj""#;
    let mut worst = 0f64;
    for (name, config, memories) in [
        ("llama of 8 layers", wide("llama", &[]), ["2GiB", "220MiB"]),
        ("llama of 12 layers", long, ["2GiB", "360MiB"]),
        ("mixtral of 8 layers", mixture, ["2GiB", "290MiB"]),
    ] {
        let place = workshop(&config);
        let targets = if name.starts_with("mixtral") { r#""gate", "w1", "w2", "w3""# } else { dense };
        let recipe = RECIPE.replace(dense, targets).replace("rank = 8", "rank = 64");
        for memory in memories {
            place.write("recipe.toml", &recipe.replace("OUTPUT", memory));
            let run = ["finetune", "recipe.toml", "--memory", memory, "--threads", "2"];
            let plan = place.run(&[&run[..], &["--plan"]].concat()).done();
            let (planned, peak) = (planned(&plan), peak_of(place.command(&run)) as f64);
            println!("{name}, {memory}: planned {:.0} MiB, peak {:.0} MiB", planned / 1048576.0, peak / 1048576.0);
            println!("{}", &plan[plan.find("--memory").unwrap()..]);
            worst = worst.max((planned / peak - 1.0).abs());
        }
    }
    assert!(worst <= 0.1, "{worst:.3} off");
}
