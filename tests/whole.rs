//! Real checkpoints through the binary: identities, an adapter at run time and merged, chat templates, tokens.
//!
//! The model is the tiny Mixtral of the fixtures with a byte-level tokenizer, and one task without examples, so that a
//! document is some hundred tokens.

mod binary;

use std::fs;

use binary::Workplace;
use serde_json::Value;

/// `base`, the same with an adapter, in 4 bits and in bf16, and a task of one's own.
fn workplace() -> Workplace {
    let place = Workplace::new();
    place.tiny_mixtral("base");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        place.fixture(&format!("lora/{name}"), &format!("adapter/{name}"));
    }
    let winogrande = place.run(&["tasks", "winogrande"]).done();
    place.write(
        "short.toml",
        &winogrande.replace("\"winogrande\"\ntitle", "\"short\"\ntitle").replace("shots = 5", "shots = 0"),
    );
    place.write(
        "fireval.toml",
        "[model.base]\npath = \"base\"\n[model.ft]\npath = \"base\"\nadapter = \"adapter\"\n\
         [model.nf4]\npath = \"base\"\nquantization = \"nf4\"\n[model.rounded]\npath = \"base\"\ndtype = \"bf16\"\n\
         [data]\ndir = \"bundled\"\n[eval]\ntasks = [\"short.toml\"]\nlimit = 4\n",
    );
    place
}

fn samples(place: &Workplace, file: &str) -> Vec<Value> {
    place.read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn log_likelihoods(samples: &[Value]) -> Vec<f64> {
    let requests = samples.iter().flat_map(|sample| sample["requests"].as_array().unwrap());
    requests.map(|request| request["ll"].as_f64().unwrap()).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn evaluated(place: &Workplace, model: &str) -> Vec<f64> {
    place.run(&["eval", model, "--samples", "samples.jsonl"]).done();
    log_likelihoods(&samples(place, "samples.jsonl"))
}

#[test]
fn no_model_ever_gets_another_s_answers() {
    let place = workplace();
    let models = ["base", "ft", "nf4", "rounded"];
    let table = place.run(&[&["compare"], &models[..]].concat()).done();
    assert!(table.contains("nf4 in nf4") && table.contains("rounded in bf16"), "{table}");
    assert_eq!(fs::read_dir(place.path("results/runs")).unwrap().count(), 4);
    let answers: Vec<Vec<f64>> = models.iter().map(|model| evaluated(&place, model)).collect();
    for (index, one) in answers.iter().enumerate() {
        for other in &answers[..index] {
            assert!(largest_difference(one, other) > 1e-6);
        }
    }
    // The same files elsewhere, and by path, are the same model.
    fs::rename(place.path("base"), place.path("moved")).unwrap();
    place.run(&["export", "moved"]).done();
    // A changed file is another model.
    let config = place.read("moved/config.json").replace("1000000.0", "2000000.0");
    place.write("moved/config.json", &config);
    assert!(place.run(&["export", "moved"]).failed().contains("not scored yet"));
}

#[test]
fn an_adapter_merged_is_the_adapter_applied() {
    let place = workplace();
    let applied = evaluated(&place, "ft");
    place.run(&["merge", "ft", "merged"]).done();
    let merged = evaluated(&place, "merged");
    assert!(largest_difference(&applied, &merged) < 1e-3, "{applied:?} {merged:?}");
    assert!(largest_difference(&applied, &evaluated(&place, "base")) > 1e-3);
    assert!(place.run(&["merge", "base", "other"]).failed().contains("--adapter"));
    assert!(place.run(&["merge", "ft", "merged"]).failed().contains("merged"));
}

#[test]
fn an_adapter_that_is_not_there_or_does_not_fit_is_named() {
    let place = workplace();
    fs::remove_file(place.path("adapter/adapter_model.safetensors")).unwrap();
    assert!(place.run(&["eval", "ft"]).failed().contains("adapter_model.safetensors"));
    fs::remove_file(place.path("base/model.safetensors")).unwrap();
    assert!(place.run(&["eval", "base"]).failed().contains("base"));
}

#[test]
fn tokens_are_shown_with_what_is_scored() {
    let place = workplace();
    let prompt: Value = serde_json::from_str(&place.run(&["prompts", "short.toml", "--limit", "1"]).done()).unwrap();
    let row = prompt["doc"].to_string();
    let shown = place.run(&["show", "short.toml", &row, "--model", "base"]).done();
    let scored: String = shown.lines().last().unwrap().split('«').nth(1).unwrap().to_owned();
    let samples = {
        place.run(&["eval", "base", "--samples", "samples.jsonl"]).done();
        samples(&place, "samples.jsonl")
    };
    let ids: Vec<u64> = serde_json::from_value(samples[0]["requests"][1]["cont_ids"].clone()).unwrap();
    assert!(scored.starts_with(&format!("{}:", ids[0])), "{scored} {ids:?}");
    assert!(place.run(&["show", "short.toml", &row, "--model", "scripted:a"]).failed().contains("no weights"));
}

#[test]
fn a_chat_template_asks_other_questions() {
    let place = workplace();
    let flags = ["--protocol", "lm-eval-latest", "--samples", "samples.jsonl"];
    place.run(&[&["eval", "base"], &flags[..]].concat()).done();
    let plain = log_likelihoods(&samples(&place, "samples.jsonl"));
    let text = place.run(&[&["eval", "base", "--chat-template"], &flags[..]].concat()).done();
    let chat = log_likelihoods(&samples(&place, "samples.jsonl"));
    assert!(largest_difference(&plain, &chat) > 1e-3, "{text}");
    assert!(place.run(&["runs"]).done().contains("lm-eval-latest chat"));
    place.run(&[&["eval", "base"], &flags[..]].concat()).done();
    assert_eq!(log_likelihoods(&samples(&place, "samples.jsonl")), plain, "both are kept");
    let config = place.read("base/tokenizer_config.json");
    place.write("base/tokenizer_config.json", &config.replace("chat_template", "no_template"));
    let error = place.run(&[&["eval", "base", "--chat-template"], &flags[..]].concat()).failed();
    assert!(error.contains("no chat template"), "{error}");
}
