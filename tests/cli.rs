//! The binary with the scripted engine, on the bundled slice: what is stored, what is done again, how it ends.

mod binary;

use std::fs;
use std::path::{Path, PathBuf};

use binary::{Ended, Workplace};

const TASKS: &str = "arc_challenge,winogrande";

fn eval(place: &Workplace, model: &str, more: &[&str]) -> Ended {
    place.run(&[&["eval", model, "--data", "bundled", "--tasks", TASKS, "--limit", "5"], more].concat())
}

fn log(place: &Workplace, task: &str) -> PathBuf {
    let runs = place.path("results/runs");
    let model = fs::read_dir(runs).unwrap().next().unwrap().unwrap().path();
    model.join("leaderboard-v1").join(format!("{task}.jsonl"))
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().lines().count()
}

#[test]
fn an_evaluation_is_stored_and_a_second_call_does_nothing_again() {
    let place = Workplace::new();
    let first = eval(&place, "scripted:a", &[]).done();
    assert!(first.contains("ARC") && first.contains("Winogrande") && first.contains("not the benchmark's scores"));
    let (documents, manifest) = (log(&place, "arc_challenge"), log(&place, "arc_challenge").with_extension("json"));
    assert_eq!(lines(&documents), 5);
    let before = (fs::read(&documents).unwrap(), fs::read(&manifest).unwrap());
    // This variant has the same identity and fails as soon as it is asked anything.
    let second = eval(&place, "scripted:a+fails-after-0", &[]).done();
    assert_eq!(second.replace("scripted:a+fails-after-0", "scripted:a").contains("±"), first.contains("±"));
    assert_eq!((fs::read(&documents).unwrap(), fs::read(&manifest).unwrap()), before);
}

#[test]
fn an_interrupted_evaluation_continues_and_ends_alike() {
    let whole = Workplace::new();
    eval(&whole, "scripted:a", &["--samples", "samples.jsonl"]).done();
    let place = Workplace::new();
    let stopped = eval(&place, "scripted:a+fails-after-3", &[]);
    assert_eq!(stopped.code, 2);
    assert!(stopped.stderr.contains("after 3 documents"), "{}", stopped.stderr);
    let documents = log(&place, "arc_challenge");
    assert_eq!(lines(&documents), 3, "what was answered is kept");
    assert!(!documents.with_extension("json").exists(), "no manifest before the end");
    eval(&place, "scripted:a", &["--samples", "samples.jsonl"]).done();
    assert_eq!(lines(&documents), 5);
    assert_eq!(place.read("samples.jsonl"), whole.read("samples.jsonl"));
}

#[test]
fn a_log_cut_at_any_place_is_mended() {
    let place = Workplace::new();
    eval(&place, "scripted:a", &["--samples", "whole.jsonl"]).done();
    let documents = log(&place, "arc_challenge");
    let whole = fs::read(&documents).unwrap();
    let line = whole.iter().position(|&byte| byte == b'\n').unwrap();
    for cut in [0, 1, line / 2, line - 1, line, line + 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&documents, &whole[..cut]).unwrap();
        eval(&place, "scripted:a", &["--samples", "mended.jsonl"]).done();
        assert_eq!(place.read("mended.jsonl"), place.read("whole.jsonl"), "cut at {cut}");
        assert_eq!(lines(&documents), 5, "cut at {cut}");
    }
    let changed = String::from_utf8(whole).unwrap().replacen("\"ll\":-", "\"ll\":-1", 1);
    fs::write(&documents, changed).unwrap();
    let error = eval(&place, "scripted:a", &[]).failed();
    assert!(error.contains("arc_challenge.jsonl, line 1") && error.contains("checksum"), "{error}");
}

#[test]
fn a_larger_limit_asks_only_what_is_new() {
    let place = Workplace::new();
    eval(&place, "scripted:a", &[]).done();
    let small = fs::read(log(&place, "arc_challenge")).unwrap();
    let args = ["eval", "scripted:a", "--data", "bundled", "--tasks", "arc_challenge", "--limit", "8"];
    place.run(&args).done();
    let large = fs::read(log(&place, "arc_challenge")).unwrap();
    assert!(large.starts_with(&small) && lines(&log(&place, "arc_challenge")) == 8);
    // A subject of MMLU shares its documents with the whole.
    place.run(&["eval", "scripted:a", "--data", "bundled", "--tasks", "mmlu", "--limit", "2"]).done();
    let subject = fs::read_to_string(log(&place, "mmlu")).unwrap();
    let subject = subject.lines().next().unwrap().split("\"subtask\":\"").nth(1).unwrap().split('"').next().unwrap();
    let name = format!("mmlu/{subject}");
    let args = ["eval", "scripted:a+fails-after-0", "--data", "bundled", "--tasks", &name, "--limit", "2"];
    place.run(&args).done();
}

