//! `--memory` is a promise about the process's peak, so it is measured from outside. In a file of its own: the system
//! remembers the largest of all children.
#![cfg(target_os = "linux")]

mod binary;
mod tiny;

use binary::{Workplace, multiple_choice, peak};
use fireval::weights::Dtype;
use serde_json::json;

#[test]
fn the_budget_is_kept_and_decides_how_much_is_done_at_once() {
    let place = Workplace::new();
    let mut config = tiny::dense_config("llama");
    config["hidden_size"] = json!(256);
    config["intermediate_size"] = json!(512);
    std::fs::create_dir(place.path("model")).unwrap();
    tiny::write_folder(&place.path("model"), &config, Dtype::F32);
    place.write("long.toml", &multiple_choice("long"));
    // 1,000 documents of about 60 tokens that share nothing.
    let row = |index: usize| {
        let question = format!("{index:04} ").repeat(10);
        format!("{{\"question\": \"{}\", \"options\": [\"a\", \"b\"], \"answer\": 0}}\n", question.trim())
    };
    place.write("data/long/test.jsonl", &(0..1000).map(row).collect::<String>());
    let eval = |decoder: &str, memory: &str| {
        let results = format!("{decoder}-{memory}");
        let flags = ["--data", "data", "--tasks", "long.toml", "--threads", "2", "--samples", "samples.jsonl"];
        let run = ["--results", &results, "eval", "model", "--decoder", decoder, "--memory", memory];
        place.run(&[&run[..], &flags].concat()).done();
        (peak(), place.read("samples.jsonl"))
    };
    // From small to large, as the largest is remembered.
    let (own, _) = eval("cpu", "176MiB");
    let (small, answers) = eval("candle", "176MiB");
    let (large, same) = eval("candle", "2GiB");
    println!("own kernels {} and candle {} of 176 MiB; candle {} of 2 GiB", own >> 20, small >> 20, large >> 20);
    assert!(own.max(small) <= 176 << 20, "{} and {} MiB", own >> 20, small >> 20);
    assert!(large <= 2 << 30 && large > 300 << 20, "{} MiB: more is used where more is allowed", large >> 20);
    let picks = |samples: &str| -> Vec<String> {
        samples.lines().map(|line| line.split("metrics").nth(1).unwrap().to_owned()).collect()
    };
    assert_eq!(picks(&answers), picks(&same));
}
