//! lm-evaluation-harness' files, both ways, against files that version 0.4.13 made itself with a model that answers as
//! `scripted:a` does (`tests/fixtures/lm-eval/make.py`).

mod binary;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use binary::Workplace;
use serde_json::Value;

/// A run of the harness: its folder, our tasks, the protocol.
const RUNS: [(&str, &str, &str); 5] = [
    ("arc", "arc_challenge", "lm-eval-latest"),
    ("hellaswag", "hellaswag", "lm-eval-latest"),
    ("others", "winogrande,truthfulqa,gsm8k", "lm-eval-latest"),
    ("mmlu", "mmlu", "lm-eval-latest"),
    ("openllm", "winogrande", "lm-eval-latest-openllm"),
];

/// One results file and the samples beside it, by the harness's task.
struct Files {
    results: Value,
    samples: BTreeMap<String, Vec<Value>>,
}

impl Files {
    fn read(folder: &Path) -> Files {
        let mut files = Files { results: Value::Null, samples: BTreeMap::new() };
        for path in
            fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).map(|e| e.unwrap().path())
        {
            let (name, text) = (path.file_name().unwrap().to_str().unwrap(), fs::read_to_string(&path).unwrap());
            if name.starts_with("results_") && name.ends_with(".json") {
                files.results = serde_json::from_str(&text).unwrap();
            } else {
                let task = name.strip_prefix("samples_").unwrap().rsplit_once('_').unwrap().0;
                let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
                files.samples.insert(task.to_owned(), lines.collect());
            }
        }
        assert!(files.results.is_object() && !files.samples.is_empty(), "{}", folder.display());
        files
    }
}

fn fixtures(run: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm-eval").join(run)
}

/// Where `ours` has another value than `theirs`; numbers may differ by rounding.
fn differences(place: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for key in ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key))) {
                let value =
                    |of: &serde_json::Map<String, Value>| of.get(key).cloned().unwrap_or(Value::from("nothing"));
                differences(&format!("{place}.{key}"), &value(ours), &value(theirs), found);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                differences(&format!("{place}[{index}]"), ours, theirs, found);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            if (a - b).abs() > 1e-12 * b.abs().max(1e-12) {
                found.push(format!("{place}: {a} and {b}"));
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{place}: {a} and {b}")),
    }
}

fn assert_alike(place: &str, ours: &Value, theirs: &Value) {
    let mut found = Vec::new();
    differences(place, ours, theirs, &mut found);
    assert!(found.is_empty(), "ours and theirs differ:\n{}", found.join("\n"));
}

/// What every run here is asked with.
fn flags<'a>(data: &'a str, tasks: &'a str, protocol: &'a str) -> Vec<&'a str> {
    vec!["--data", data, "--tasks", tasks, "--protocol", protocol, "--limit", "2"]
}

/// Evaluates `scripted:a` and exports it into `out`.
fn exported(place: &Workplace, data: &str, tasks: &str, protocol: &str) -> Files {
    let flags = flags(data, tasks, protocol);
    place.run(&[&["eval", "scripted:a"], &flags[..]].concat()).done();
    let folder = fs::read_dir(place.path("results/runs")).unwrap().next().unwrap().unwrap().path().join(protocol);
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().unwrap() == "json" {
            let mut run: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            run["date"] = Value::from("2024-02-29T12:00:00Z");
            fs::write(&path, run.to_string()).unwrap();
        }
    }
    let export = ["export", "scripted:a", "--format", "lm-eval", "--output", "out"];
    let listed = place.run(&[&export[..], &flags[..]].concat()).done();
    assert!(listed.lines().all(|line| line.contains("_2024-02-29T12-00-00.json")), "when it was run: {listed}");
    assert!(listed.lines().all(|line| place.path(line).exists()), "{listed}");
    Files::read(&place.path("out/scripted__a"))
}