#[test]
fn samples_hold_every_document_in_order_also_from_the_store() {
    let place = Workplace::new();
    eval(&place, "scripted:a", &[]).done();
    let tasks = "arc_challenge,gsm8k,truthfulqa";
    let args = [
        "eval",
        "scripted:a",
        "--data",
        "bundled",
        "--tasks",
        tasks,
        "--limit",
        "5",
        "--samples",
        "new/folder/s.jsonl",
    ];
    place.run(&args).done();
    let samples: Vec<serde_json::Value> =
        place.read("new/folder/s.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.len(), 15);
    let prompts = place.run(&["prompts", "arc_challenge", "--data", "bundled", "--limit", "5"]).done();
    for (sample, prompt) in samples.iter().zip(prompts.lines()) {
        let prompt: serde_json::Value = serde_json::from_str(prompt).unwrap();
        assert_eq!((&sample["task"], &sample["doc"]), (&prompt["task"], &prompt["doc"]));
        assert_eq!(sample["requests"].as_array().unwrap().len(), prompt["requests"].as_array().unwrap().len());
        let request = &sample["requests"][0];
        assert!(request["ll"].is_f64() && request["is_greedy"].is_boolean() && request["cont_ids"].is_array());
        assert!(sample["metrics"]["acc_norm"].is_f64() && sample["output"].is_null());
    }
    assert!(samples[5]["output"].as_str().unwrap().contains("####") && samples[5]["metrics"]["acc"].is_f64());
    assert!(samples[10]["metrics"]["mc2"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)));
}

#[test]
fn compare_evaluates_what_is_missing_and_export_never_does() {
    let place = Workplace::new();
    let flags = ["--data", "bundled", "--tasks", TASKS, "--limit", "5"];
    let refused = place.run(&[&["export", "scripted:a", "scripted:b"], &flags[..]].concat()).failed();
    assert!(refused.contains("10 of 10 documents are not scored yet") && refused.contains("fireval eval scripted:a"));
    let csv = place.run(&[&["compare", "scripted:a", "scripted:b", "--format", "csv"], &flags[..]].concat()).done();
    place.run(&[&["export", "scripted:a", "scripted:b", "-o", "t.csv"], &flags[..]].concat()).done();
    assert_eq!(place.read("t.csv"), csv);
    let backwards =
        place.run(&[&["export", "scripted:b", "scripted:a", "--format", "csv"], &flags[..]].concat()).done();
    let delta = |text: &str, model: &str| {
        let line = text.lines().find(|line| line.contains(model) && line.contains(",average,")).unwrap();
        line.split(',').nth(9).unwrap().to_owned()
    };
    let (there, back) = (delta(&csv, "scripted:b"), delta(&backwards, "scripted:a"));
    assert_eq!(there.trim_start_matches(['+', '-']), back.trim_start_matches(['+', '-']));
    assert!(!there.is_empty() && (there != back || there == "0.00"));
}

#[test]
fn the_post_s_table() {
    let place = Workplace::new();
    let models = [
        "published:mistralai/Mixtral-8x7B-v0.1",
        "published:YeungNLP/firefly-mixtral-8x7b-v0.1",
        "published:mistralai/Mixtral-8x7B-Instruct-v0.1",
    ];
    let table = place.run(&[&["compare"], &models[..]].concat()).done();
    let line = |name: &str| table.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{table}"));
    assert!(line("Mixtral-8x7B-v0.1").contains("68.42"));
    assert!(line("firefly").contains("70.34") && line("firefly").contains("+1.92"));
    assert!(line("Instruct").contains("72.62") && line("Instruct").contains("+4.20"));
    let export = place.run(&[&["export", "--format", "markdown"], &models[..]].concat()).done();
    assert!(export.contains("| 70.34 ±0.48 | +1.92 ±0.68 |") && export.contains("published, float16"), "{export}");
    let mixed =
        place.run(&["compare", models[0], "scripted:a", "--data", "bundled", "--limit", "2", "--format", "csv"]).done();
    assert!(mixed.contains(",published,bfloat16,") && mixed.contains(",measured,"), "{mixed}");
}

