//! A model card's metadata, read back by two readers of YAML that did not write it.

mod binary;

use std::fs;
use std::path::Path;
use std::process::Command;

use binary::Workplace;
use fireval::rows::Rows;
use yaml_rust2::{Yaml, YamlLoader};

const TASKS: &str = "arc_challenge,gsm8k";
/// When the runs were made, for all that their manifests say.
const RUN_ON: &str = "2024-02-29T12:00:00Z";

/// A folder of made-up rows, as many as the benchmarks have, and `scripted:a` scored on it.
fn scored() -> Workplace {
    let place = Workplace::new();
    let arc = |row: usize| {
        let options = r#"{"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]}"#;
        format!("{{\"question\": \"Number {row}?\", \"choices\": {options}, \"answerKey\": \"C\"}}\n")
    };
    let sum = |row: usize| format!("{{\"question\": \"{row} + 1?\", \"answer\": \"That is\\n#### {}\"}}\n", row + 1);
    place.write("rows/arc_challenge/train.jsonl", &(0..30).map(arc).collect::<String>());
    place.write("rows/arc_challenge/test.jsonl", &(30..30 + 1172).map(arc).collect::<String>());
    place.write("rows/gsm8k/train.jsonl", &(0..9).map(sum).collect::<String>());
    place.write("rows/gsm8k/test.jsonl", &(9..9 + 1319).map(sum).collect::<String>());
    place.run(&["eval", "scripted:a", "--data", "rows", "--tasks", TASKS]).done();
    for task in TASKS.split(',') {
        let manifest = fs::read_dir(place.path("results/runs")).unwrap().next().unwrap().unwrap().path();
        let manifest = manifest.join(format!("leaderboard-v1/{task}.json"));
        let mut run: serde_json::Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        run["date"] = RUN_ON.into();
        fs::write(&manifest, run.to_string()).unwrap();
    }
    place
}

fn export(place: &Workplace, more: &[&str]) -> binary::Ended {
    let args = ["export", "scripted:a", "--data", "rows", "--tasks", TASKS, "--format"];
    place.run(&[&args[..], more].concat())
}

fn parse(text: &str) -> Yaml {
    YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}")).remove(0)
}

/// Scores by task, as the table has them.
fn scores(place: &Workplace) -> Vec<f64> {
    let rows = Rows::csv("table.csv".to_owned(), export(place, &["csv"]).done().as_bytes()).unwrap();
    (0..2).map(|index| rows.get(index).unwrap()["score"].as_f64().unwrap()).collect()
}

#[test]
fn a_card_holds_the_table_s_digits() {
    let place = scored();
    let scores = scores(&place);
    let card = ["model-card", "--name", "some-org/ft: x", "--source", "https://example.org/runs", "--output", "card"];
    assert!(export(&place, &card).done().contains("model-index.yaml"));
    let index = parse(&place.read("card/model-index.yaml"));
    let model = &index["model-index"][0];
    assert_eq!(model["name"].as_str(), Some("some-org/ft: x"), "a name that needs quotes");
    let results = model["results"].as_vec().unwrap();
    assert_eq!(results.len(), 2);
    let named = [("AI2 Reasoning Challenge (25-Shot)", 25), ("GSM8k (5-shot)", 5)];
    for ((result, score), (name, shots)) in results.iter().zip(&scores).zip(named) {
        let metric = &result["metrics"][0];
        assert_eq!(metric["value"].as_f64(), Some(*score));
        assert_eq!(metric["verified"].as_bool(), Some(false));
        assert_eq!(result["task"]["type"].as_str(), Some("text-generation"));
        assert_eq!(result["dataset"]["name"].as_str(), Some(name));
        assert_eq!(result["dataset"]["args"]["num_few_shot"].as_i64(), Some(shots));
        assert_eq!(result["source"]["url"].as_str(), Some("https://example.org/runs"));
    }
    let file = parse(&place.read("card/.eval_results/gsm8k.yaml"));
    let entry = &file[0];
    assert_eq!(entry["dataset"]["id"].as_str(), Some("openai/gsm8k"));
    assert_eq!(entry["dataset"]["task_id"].as_str(), Some("gsm8k"));
    assert_eq!(entry["value"].as_f64(), Some(scores[1]));
    assert_eq!(entry["date"].as_str(), Some(RUN_ON), "a string, and when it was run, not when it was exported");
    assert!(entry["notes"].as_str().unwrap().contains("5-shot, acc, 1319 documents, 95 % interval ["), "{entry:?}");
    assert!(place.path("card/.eval_results/arc_challenge.yaml").exists());
}