#[test]
fn an_export_is_what_the_harness_writes() {
    for (run, tasks, protocol) in RUNS {
        let (ours, theirs) = (exported(&Workplace::new(), "bundled", tasks, protocol), Files::read(&fixtures(run)));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<String>>();
        assert_eq!(keys(&ours.results), keys(&theirs.results), "{run}");
        for key in ["results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples"] {
            let (mut ours, mut theirs) = (ours.results[key].clone(), theirs.results[key].clone());
            // The group openllm has no score of its own; nothing is lost without it.
            for of in [&mut ours, &mut theirs] {
                of.as_object_mut().map(|of| of.remove("openllm"));
            }
            assert_alike(&format!("{run}.{key}"), &ours, &theirs);
        }
        assert_eq!(ours.results["date"], Value::from(1_709_208_000.0), "{run}");
        for key in keys(&theirs.results["config"]) {
            assert!(ours.results["config"].get(&key).is_some(), "{run}: no config.{key}");
        }
        for (task, config) in ours.results["configs"].as_object().unwrap() {
            let theirs = &theirs.results["configs"][task];
            for (key, value) in config.as_object().unwrap().iter().filter(|(key, _)| *key != "metadata") {
                match key.as_str() {
                    "metric_list" => assert_eq!(value[0]["metric"], theirs[key][0]["metric"], "{task}"),
                    _ => assert_alike(&format!("{run}.configs.{task}.{key}"), value, &theirs[key]),
                }
            }
        }
        assert_eq!(ours.samples.keys().collect::<Vec<_>>(), theirs.samples.keys().collect::<Vec<_>>(), "{run}");
        for (task, lines) in &ours.samples {
            assert_eq!(lines.len(), theirs.samples[task].len(), "{task}");
            for (line, (ours, theirs)) in lines.iter().zip(&theirs.samples[task]).enumerate() {
                assert_same_sample(&format!("{task} line {line}"), ours, theirs);
            }
        }
    }
}

/// The bundled rows have fewer columns, so other hashes of the whole row.
fn assert_same_sample(place: &str, ours: &Value, theirs: &Value) {
    for (key, value) in ours["doc"].as_object().unwrap() {
        assert_alike(&format!("{place}.doc.{key}"), value, &theirs["doc"][key]);
    }
    let without_row = |sample: &Value| {
        let mut sample = sample.as_object().unwrap().clone();
        assert!(sample.remove("doc").is_some() && sample.remove("doc_hash").is_some(), "{place}");
        Value::Object(sample)
    };
    assert_alike(place, &without_row(ours), &without_row(theirs));
}

#[test]
fn with_whole_rows_every_hash_is_the_harness_s() {
    let Ok(data) = std::env::var("FIREVAL_DATA") else { return eprintln!("skipped: FIREVAL_DATA is not set") };
    for (run, tasks, protocol) in RUNS {
        let (ours, theirs) = (exported(&Workplace::new(), &data, tasks, protocol), Files::read(&fixtures(run)));
        for (task, lines) in &theirs.samples {
            if let Some(mine) = ours.samples.get(task) {
                assert_alike(task, &mine.clone().into(), &lines.clone().into());
                assert_alike(task, &ours.results["task_hashes"][task], &theirs.results["task_hashes"][task]);
            }
        }
        assert!(theirs.samples.keys().any(|task| ours.samples.contains_key(task)), "{run}");
    }
}

#[test]
fn what_the_harness_never_asks_is_not_exported() {
    let place = Workplace::new();
    let flags = ["--data", "bundled", "--tasks", "arc_challenge", "--limit", "2"];
    place.run(&[&["eval", "scripted:a"], &flags[..]].concat()).done();
    let export = ["export", "scripted:a", "--format", "lm-eval"];
    let error = place.run(&[&export[..], &["--output", "out"], &flags[..]].concat()).failed();
    assert!(error.contains("--protocol lm-eval-latest") && !place.path("out").exists(), "{error}");
    let error = place.run(&[&export[..], &flags[..]].concat()).failed();
    assert!(error.contains("--output DIR"), "{error}");
}

