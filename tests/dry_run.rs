//! `fireval eval --dry-run` through the binary, on a tiny model, against counts worked by hand.

mod binary;
mod tiny;

use binary::{Workplace, multiple_choice};
use fireval::weights::Dtype;

const TEXTS: &str = r#"name = "texts"
version = 1
metric = "acc"
shots = 0

[data]
folder = "texts"
evaluation = "test"

[prompt]
shape = "generation"
text = "{question}"
target = "{answer}"
max_tokens = 5
stop = ["."]
filters = [{ name = "number", regex = '(-?[0-9]+)', take = "last" }]
"#;

/// The tokenizer has a token a letter: `xyz` is 3, ` d` is 2 (space and letter).
fn workplace() -> Workplace {
    let place = Workplace::new();
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), &tiny::dense_config("llama"), Dtype::F32);
    place.write("choices.toml", &multiple_choice("choices"));
    place.write("texts.toml", TEXTS);
    let row = |question: &str, options: &str| {
        format!("{{\"question\": \"{question}\", \"options\": [{options}], \"answer\": 0}}\n")
    };
    let rows = [row("xyz", r#""d", "de""#), row("xyw", r#""d", "de""#), row("v", r#""b", "c""#)];
    place.write("data/choices/test.jsonl", &rows.concat());
    place.write("data/texts/test.jsonl", "{\"question\": \"xyz\", \"answer\": 1}\n");
    place
}

fn plan(place: &Workplace, tasks: &str, more: &[&str]) -> String {
    place.run(&[&["eval", "model", "--dry-run", "--data", "data", "--tasks", tasks], more].concat()).done()
}

/// The figures of a task's line.
fn figures(shown: &str, task: &str) -> Vec<String> {
    let cells = |line: &str| line.split(['│', '┆']).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let line = shown.lines().map(cells).find(|cells| cells.get(1).is_some_and(|cell| cell == task));
    line.unwrap_or_else(|| panic!("no line of {task} in {shown}"))[2..9].to_vec()
}

#[test]
fn tokens_are_counted_as_by_hand() {
    let place = workplace();
    // xyz: the model sees "xyz " and "xyz d", 4 + 5, of which 5 differ; xyw: 4 + 5, of which 3 are new; v: "v " twice.
    let shown = plan(&place, "choices.toml", &[]);
    assert_eq!(figures(&shown, "choices"), ["3", "6", "22", "10", "10", "0.00 %", "0"], "{shown}");
    // lm-eval answers " b" and " c" after "v" in one go.
    let latest = plan(&place, "choices.toml", &["--protocol", "lm-eval-latest"]);
    assert_eq!(figures(&latest, "choices"), ["3", "6", "20", "10", "10", "0.00 %", "0"], "{latest}");
    assert!(
        shown.contains("leaderboard-v1") && shown.contains("GFLOP/s") && shown.contains("memory: up to"),
        "{shown}"
    );
}

#[test]
fn a_prompt_is_read_apart_and_may_go_on_to_its_limit() {
    let place = workplace();
    // The 3 tokens of the prompt are all known from the other task, and computed again.
    let shown = plan(&place, "choices.toml,texts.toml", &["--threads", "1"]);
    assert_eq!(figures(&shown, "texts"), ["1", "1", "3", "0", "3", "300.00 %", "5"], "{shown}");
    assert_eq!(figures(&shown, "all"), ["4", "7", "25", "10", "13", "30.00 %", "5"], "{shown}");
    assert!(shown.contains("with 1 threads"), "{shown}");
    assert!(!place.path("results").exists(), "nothing is evaluated");
}

#[test]
fn what_is_planned_is_what_is_computed() {
    let place = workplace();
    place.run(&["eval", "model", "--data", "data", "--tasks", "choices.toml", "--memory", "1GiB"]).done();
    let runs = std::fs::read_dir(place.path("results/runs")).unwrap().next().unwrap().unwrap().path();
    let manifest = std::fs::read_to_string(runs.join("leaderboard-v1/choices.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["tokens"], 10);
}

#[test]
fn what_can_not_be_is_said_before_it_is_begun() {
    let place = workplace();
    let eval =
        |more: &[&str]| place.run(&[&["eval", "model", "--data", "data", "--tasks", "texts.toml"], more].concat());
    assert!(eval(&["--memory", "2"]).failed().contains("as 2GiB"));
    assert!(eval(&["--threads", "0"]).failed().contains("at least 1"));
    assert!(eval(&["--decoder", "abacus"]).failed().contains("candle"));
    for dry in [&["--memory", "1MiB"][..], &["--memory", "1MiB", "--dry-run"]] {
        let error = eval(dry).failed();
        assert!(error.contains("1 MiB of memory") && error.contains("--memory"), "{error}");
    }
    let error = place.run(&["eval", "scripted:a", "--dry-run", "--data", "bundled"]).failed();
    assert!(error.contains("no weights"), "{error}");
}