#[test]
fn the_block_on_standard_output_is_the_file_s() {
    let place = scored();
    export(&place, &["model-card", "--output", "card"]).done();
    assert_eq!(export(&place, &["model-card"]).done(), place.read("card/model-index.yaml"));
}

#[test]
fn python_s_reader_finds_the_same() {
    let python = |script: &str, file: &Path| Command::new("python3").arg("-c").arg(script).arg(file).output();
    let place = scored();
    export(&place, &["model-card", "--output", "card"]).done();
    match python("import yaml", Path::new("")) {
        Ok(output) if output.status.success() => {}
        Ok(_) | Err(_) => return eprintln!("skipped: python3 has no PyYAML"),
    }
    for name in ["card/model-index.yaml", "card/.eval_results/arc_challenge.yaml", "card/.eval_results/gsm8k.yaml"] {
        let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1], encoding='utf-8'))))";
        let output = python(script, &place.path(name)).unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        // JSON is YAML, so one reader can read what both found.
        let theirs = parse(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(theirs, parse(&place.read(name)), "{name}");
    }
}

#[test]
fn what_a_card_can_t_say_is_refused() {
    let place = scored();
    let bundled = ["--data", "bundled", "--tasks", "winogrande", "--limit", "8"];
    place.run(&[&["eval", "scripted:a"], &bundled[..]].concat()).done();
    let card = ["export", "scripted:a", "--format", "model-card", "--output", "part"];
    let error = place.run(&[&card[..], &bundled[..]].concat()).failed();
    assert!(error.contains("8 documents (bundled slice) are not the benchmark"), "{error}");
    assert!(!place.path("part").exists(), "nothing is written");
    place.run(&[&card[..], &["--allow-partial"], &bundled[..]].concat()).done();
    let block = place.read("part/model-index.yaml");
    assert!(block.contains("# PARTIAL") && block.contains("Winogrande (5-shot), 8 documents only"), "{block}");

    // Fewer rows than the benchmark has are a part of it, whoever cut them.
    let rows = place.read("rows/gsm8k/test.jsonl");
    place.write("rows/gsm8k/test.jsonl", &rows.split_inclusive('\n').take(7).collect::<String>());
    let cut = ["--data", "rows", "--tasks", "gsm8k"];
    let text = place.run(&[&["eval", "scripted:a"], &cut[..]].concat()).done();
    assert!(text.contains("scores of 7 documents (rows): not the benchmark's scores"), "{text}");
    let error = place.run(&[&card[..], &cut[..]].concat()).failed();
    assert!(error.contains("scripted:a, gsm8k: 7 documents (rows) are not the benchmark"), "{error}");
    place.write("rows/gsm8k/test.jsonl", &rows);

    assert!(export(&place, &["csv", "--allow-partial"]).failed().contains("go with --format model-card"));
    let two = ["export", "scripted:a", "scripted:a", "--data", "rows", "--tasks", TASKS, "--format", "model-card"];
    assert!(place.run(&two).failed().contains("of one model, not of 2"));
    let row = ["export", "published:mistralai/Mixtral-8x7B-v0.1", "--data", "rows", "--format", "model-card"];
    assert!(place.run(&row).failed().contains("row of the leaderboard"));
    fs::write(place.path("taken"), "").unwrap();
    assert!(export(&place, &["model-card", "--output", "taken"]).failed().contains("taken"));
}