/// The results file of a run of the harness, copied to where it can be changed.
fn copied(place: &Workplace, run: &str) -> String {
    let mut results = String::new();
    for path in fs::read_dir(fixtures(run)).unwrap().map(|entry| entry.unwrap().path()) {
        let name = format!("{run}/{}", path.file_name().unwrap().to_str().unwrap());
        place.write(&name, &fs::read_to_string(&path).unwrap());
        if name.ends_with(".json") {
            results = name;
        }
    }
    results
}

fn import(place: &Workplace, results: &str, more: &[&str]) -> binary::Ended {
    place.run(&[&["import", results, "--name", "harness", "--data", "bundled"], more].concat())
}

#[test]
fn an_import_goes_by_the_file_s_own_rules() {
    let text = Workplace::new().run(&["import", "--help"]).done();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("[default: those that the file was made by]"), "{text}");
    assert!(!text.contains("[default: leaderboard-v1]"), "{text}");
}

/// Differences, documents, gains and losses of the last model, a line a task, from a comparison as CSV.
fn paired(csv: &str) -> Vec<[String; 5]> {
    let rows = fireval::rows::Rows::csv("table.csv".to_owned(), csv.as_bytes()).unwrap();
    let row = |index: usize| {
        let row = rows.get(index).unwrap();
        ["task", "documents", "delta", "gained", "lost"].map(|key| row[key].to_string().trim_matches('"').to_owned())
    };
    (rows.len() / 2..rows.len()).map(row).collect()
}

fn assert_no_difference(csv: &str, documents: &[(&str, &str)]) {
    let found = paired(csv);
    assert_eq!(found.len(), documents.len() + 1, "{csv}");
    for (line, (task, count)) in found.iter().zip(documents) {
        let [found_task, found_count, delta, gained, lost] = line;
        assert_eq!((found_task.as_str(), found_count.as_str()), (*task, *count), "{csv}");
        assert_eq!(delta.parse::<f64>(), Ok(0.0), "{csv}");
        let unflipped = [gained, lost].iter().all(|count| *count == "0" || *task == "truthfulqa");
        assert!(unflipped, "paired by document: {csv}");
    }
}

const SIX: &str = "arc_challenge,hellaswag,mmlu,truthfulqa,winogrande,gsm8k";

#[test]
fn the_harness_s_own_files_pair_with_our_run_document_by_document() {
    let place = Workplace::new();
    for (run, ..) in RUNS.iter().filter(|(.., protocol)| *protocol == "lm-eval-latest") {
        let results = copied(&place, run);
        assert!(import(&place, &results, &[]).done().contains("imported:harness  lm-eval-latest  "), "{run}");
    }
    let flags = flags("bundled", SIX, "lm-eval-latest");
    let compare = ["compare", "scripted:a", "imported:harness", "--format", "csv"];
    let csv = place.run(&[&compare[..], &flags].concat()).done();
    let counts = [
        ("arc_challenge", "2"),
        ("hellaswag", "2"),
        ("mmlu", "12"),
        ("truthfulqa", "2"),
        ("winogrande", "2"),
        ("gsm8k", "2"),
    ];
    assert_no_difference(&csv, &counts);
    place.run(&["runs", "--verify"]).done();
    let listed = place.run(&["runs"]).done();
    assert_eq!(listed.lines().filter(|line| line.starts_with("imported:harness  ")).count(), 6, "{listed}");
    let flips = ["flips", "mmlu", "scripted:b", "imported:harness", "--documents", "2", "--protocol", "lm-eval-latest"];
    let eval = [&["eval", "scripted:b"], &flags[..]].concat();
    place.run(&eval).done();
    let text = place.run(&[&flips[..], &["--data", "bundled"]].concat()).done();
    assert!(text.contains("imported:harness: "), "{text}");
}