#[test]
fn a_project_names_models_and_defaults() {
    let place = Workplace::new();
    place.write(
        "work/fireval.toml",
        "[model.gone]\npath = \"models/none\"\n[data]\ndir = \"bundled\"\n\
         [eval]\ntasks = [\"winogrande\"]\nlimit = 3\nprotocol = \"lm-eval-latest\"\n",
    );
    let text = place.run(&["eval", "scripted:a", "--project", "work/fireval.toml"]).done();
    assert!(text.contains("lm-eval-latest") && text.contains("scores of 3 documents"), "{text}");
    assert!(place.path("work/results/runs").exists() && !place.path("results").exists());
    let error = place.run(&["eval", "gone", "--project", "work/fireval.toml"]).failed();
    assert!(error.contains("work/models/none"), "{error}");
    let runs = place.run(&["runs", "--project", "work/fireval.toml"]).done();
    assert!(runs.contains("scripted:a") && runs.contains("winogrande") && runs.contains("3 documents"), "{runs}");
}

#[test]
fn a_task_of_one_s_own_needs_no_rust() {
    let place = Workplace::new();
    let arc = place.run(&["tasks", "arc_challenge"]).done();
    let own = arc.replacen("name = \"arc_challenge\"", "name = \"own\"", 1).replacen("shots = 25", "shots = 0", 1);
    place.write("own.toml", &own);
    let args = ["eval", "scripted:a", "--data", "bundled", "--tasks", "own.toml", "--limit", "3"];
    assert!(place.run(&args).done().contains("acc_norm"));
    assert!(log(&place, "own").exists());
    let prompt = place.run(&["prompts", "own.toml", "--data", "bundled", "--limit", "1"]).done();
    assert_eq!(
        prompt.matches("Question:").count(),
        prompt.matches("\"continuation\"").count(),
        "no examples: {prompt}"
    );
}

#[test]
fn dead_scorers_are_told_and_broken_ones_stop() {
    let place = Workplace::new();
    let args = ["eval", "scripted:a+dead", "--data", "bundled", "--tasks", "arc_challenge", "--limit", "20"];
    let text = place.run(&args).done();
    assert!(text.contains("dead scorer"), "{text}");
    let error = eval(&place, "scripted:a+broken", &[]).failed();
    assert!(error.contains("NaN") && error.contains("arc_challenge, document"), "{error}");
}

#[test]
fn what_a_user_gets_wrong_is_named_with_the_next_step() {
    let place = Workplace::new();
    place.write("bad.toml", "[model.base]\npth = \"x\"\n");
    place.write("typo.toml", "name = \"t\"\nshotz = 3\n");
    place.write("models/pickle/pytorch_model.bin", "x");
    fs::create_dir_all(place.path("empty")).unwrap();
    let bundled = ["--data", "bundled"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["eval", "nothing"], &["no model `nothing`", "fireval.toml"]),
        (&["eval", "empty"], &["empty", "config.json"]),
        (&["eval", "models/pickle"], &["models/pickle", "config.json"]),
        (&["eval", "published:mistralai/Mixtral-8x7B-v0.1"], &["compared but not evaluated"]),
        (&["eval", "scripted:a", "--tasks", "hellaswg"], &["did you mean `hellaswag`"]),
        (&["eval", "scripted:a", "--suite", "openlm"], &["did you mean `openllm`"]),
        (&["eval", "scripted:a", "--tasks", "typo.toml"], &["typo.toml, line 2", "did you mean `shots`"]),
        (&["eval", "scripted:a", "--tasks", "gsm8k,gsm8k"], &["named twice"]),
        (&["eval", "scripted:a", "--limit", "0"], &["at least 1"]),
        (&["eval", "scripted:a", "--limit", "many"], &["whole number"]),
        (&["eval", "scripted:a", "--protocol", "v2"], &["leaderboard-v1"]),
        (&["eval", "scripted:a", "--data", "no/such/folder"], &["no/such/folder"]),
        (&["eval", "scripted:a", "--chat-template"], &["lm-eval-latest"]),
        (&["eval", "scripted:a", "--samples", "typo.toml/s.jsonl"], &["can't write typo.toml/s.jsonl"]),
        (&["eval", "scripted:a", "--dtype", "f64"], &["bf16"]),
        (&["eval", "x", "--project", "bad.toml"], &["bad.toml, line 2", "did you mean `path`"]),
        (&["eval", "x", "--project", "none.toml"], &["none.toml"]),
        (&["compare", "published:mistralai/Mixtral-8x7B-v0.1@8bit"], &["bfloat16, float16, 4bit"]),
        (&["compare", "published:mistral/Mixtral-8x7B-v0.1"], &["did you mean `published:mistralai/"]),
        (&["compare"], &["MODEL"]),
        (&["export", "scripted:a", "--format", "xml"], &["markdown"]),
        (&["finetune", "no-recipe.toml"], &[""]),
        (&["upcycle", "empty", "out"], &["empty"]),
        (&["merge", "scripted:a", "out"], &["no weights"]),
        (&["fetch", "no-organisation"], &["org/name"]),
        (&["show", "arc_challenge", "99999"], &["no document 99999"]),
        (&["tasks", "verify", "--reference", "none"], &["none"]),
        (&["tusks"], &["tasks"]),
        (&[], &["Usage"]),
    ];
    for (args, expected) in cases {
        let takes_data = matches!(args.first(), Some(&("eval" | "show"))) && !args.contains(&"--data");
        let verify = args.contains(&"verify");
        let args = if takes_data || verify { [*args, &bundled[..]].concat() } else { args.to_vec() };
        let error = place.run(&args).failed();
        for part in *expected {
            assert!(error.contains(part), "{args:?}: expected {part:?} in: {error}");
        }
    }
}

