//! `fireval dialogues` through the binary, on small files.

mod binary;

use std::path::Path;

use binary::Workplace;
use serde_json::{Value, json};

/// The first question of the bundled slice of TruthfulQA that is long enough to be known by itself.
fn benchmark_question() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tasks/data/truthfulqa/mc_validation.jsonl");
    let rows = std::fs::read_to_string(path).unwrap();
    let mut questions =
        rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["question"].as_str().unwrap().to_owned());
    questions.find(|question| question.split_whitespace().count() > 8 && question.ends_with('?')).unwrap()
}

fn row(turns: &[&str]) -> String {
    json!({"data": turns}).to_string()
}

const TALK: &str = "The museum opens at nine in the morning, and on Sundays you can look at the paintings for free.";

/// A folder with the small tokenizer, which has a chat template.
fn with_model(files: &[(&str, &str)]) -> Workplace {
    let place = Workplace::new();
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        place.write(&format!("model/{name}"), &std::fs::read_to_string(stored.join(name)).unwrap());
    }
    place.write("model/config.json", "{}");
    files.iter().for_each(|(name, text)| place.write(name, text));
    place
}

#[test]
fn check_names_lines_and_shows_what_is_learnt() {
    let good = row(&["When does it open?", TALK]);
    let place = with_model(&[("good.jsonl", &good), ("bad.jsonl", &format!("{good}\n{{\"data\": 7}}\n{good}\n"))]);
    let shown = place.run(&["dialogues", "check", "good.jsonl", "--model", "model"]).done();
    assert!(shown.contains("1 dialogues of 1 rows") && shown.contains("eng 1 (100 %)"), "{shown}");
    assert!(shown.contains(&format!("«{TALK}<|im_end|>»")), "{shown}");
    let bad = place.run(&["dialogues", "check", "bad.jsonl"]);
    assert_eq!(bad.code, 1, "{}", bad.stderr);
    let told = "refused: `[data.limits] malformed` allows 0 % of the rows, and 1 of 3 (33.3 %) are rows that are no \
                dialogue: bad.jsonl, line 2: `data` is not a list";
    assert!(bad.stdout.contains(told), "{}", bad.stdout);
    assert!(bad.stdout.contains("bad.jsonl, line 3: of bad.jsonl, line 1"), "{}", bad.stdout);
}

#[test]
fn check_writes_mask_and_findings_as_json() {
    let place = with_model(&[("good.jsonl", &row(&["Hi", "Hello there."]))]);
    let args = ["dialogues", "check", "good.jsonl", "--model", "model", "--as", "mistral", "--format", "json"];
    let json: Value = serde_json::from_str(&place.run(&args).done()).unwrap();
    let tokens = json["samples"][0]["examples"][0].as_array().unwrap();
    let learnt: Vec<&Value> = tokens.iter().filter(|token| token["learnt"] == true).collect();
    assert_eq!(json["tokens"]["learnt"], learnt.len());
    assert_eq!(json["tokens"]["tokens"], tokens.len());
    assert_eq!(learnt.last().unwrap()["token"], "<|im_end|>");
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.len() == 10 && findings.iter().all(|finding| finding["rows"] == 0), "{json}");
}

#[test]
fn check_follows_a_recipe() {
    let recipe = include_str!("../finetune/rehearsal-cpu.toml")
        .replace(
            "data = [\"finetune/data/oasst1_en.jsonl\"]",
            "data.files = [\"good.jsonl\"]\ndata.limits.duplicates = 0.0",
        )
        .replace("models/base", "model");
    let good = row(&["When does it open?", TALK]);
    let place = with_model(&[("recipe.toml", &recipe), ("good.jsonl", &good)]);
    let shown = place.run(&["dialogues", "check", "--recipe", "recipe.toml"]).done();
    assert!(shown.contains("of at most 256"), "{shown}");
    place.write("good.jsonl", &format!("{good}\n{good}\n"));
    let told = place.run(&["dialogues", "check", "--recipe", "recipe.toml"]);
    assert!(told.code == 1 && told.stdout.contains("`[data.limits] duplicates` allows 0 %"), "{}", told.stdout);
    // Training refuses the same before it looks at a weight.
    let told = place.run(&["finetune", "recipe.toml"]).failed();
    assert!(told.contains("`[data.limits] duplicates` allows 0 %") && told.contains("line 2"), "{told}");
}

