//! `--memory` is a promise about the process's peak, so it is measured from outside. In a file of its own: the system
//! remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use binary::Workplace;
use fireval::weights::writer::Dtype;
use serde_json::json;

const TASK: &str = r#"name = "long"
version = 1
metric = "acc"
shots = 0

[data]
folder = "long"
evaluation = "test"

[prompt]
shape = "multiple-choice"
text = "{question}"
choices_field = "options"
gold = { index = "answer" }
"#;

/// Bytes of the largest child so far.
fn peak() -> u64 {
    // SAFETY: the kernel fills a plain struct of numbers, whose zeros are valid too.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

#[test]
fn the_budget_is_kept_and_decides_how_much_is_done_at_once() {
    let place = Workplace::new();
    let mut config = tiny::dense_config("llama");
    config["hidden_size"] = json!(256);
    config["intermediate_size"] = json!(512);
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), &config, Dtype::F32);
    place.write("long.toml", TASK);
    // 1,000 documents of about 60 tokens that share nothing.
    let row = |index: usize| {
        let question = format!("{index:04} ").repeat(10);
        format!("{{\"question\": \"{}\", \"options\": [\"a\", \"b\"], \"answer\": 0}}\n", question.trim())
    };
    place.write("data/long/test.jsonl", &(0..1000).map(row).collect::<String>());
    let eval = |memory: &str, results: &str| {
        let args = ["--results", results, "eval", "model", "--data", "data", "--tasks", "long.toml"];
        place.run(&[&args[..], &["--memory", memory, "--threads", "2", "--samples", results]].concat()).done();
        (peak(), place.read(results))
    };
    // From small to large, as the largest is remembered.
    let (small, answers) = eval("176MiB", "small");
    let (large, same) = eval("2GiB", "large");
    println!("{} MiB of 176 MiB, {} MiB of 2 GiB", small >> 20, large >> 20);
    assert!(small <= 176 << 20, "{} MiB", small >> 20);
    assert!(large <= 2 << 30 && large > 300 << 20, "{} MiB: more is used where more is allowed", large >> 20);
    let picks = |samples: &str| {
        samples.lines().map(|line| line.split("metrics").nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(picks(&answers), picks(&same));
}