#[test]
fn a_run_comes_back_from_its_export_without_a_difference() {
    let place = Workplace::new();
    let flags = ["--data", "bundled", "--tasks", SIX, "--protocol", "lm-eval-latest", "--limit", "3"];
    place.run(&[&["eval", "scripted:b"], &flags[..]].concat()).done();
    place.run(&[&["export", "scripted:b", "--format", "lm-eval", "--output", "out"], &flags[..]].concat()).done();
    let folder = place.path("out/scripted__b");
    let results = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let results = results.into_iter().find(|path| path.extension().unwrap() == "json").unwrap();
    let import = |place: &Workplace| place.run(&["import", results.to_str().unwrap(), "--data", "bundled"]).done();
    assert!(import(&place).contains("imported:scripted:b  lm-eval-latest  mmlu  acc "));
    let compare = ["compare", "scripted:b", "imported:scripted:b", "--format", "csv"];
    let csv = place.run(&[&compare[..], &flags[..]].concat()).done();
    let counts = [
        ("arc_challenge", "3"),
        ("hellaswag", "3"),
        ("mmlu", "18"),
        ("truthfulqa", "3"),
        ("winogrande", "3"),
        ("gsm8k", "3"),
    ];
    assert_no_difference(&csv, &counts);
    // Twice is once.
    let logs = || {
        let runs = fs::read_dir(place.path("results/runs")).unwrap().map(|entry| entry.unwrap().path());
        let of_import = runs.into_iter().filter(|path| path.to_str().unwrap().contains("imported"));
        let files = of_import.flat_map(|path| fs::read_dir(path.join("lm-eval-latest")).unwrap());
        files.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    };
    let before: BTreeMap<PathBuf, Vec<u8>> = logs();
    assert_eq!(before.len(), 12, "a log and a manifest for each task");
    import(&place);
    assert_eq!(logs(), before);
}

#[test]
fn examples_drawn_otherwise_are_another_protocol() {
    let place = Workplace::new();
    let results = copied(&place, "openllm");
    let error = import(&place, &results, &["--protocol", "lm-eval-latest"]).failed();
    assert!(error.contains("line 2: `arguments` are not what lm-eval-latest asks of row 1 of winogrande"), "{error}");
    let text = import(&place, &results, &[]).done();
    assert!(text.contains("imported:harness  lm-eval-latest-openllm  winogrande"), "{text}");
    let flags = flags("bundled", "winogrande", "lm-eval-latest-openllm");
    let compare = ["compare", "scripted:a", "imported:harness", "--format", "csv"];
    assert_no_difference(&place.run(&[&compare[..], &flags].concat()).done(), &[("winogrande", "2")]);
}