#[test]
fn filter_writes_what_stays_and_reports_what_goes() {
    let question = benchmark_question();
    let rows = [
        row(&["When does it open?", TALK]),
        row(&[
            "Tell me, please:",
            "As an AI language model, I would rather not tell you anything about it at all, friend.",
        ]),
        row(&[
            &format!("I was asked this today: {question}"),
            "That is a good one. Let me think about it for a while.",
        ]),
        row(&["When does it open?", &format!("{TALK} Do.")]),
    ];
    let place = Workplace::new();
    place.write("in.jsonl", &(rows.join("\n") + "\n"));
    let args =
        ["dialogues", "filter", "in.jsonl", "--output", "out.jsonl", "--data", "bundled", "--removed", "gone.jsonl"];
    let table = place.run(&args).done();
    assert_eq!(place.read("out.jsonl"), format!("{}\n", rows[0]), "{table}");
    assert!(table.contains("1 of 4 rows stay (25 %)"), "{table}");
    assert!(table.contains("in.jsonl, line 3: truthfulqa document") && table.contains(&question[..40]), "{table}");
    let gone: Vec<Value> = place.read("gone.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rules: Vec<(u64, &str)> =
        gone.iter().map(|row| (row["line"].as_u64().unwrap(), row["rule"].as_str().unwrap())).collect();
    assert_eq!(rules, [(2, "refusals"), (3, "contamination"), (4, "duplicates")]);
    let all = [&args[..7], &["--without", "refusals,contamination,duplicates", "--format", "json"]].concat();
    let json: Value = serde_json::from_str(&place.run(&all).done()).unwrap();
    assert_eq!((json["kept"].as_u64(), json["rules"][3]["what"].as_str()), (Some(4), Some("off")));
    assert_eq!(place.read("out.jsonl").lines().count(), 4);
}

#[test]
fn filter_refuses_what_it_cannot_do() {
    let place = Workplace::new();
    place.write("in.jsonl", &row(&["a", "b"]));
    place.write("deep/other.jsonl", "");
    std::os::unix::fs::symlink("in.jsonl", place.path("link.jsonl")).unwrap();
    let failed = |args: &[&str]| place.run(&[&["dialogues", "filter", "in.jsonl"], args].concat()).failed();
    assert!(failed(&["--output", "in.jsonl"]).contains("one of the files that are read"));
    for same in ["./in.jsonl", "deep/../in.jsonl", "new/../in.jsonl", "link.jsonl"] {
        let told = failed(&["--output", "new/out.jsonl", "--removed", same]);
        assert!(told.contains(&format!("--removed {same} is one of the files that are read")), "{told}");
    }
    assert!(failed(&["--output", "out.jsonl", "--removed", "./out.jsonl"]).contains("what --output writes"));
    let told = failed(&["--output", "out.jsonl", "--min-words", "9", "--max-words", "8"]);
    assert!(told.contains("--min-words 9 is above --max-words 8"), "{told}");
    assert!(place.read("in.jsonl") == row(&["a", "b"]) && !place.path("new").exists(), "nothing is touched");
    assert!(failed(&["--output", "out.parquet"]).contains("a .jsonl file"));
    assert!(failed(&["--output", "in.jsonl/out.jsonl", "--without", "contamination"]).contains("in.jsonl/out.jsonl"));
    assert!(failed(&["--output", "out.jsonl", "--data", "none"]).contains("--without contamination"));
    assert!(failed(&["--output", "out.jsonl", "--language", "english"]).contains("unknown language"));
    assert!(failed(&["--output", "out.jsonl", "--similarity", "2"]).contains("a share from 0 to 1"));
    std::fs::remove_file(place.path("in.jsonl")).unwrap();
    let told = failed(&["--output", "out.jsonl", "--removed", "gone.jsonl", "--without", "contamination"]);
    assert!(told.contains("in.jsonl") && !told.contains("can't write"), "{told}");
    assert!(!place.path("out.jsonl").exists());
}

#[test]
fn formats_stand_side_by_side() {
    let place = with_model(&[("some.jsonl", &format!("\n{}\n", row(&["Hello, how are you today?", "I am fine."])))]);
    let shown = place.run(&["dialogues", "formats", "some.jsonl", "--model", "model", "--line", "2"]).done();
    for told in ["firefly-mistral: ", "firefly-mixtral: ", "mistral: ", "chat-template: ", "first difference → "] {
        assert!(shown.contains(told), "{shown}");
    }
    let args = ["dialogues", "formats", "some.jsonl", "--model", "model", "--line", "2", "--format", "json"];
    let json: Value = serde_json::from_str(&place.run(&args).done()).unwrap();
    let ids = |format: usize| -> Vec<u64> {
        let tokens = json["formats"][format]["tokens"].as_array().unwrap();
        tokens.iter().map(|token| token["id"].as_u64().unwrap()).collect()
    };
    assert!(json["formats"][0]["first_difference"].is_null());
    for format in 1..4 {
        let Some(at) = json["formats"][format]["first_difference"].as_u64() else {
            assert_eq!(ids(0), ids(format));
            continue;
        };
        assert_eq!(ids(0)[..at as usize], ids(format)[..at as usize]);
        assert_ne!(ids(0).get(at as usize), ids(format).get(at as usize));
    }
    assert_ne!(ids(0), ids(3), "ChatML is another format");
    let told = place.run(&["dialogues", "formats", "some.jsonl", "--model", "model", "--line", "1"]).failed();
    assert!(told.contains("some.jsonl has no row on line 1"), "{told}");
}
