//! `fireval samples`: the same prompts answered by each model, in any company the same, and shown in a report.

mod binary;
mod tiny;

use std::path::Path;

use binary::{Ended, Workplace};
use fireval::weights::Dtype;
use serde_json::{Value, json};

const PROJECT: &str = "[model.one]\npath = \"one\"\n[model.two]\npath = \"two\"\n[model.plain]\npath = \"plain\"\n";

/// Two tiny models with a chat template, and one without.
fn place() -> Workplace {
    let place = Workplace::new();
    for (name, model_type) in [("one", "llama"), ("two", "qwen2"), ("plain", "llama")] {
        let mut config = tiny::dense_config(model_type);
        config["vocab_size"] = json!(512);
        std::fs::create_dir(place.path(name)).unwrap();
        tiny::write_folder(&place.path(name), &config, Dtype::F32);
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level").join(file);
            std::fs::copy(fixture, place.path(name).join(file)).unwrap();
        }
    }
    place.write("plain/tokenizer_config.json", "{\"eos_token\": \"<|im_end|>\"}");
    place.write("fireval.toml", PROJECT);
    place.write("prompts.txt", "Why?\nHow so?\nWhen?\n");
    place
}

fn samples(place: &Workplace, models: &[&str], more: &[&str]) -> Ended {
    place.run(&[&["samples"], models, &["--prompts", "prompts.txt", "--max-tokens", "12"], more].concat())
}

/// The answers of each prompt.
fn answers(text: &str) -> Vec<Value> {
    let sheet: Value = serde_json::from_str(text).unwrap();
    sheet["prompts"].as_array().unwrap().iter().map(|prompt| prompt["answers"].clone()).collect()
}

#[test]
fn a_seed_draws_the_same_answer_in_any_company_and_home() {
    let place = place();
    let json = |more: &[&str]| answers(&samples(&place, &["one"], &[&["--format", "json"], more].concat()).done());
    let greedy = json(&[]);
    let drawn = json(&["--temperature", "0.9", "--seed", "5"]);
    assert_eq!((greedy.len(), drawn.len()), (3, 3));
    assert_ne!(greedy, drawn);
    assert_ne!(drawn, json(&["--temperature", "0.9", "--seed", "6"]));
    assert_eq!(greedy, json(&["--temperature", "1e-6"]), "next to nothing but the likeliest token is drawn");
    assert_eq!(greedy, json(&["--temperature", "0.9", "--top-p", "1e-9"]), "and in the smallest nucleus");
    let seeded = ["--temperature", "0.9", "--seed", "5", "--top-p", "0.95"];
    let all = json(&seeded);
    assert_eq!(all, json(&[&seeded[..], &["--threads", "1"]].concat()));
    let lone = |home: &[&str]| {
        place.write("prompts.txt", "How so?\n");
        let lone = json(&[&seeded[..], home].concat());
        place.write("prompts.txt", "Why?\nHow so?\nWhen?\n");
        lone
    };
    assert_eq!(lone(&[]), all[1..2], "alone as beside others");
    assert_eq!(lone(&["--decoder", "candle"]), all[1..2], "the other home draws the same from f32 logits");
}

#[test]
fn answers_are_kept_and_a_report_shows_them() {
    let place = place();
    let text = samples(&place, &["one", "two"], &["--save", "kept/answers.json"]).done();
    assert!(text.starts_with("greedy, at most 12 tokens") && text.contains("2. How so?"), "{text}");
    let markdown = samples(&place, &["one", "two"], &["--format", "markdown"]).done();
    assert!(markdown.contains("### 3. When?\n\n| one | two |\n| --- | --- |\n"), "{markdown}");
    let flags = ["--data", "bundled", "--tasks", "winogrande", "--limit", "2"];
    place.run(&[&["compare", "one", "two"], &flags[..]].concat()).done();
    let report = ["report", "one", "two", "--samples", "kept/answers.json"];
    place.run(&[&report[..], &flags[..]].concat()).done();
    let page = place.read("report.html");
    let kept: Value = serde_json::from_str(&place.read("kept/answers.json")).unwrap();
    assert!(page.contains("<section id=\"samples\">") && page.contains("1. Why?") && page.contains("12 tokens"));
    assert_eq!(kept["models"][1]["model"], "two");
    // Another model by that name has not said this.
    let other = [&report[..], &flags[..], &["--dtype", "f16"]].concat();
    place.run(&[&["compare", "one", "two", "--dtype", "f16"], &flags[..]].concat()).done();
    assert!(place.run(&other).failed().contains("one has changed since it answered"));
    let error = place.run(&[&["report", "one", "two", "--samples", "prompts.txt"], &flags[..]].concat()).failed();
    assert!(error.contains("prompts.txt: no answers that `fireval samples --save` wrote"), "{error}");
}

#[test]
fn what_can_t_be_asked_is_named_before_any_work() {
    let place = place();
    let error = samples(&place, &["one", "plain"], &[]).failed();
    assert!(error.contains("model `plain`") && error.contains("--template-of"), "{error}");
    samples(&place, &["plain"], &["--template-of", "one"]).done();
    assert!(
        samples(&place, &["plain"], &["--template-of", "plain"]).failed().contains("neither its tokenizer nor that")
    );
    assert!(samples(&place, &["one"], &["--top-p", "0.5"]).failed().contains("--temperature"));
    assert!(samples(&place, &["one"], &["--temperature", "0"]).failed().contains("above 0"));
    assert!(samples(&place, &["one"], &["--save", "one"]).failed().contains("it is a folder"));
    place.write("prompts.txt", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n{\"prompt\": \"x\"}\n");
    assert!(samples(&place, &["one"], &[]).failed().contains("prompts.txt, line 2"));
    place.write("prompts.txt", "\n");
    assert!(samples(&place, &["one"], &[]).failed().contains("has no prompt"));
}