#[test]
fn what_does_not_fit_is_refused_by_file_line_and_key() {
    let place = Workplace::new();
    let results = copied(&place, "others");
    let original = place.read(&results);
    let refused = |from: &str, to: &str| {
        assert!(original.contains(from), "{from}");
        place.write(&results, &original.replace(from, to));
        let error = import(&place, &results, &[]).failed();
        place.write(&results, &original);
        assert!(error.contains(&results), "{error}");
        error
    };
    assert!(refused("\"gsm8k\": 5,", "\"gsm8k\": 0,").contains("--num_fewshot 5"));
    let error = refused("\"gsm8k\": 3.0", "\"gsm8k\": 2.0");
    assert!(error.contains("`versions.gsm8k`: version 2.0") && error.contains("knows 3"), "{error}");
    assert!(refused("\"chat_template\": null", "\"chat_template\": \"x\"").contains("`chat_template`"));
    assert!(refused("\"system_instruction\": null", "\"system_instruction\": \"x\"").contains("`system_instruction`"));
    assert!(refused("\"results\": {", "\"result\": {").contains("`results`"));
    assert!(refused("\"lm_eval_version\"", "\"version\"").contains("`lm_eval_version`"));

    let samples = results.replace("results_", "samples_gsm8k_").replace(".json", ".jsonl");
    let original = place.read(&samples);
    let refused = |change: &dyn Fn(&str) -> String| {
        place.write(&samples, &change(&original));
        let error = import(&place, &results, &[]).failed();
        assert!(error.contains(&samples), "{error}");
        error
    };
    let first_line = |text: &str| text.split_inclusive('\n').next().unwrap().to_owned();
    assert!(refused(&|text| text[..text.len() - 9].to_owned()).contains("line 4: not a line of JSON"));
    assert!(refused(&first_line).contains("1 documents, where"));
    assert!(refused(&|text| text.replace("\"doc_id\": 1,", "\"doc_id\": 7,")).contains("--samples picked"));
    let error = refused(&|text| text.replace("Question: ", "Question:  "));
    assert!(error.contains("line 1: `arguments` are not what lm-eval-latest asks of row 0 of gsm8k"), "{error}");
    let error = refused(&|text| text.replace("\"<|im_end|>\"", "\"<end>\""));
    assert!(error.contains("line 1: `arguments.gen_args_0.arg_1`") && error.contains("--gen_kwargs"), "{error}");
    let error = refused(&|text| text.replacen("\"exact_match\": 0.0", "\"exact_match\": 1.0", 1));
    assert!(error.contains("line 1: `exact_match,strict-match` is 1, and its answers count 0"), "{error}");
    fs::remove_file(place.path(&samples)).unwrap();
    assert!(import(&place, &results, &[]).failed().contains("--log_samples"));
    assert!(!place.path("results/runs").exists(), "nothing was stored");
    place.write("elsewhere/samples_gsm8k_x.jsonl", &original);
    import(&place, &results, &["--samples", "elsewhere/samples_gsm8k_x.jsonl"]).done();
}

#[test]
fn a_name_stands_for_one_model_and_its_answers() {
    let place = Workplace::new();
    let results = copied(&place, "openllm");
    import(&place, &results, &[]).done();
    let file = place.read(&results);
    place.write(&results, &file.replace("test/scripted-a", "test/other"));
    assert!(import(&place, &results, &[]).failed().contains("imported:harness is another model already"));
    place.write(&results, &file);
    let samples = results.replace("results_", "samples_winogrande_").replace(".json", ".jsonl");
    place.write(&samples, &place.read(&samples).replace("\"False\"", "\"True\""));
    let error = import(&place, &results, &[]).failed();
    assert!(error.contains("winogrande document 0 was answered otherwise"), "{error}");

    let more = ["compare", "imported:harness", "--data", "bundled", "--tasks", "winogrande", "--limit", "3"];
    let error = place.run(&[&more[..], &["--protocol", "lm-eval-latest-openllm"]].concat()).failed();
    assert!(error.contains("1 of 3 documents") && error.contains("not in what was imported"), "{error}");
    let eval = ["eval", "imported:harness", "--data", "bundled", "--protocol", "lm-eval-latest-openllm"];
    assert!(place.run(&eval).failed().contains("compared but not evaluated"));
    let error = place.run(&["compare", "imported:other", "--data", "bundled"]).failed();
    assert!(error.contains("nothing was imported as imported:other (there is imported:harness)"), "{error}");
}

#[test]
fn other_tasks_of_the_file_are_left_out_aloud() {
    let place = Workplace::new();
    let results = copied(&place, "openllm");
    place.write(&results, &place.read(&results).replace("\"configs\": {", "\"configs\": {\n\"ifeval\": {},"));
    assert!(import(&place, &results, &[]).done().contains("left out, since fireval has no such tasks: ifeval\n"));
    place.write(
        &results,
        &place.read(&results).replace("\"winogrande\": {\n      \"task\"", "\"x\": {\n      \"task\""),
    );
    let error = import(&place, &results, &[]).failed();
    assert!(error.contains("none of its tasks (ifeval, x) is one of the six"), "{error}");
}