#[test]
fn help_and_version_are_no_errors_and_a_closed_pipe_is_none_either() {
    let place = Workplace::new();
    assert!(place.run(&["--help"]).done().contains("compare"));
    assert!(place.run(&["compare", "--help"]).done().contains("published:"));
    assert!(place.run(&["--version"]).done().contains(env!("CARGO_PKG_VERSION")));
    let ended = place.run_into_closed_pipe(&["prompts", "mmlu", "--data", "bundled"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    // Where errors go to one, the code still says that there was one.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.command(&["eval", "nothing"]);
    assert_eq!(command.stderr(writer).status().unwrap().code(), Some(2));
}

#[test]
fn two_at_once_do_not_write_one_log() {
    let place = Workplace::new();
    eval(&place, "scripted:a", &[]).done();
    let held = fs::OpenOptions::new().append(true).open(log(&place, "arc_challenge")).unwrap();
    held.lock().unwrap();
    let args = ["eval", "scripted:a", "--data", "bundled", "--tasks", "arc_challenge", "--limit", "6"];
    assert!(place.run(&args).failed().contains("another fireval"));
    // What is stored may still be read.
    eval(&place, "scripted:a", &[]).done();
    drop(held);
    place.run(&args).done();
}

#[test]
fn show_prints_what_an_engine_is_fed() {
    let place = Workplace::new();
    let line = place.run(&["prompts", "winogrande", "--data", "bundled", "--limit", "1"]).done();
    let prompt: serde_json::Value = serde_json::from_str(&line).unwrap();
    let row = prompt["doc"].to_string();
    let shown = place.run(&["show", "winogrande", &row, "--data", "bundled"]).done();
    for request in prompt["requests"].as_array().unwrap() {
        assert!(shown.contains(request["context"].as_str().unwrap()));
        assert!(shown.contains(&format!("{:?}", request["continuation"].as_str().unwrap())));
    }
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_card_is_refused_by_every_command_of_a_build_without_cuda() {
    let place = Workplace::new();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("finetune/mixtral-8x7b-v100.toml");
    let recipe = recipe.to_str().unwrap();
    for command in [
        &["eval", "scripted:a"][..],
        &["eval", "scripted:a", "--dry-run"],
        &["compare", "scripted:a", "scripted:b"],
        &["export", "scripted:a", "scripted:b"],
        &["flips", "arc_challenge", "scripted:a", "scripted:b"],
        &["finetune", recipe],
        &["recipe", "run", recipe],
        &["merge", "some-model", "out", "--verify"],
    ] {
        let error = place.run(&[command, &["--device", "cuda:0"]].concat()).failed();
        assert!(error.contains("without the feature `cuda`"), "{command:?}: {error}");
        assert!(error.contains("cargo build --release --features cuda"), "{command:?}: {error}");
    }
}

#[test]
fn flags_that_do_not_go_together_name_the_way_out() {
    let place = Workplace::new();
    let error = |flags: &[&str]| eval(&place, "scripted:a", flags).failed();
    assert!(error(&["--device", "cuda:0", "--decoder", "cpu"]).contains("leave one out"));
    assert!(error(&["--device-memory", "8GiB"]).contains("--device cuda:0"));
    assert!(error(&["--device", "cpu", "--device-memory", "8GiB"]).contains("--device cuda:0"));
    assert!(error(&["--device", "gpu"]).contains("as `cuda:0`"));
    eval(&place, "scripted:a", &["--device", "cpu"]).done();
}
