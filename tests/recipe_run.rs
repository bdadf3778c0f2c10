//! `fireval recipe run`: from dialogues to a report, on a tiny model; called again it does nothing again.

mod binary;
mod tiny;

use binary::{Workplace, multiple_choice};
use fireval::digest::sha256_file;
use serde_json::Value;

fn workshop() -> Workplace {
    let place = Workplace::new();
    tiny::write_trainable(&place.path(""));
    let row = |index: usize| {
        format!("{{\"question\": \"Say {index}.\", \"options\": [\"a\", \"b\"], \"answer\": {}}}\n", index % 2)
    };
    place.write("data/words/test.jsonl", &(0..30).map(row).collect::<String>());
    place.write("words.toml", &multiple_choice("words"));
    place
}

const RUN: [&str; 7] = ["recipe", "run", "recipe.toml", "--tasks", "words.toml", "--data", "data"];

#[test]
fn a_recipe_runs_to_its_report_and_once() {
    let place = workshop();
    let shown = place.run(&RUN).done();
    assert!(shown.contains("4 steps") && shown.contains("words") && shown.contains("tuned"), "{shown}");
    let manifest: Value = serde_json::from_str(&place.read("tuned/manifest.json")).unwrap();
    for list in ["inputs", "outputs"] {
        let files = manifest[list].as_array().unwrap();
        assert_eq!(files.len(), if list == "inputs" { 2 } else { 5 }, "{manifest:#}");
        for file in files {
            let path = place.path(file["path"].as_str().unwrap());
            assert_eq!(file["sha256"], sha256_file(&path).unwrap(), "{}", path.display());
        }
    }
    assert!(manifest["tuned"]["adapter"].is_string() || manifest["tuned"]["adapter"].is_object(), "{manifest:#}");
    assert_ne!(manifest["base"], manifest["tuned"]);
    let report = place.read("tuned/report.md");
    assert!(place.read("tuned/README.md").contains(report.trim()), "the card has the table");
    assert!(place.read("tuned/report.csv").contains("tuned"));
    let log = place.read("tuned/train_log.jsonl");
    let again = place.run(&RUN).done();
    assert_eq!(again, shown);
    assert_eq!((place.read("tuned/train_log.jsonl"), place.read("tuned/report.md")), (log, report));
}

#[test]
fn a_changed_recipe_is_refused_unless_told() {
    let place = workshop();
    place.run(&RUN).done();
    place.write("recipe.toml", &tiny::RECIPE.replace("steps = 4", "steps = 6"));
    let error = place.run(&RUN).failed();
    assert!(error.contains("belongs to another run") && error.contains("--accept-changes"), "{error}");
    let shown = place.run(&[&RUN[..], &["--accept-changes"]].concat()).done();
    assert!(shown.contains("6 steps"), "{shown}");
}

#[test]
fn what_is_missing_is_named() {
    let place = workshop();
    place.write("recipe.toml", &tiny::RECIPE.replace("dialogues.jsonl", "none.jsonl"));
    assert!(place.run(&RUN).failed().contains("none.jsonl"));
    place.write("recipe.toml", &tiny::RECIPE.replace("model = \"model\"", "model = \"scripted:exact\""));
    assert!(!place.run(&RUN).failed().is_empty());
}

#[test]
fn a_model_that_is_trained_whole_stands_alone_and_is_compared_by_name() {
    let place = workshop();
    let recipe = tiny::RECIPE.replace("rank = 4\nalpha = 8\ntargets = [\"q_proj\", \"v_proj\"]\n", "");
    place.write("recipe.toml", &recipe.replace("[lora]", "[full]"));
    let error = place.run(&RUN).failed();
    assert!(error.contains("--decoder candle"), "{error}");
    let run = [&RUN[..], &["--decoder", "candle"]].concat();
    let shown = place.run(&run).done();
    assert!(shown.contains("4 steps") && shown.contains("model, trained in") && shown.contains("tuned"), "{shown}");
    let manifest: Value = serde_json::from_str(&place.read("tuned/manifest.json")).unwrap();
    assert!(manifest["tuned"]["adapter"].is_null(), "{manifest:#}");
    assert_ne!(manifest["base"]["weights"], manifest["tuned"]["weights"]);
    let files: Vec<&str> =
        manifest["outputs"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert!(files.contains(&"tuned/model.safetensors") && files.contains(&"tuned/config.json"), "{files:?}");
    assert!(place.read("tuned/README.md").contains("library_name: transformers"));

    // Every tensor has moved, and the kernels' home opens what came out.
    let tensors = |folder: &str| std::fs::read(place.path(folder).join("model.safetensors")).unwrap();
    let (before, after) = (tensors("model"), tensors("tuned"));
    let [before, after] = [&before, &after].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(before.len(), after.len());
    for (name, tensor) in before.tensors() {
        assert_ne!(tensor.data(), after.tensor(&name).unwrap().data(), "{name}");
    }
    place.write("fireval.toml", "[model.base]\npath = \"model\"\n[model.ft]\npath = \"tuned\"\n");
    let compared = place.run(&["compare", "base", "ft", "--tasks", "words.toml", "--data", "data"]).done();
    assert!(compared.contains("base") && compared.contains("ft"), "{compared}");
}

#[test]
fn a_model_with_an_adapter_is_not_trained_without_it() {
    let place = workshop();
    let models = "[model.plain]\npath = \"model\"\n[model.adapted]\npath = \"model\"\nadapter = \"tuned\"\n";
    place.write("fireval.toml", models);
    let named = |name: &str| tiny::RECIPE.replace("model = \"model\"", &format!("model = \"{name}\""));
    place.write("recipe.toml", &named("adapted"));
    let [train, plan] = [&["finetune", "recipe.toml"][..], &["finetune", "--plan", "recipe.toml"]];
    for command in [train, plan, &RUN, &["upcycle", "adapted", "mixture"], &["quantize", "adapted", "small"]] {
        let told = place.run(command).failed();
        assert!(told.contains("model `adapted` has an adapter; merge it first"), "{command:?}: {told}");
    }
    place.write("recipe.toml", &named("plain"));
    place.run(train).done();
    let config: Value = serde_json::from_str(&place.read("tuned/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "model", "what others find, not this project's name");
}

#[test]
fn a_model_that_scoring_refuses_is_not_trained() {
    let place = workshop();
    let written = place.read("model/config.json");
    let told = |key: &str, value: Value| {
        let mut config: Value = serde_json::from_str(&written).unwrap();
        config["max_position_embeddings"] = 32.into();
        config[key] = value;
        place.write("model/config.json", &config.to_string());
        place.run(&["finetune", "recipe.toml"]).failed()
    };
    let error = told("num_hidden_layers", 1.into());
    assert!(error.contains("`model.layers.1.") && error.contains("has no place in the model"), "{error}");
    let error = told("rope_scaling", serde_json::json!({"type": "dynamic", "factor": 2.0}));
    assert!(error.contains("`max_tokens` 64 is above the model's max_position_embeddings 32"), "{error}");
}
