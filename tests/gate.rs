//! The gate through the binary: every exit code, rule, kind of baseline and output, on the scripted engine.

mod binary;

use binary::{Ended, Workplace, multiple_choice};
use serde_json::Value;

const DOCUMENTS: usize = 400;
const OWN: [&str; 4] = ["--tasks", "own.toml", "--data", "data"];
/// A margin that 400 documents can tell, and nothing else.
const MARGIN: &str = "schema = 1\n[average]\nmargin = 4\nconfidence = 0.975\n";

/// A place with a task of its own, and scripted:a's baseline on it in base.json.
fn place() -> Workplace {
    let place = Workplace::new();
    place.write("own.toml", &multiple_choice("own"));
    let row = |i: usize| {
        format!(
            "{{\"question\": \"Is it {i}?\", \"options\": [\"one {i}\", \"two\", \"three\", \"four\"], \"answer\": {}}}\n",
            i % 4
        )
    };
    place.write("data/own/test.jsonl", &(0..DOCUMENTS).map(row).collect::<String>());
    place.write("margin.toml", MARGIN);
    place.run(&[&["baseline", "save", "scripted:a", "-o", "base.json"], &OWN[..]].concat()).done();
    place
}

fn rules(place: &Workplace, more: &str) {
    place.write("rules.toml", &format!("{MARGIN}{more}"));
}

fn gate(place: &Workplace, more: &[&str]) -> Ended {
    place.run(&[&["gate", "--candidate", "scripted:a"], &OWN[..], more].concat())
}

const FILE: [&str; 4] = ["--baseline", "base.json", "--rules", "rules.toml"];

/// Changes the outcomes in base.json, and its score with them: first `gained` wrong answers become right, then `lost` right
/// ones wrong. What the baseline gains the candidate has lost.
fn change(place: &Workplace, gained: usize, lost: usize) {
    let mut baseline: Value = serde_json::from_str(&place.read("base.json")).unwrap();
    let task = &mut baseline["tasks"][0];
    let outcomes = task["subtasks"][0]["outcomes"].as_str().unwrap().to_owned();
    let (mut gained, mut lost) = (gained, lost);
    let changed: String = outcomes
        .chars()
        .map(|outcome| match outcome {
            '0' if gained > 0 => {
                gained -= 1;
                '1'
            }
            '1' if lost > 0 => {
                lost -= 1;
                '0'
            }
            same => same,
        })
        .collect();
    assert_eq!((gained, lost), (0, 0));
    task["score"] = (changed.chars().filter(|&c| c == '1').count() as f64 / DOCUMENTS as f64).into();
    task["subtasks"][0]["outcomes"] = changed.into();
    place.write("base.json", &baseline.to_string());
}

fn last(text: &str) -> &str {
    text.lines().last().unwrap()
}

#[test]
fn the_same_model_passes_and_what_can_be_seen_is_said_first() {
    let place = place();
    rules(&place, "");
    let text = gate(&place, &FILE).done();
    assert!(text.starts_with("with 400 documents this gate sees a loss of "), "{text}");
    assert!(last(&text).starts_with("pass: scripted:a lost less than 4.00 points"), "{text}");
    assert!(text.contains("own      ") || text.contains("average  non-inferior  holds"), "{text}");
}

#[test]
fn a_loss_beyond_the_margin_is_a_regression_even_where_nobody_reads() {
    let place = place();
    rules(&place, "");
    change(&place, 60, 0);
    let ended = gate(&place, &FILE);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert_eq!(last(&ended.stdout), "regression: average (non-inferior)");
    assert!(ended.stdout.contains(": -15.00 ["), "{}", ended.stdout);
    let unread = place.run_into_closed_pipe(&[&["gate", "--candidate", "scripted:a"], &OWN[..], &FILE].concat());
    assert_eq!(unread.code, 1, "a closed pipe is no pass: {}", unread.stderr);
}

#[test]
fn a_loss_about_the_margin_is_open_and_a_significant_one_a_regression() {
    let place = place();
    rules(&place, "");
    change(&place, 28, 12); // four points, the margin
    let ended = gate(&place, &FILE);
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert!(last(&ended.stdout).contains("fireval plan-eval --margin 4.00"), "{}", ended.stdout);
    // McNemar's mid-p of 12 and 28 is 0.011: 0.0056 on one side.
    rules(&place, "[tasks]\nsignificance = 0.006\n");
    let ended = gate(&place, &FILE);
    assert_eq!((ended.code, last(&ended.stdout)), (1, "regression: own (no loss)"), "{}", ended.stdout);
    rules(&place, "[tasks]\nsignificance = 0.005\n");
    assert_eq!(gate(&place, &FILE).code, 3);
}

#[test]
fn a_floor_is_absolute() {
    let place = place();
    rules(&place, "[floors]\nown = 90\n");
    let ended = gate(&place, &FILE);
    assert_eq!((ended.code, last(&ended.stdout)), (1, "regression: own (floor)"));
    rules(&place, "[floors]\nown = 5\n");
    gate(&place, &FILE).done();
    rules(&place, "[floors]\nonw = 5\n");
    assert!(gate(&place, &FILE).failed().contains("rules.toml: [floors] there is no task `onw` (did you mean `own`?)"));
}

#[test]
fn a_gain_too_large_is_suspect() {
    let place = place();
    rules(&place, "[suspect]\naverage_gain = 10\n");
    change(&place, 0, 60);
    let ended = gate(&place, &FILE);
    assert_eq!(ended.code, 1);
    assert!(last(&ended.stdout).starts_with("suspect: average (credible gain); look at"), "{}", ended.stdout);
    rules(&place, "[suspect]\ntask_gain = 20\n");
    gate(&place, &FILE).done();
}

#[test]
fn answers_that_are_all_alike_are_suspect() {
    let place = place();
    rules(&place, "[suspect]\nalike = 0.98\n");
    let dead = ["gate", "--baseline", "scripted:a+dead", "--candidate", "scripted:a+dead", "--rules", "rules.toml"];
    let ended = place.run(&[&dead, &OWN[..]].concat());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("all log-likelihoods are one number in 100.0 % of 400 documents"),
        "{}",
        ended.stdout
    );
    let text = ["gate", "--baseline", "scripted:a+dead", "--candidate", "scripted:a+dead", "--rules", "rules.toml"];
    let bundled = ["--data", "bundled", "--tasks", "gsm8k", "--accept-low-power"];
    let ended = place.run(&[&text[..], &bundled].concat());
    assert!(ended.code == 1 && ended.stdout.contains("the generated text is the same in 100.0 %"), "{}", ended.stdout);
}

#[test]
fn rules_that_claim_more_than_the_documents_tell_are_refused() {
    let place = place();
    place.write("rules.toml", &MARGIN.replace("margin = 4", "margin = 0.5"));
    let refused = gate(&place, &FILE).failed();
    assert!(
        refused.contains("with 400 documents this gate sees a loss of") && refused.contains("--accept-low-power"),
        "{refused}"
    );
    let ended = gate(&place, &[&FILE[..], &["--accept-low-power"]].concat());
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert!(ended.stdout.contains("\n! power "), "{}", ended.stdout);
}

#[test]
fn a_published_row_is_a_baseline_without_pairs() {
    let place = Workplace::new();
    let args = [
        "gate",
        "--baseline",
        "published:mistralai/Mixtral-8x7B-v0.1",
        "--candidate",
        "scripted:a",
        "--data",
        "bundled",
    ];
    let refused = place.run(&args).failed();
    assert!(refused.contains("before evaluating anything: at best, with 260 documents"), "{refused}");
    assert!(!place.path("results/runs").exists(), "and nothing was evaluated");
    let ended = place.run(&[&args[..], &["--accept-low-power"]].concat());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("average (non-inferior)") && ended.stdout.contains("published by the Open LLM"),
        "{}",
        ended.stdout
    );
    let error = place.run(&["gate", "--baseline", "scripted:a", "--candidate", args[2], "--data", "bundled"]).failed();
    assert!(error.contains("the candidate has to be measured here"), "{error}");
}

#[test]
fn a_folder_of_runs_is_a_baseline_without_its_model() {
    let place = place();
    rules(&place, "");
    let runs = std::fs::read_dir(place.path("results/runs")).unwrap().next().unwrap().unwrap().path();
    let runs = runs.to_str().unwrap();
    let args = ["--baseline", runs, "--rules", "rules.toml", "--results", "elsewhere"];
    let text = gate(&place, &args).done();
    assert!(text.contains("scripted:a beside scripted:a"), "{text}");
    assert!(place.path("elsewhere/runs").exists(), "the candidate was evaluated anew");
    let both = ["gate", "--baseline", runs, "--candidate", runs, "--rules", "rules.toml", "--results", "nowhere"];
    place.run(&[&both[..], &OWN].concat()).done();
    assert!(!place.path("nowhere/runs").exists(), "and here nothing was");
}

#[test]
fn stored_runs_alone_are_judged_where_asked() {
    let place = place();
    rules(&place, "");
    gate(&place, &[&FILE[..], &["--stored"]].concat()).done();
    let args = [&["gate", "--candidate", "scripted:b", "--stored"], &OWN[..], &FILE].concat();
    assert!(place.run(&args).failed().contains("400 of 400 documents are not scored yet"));
}

#[test]
fn a_name_is_a_model_whatever_lies_at_a_path_of_that_name() {
    let place = place();
    rules(&place, "");
    place.write("fireval.toml", "[model.\"base.json\"]\npath = \"nowhere\"\n");
    let error = gate(&place, &FILE).failed();
    assert!(error.contains("model `base.json`: there is no nowhere"), "{error}");
    place.write("fireval.toml", "");
    place.write("models/ft/config.json", "{}");
    let error = gate(&place, &["--baseline", "models", "--rules", "rules.toml"]).failed();
    assert!(error.contains("models: no model") && !error.contains("manifest"), "a folder of checkpoints: {error}");
}

#[test]
fn a_file_of_all_documents_asks_all_whatever_the_project_says() {
    let place = place();
    rules(&place, "");
    place.write("fireval.toml", "[eval]\nlimit = 5\n");
    assert!(gate(&place, &FILE).done().starts_with("with 400 documents"));
}

#[test]
fn a_file_says_how_it_was_asked() {
    let place = Workplace::new();
    let save = ["baseline", "save", "scripted:a", "--data", "bundled", "--tasks", "arc_challenge,mmlu", "--limit", "1"];
    let json = place.run(&[&save[..], &["--protocol", "lm-eval-latest"]].concat()).done();
    place.write("base.json", &json);
    place.write("rules.toml", &MARGIN.replace("margin = 4", "margin = 90"));
    let args = ["gate", "--baseline", "base.json", "--candidate", "scripted:a", "--rules", "rules.toml"];
    let ended = place.run(&[&args[..], &["--format", "json", "--accept-low-power"]].concat());
    let value: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(value["protocol"], "lm-eval-latest", "{}", ended.stdout);
    let documents = value["sight"]["documents"].as_u64().unwrap();
    assert!(documents > 1 && documents <= 58, "one of ARC and of each subject: {documents}");
    let other = place.run(&[&args[..], &["--limit", "2", "--accept-low-power"]].concat()).failed();
    assert!(other.contains("ask as many with --limit"), "{other}");
}

#[test]
fn documents_that_were_asked_otherwise_are_refused_before_any_work() {
    let place = place();
    rules(&place, "");
    let data = place.read("data/own/test.jsonl").replace("Is it 7?", "Is it seven?");
    place.write("data/own/test.jsonl", &data);
    let error = gate(&place, &[&FILE[..], &["--results", "elsewhere"]].concat()).failed();
    assert!(error.contains("own document 7 was not asked alike"), "{error}");
    assert!(!place.path("elsewhere/runs").exists());
    place.write("base.json", "{\"kind\": 7}");
    assert!(gate(&place, &FILE).failed().contains("base.json: not a baseline"));
    let error = gate(&place, &["--baseline", "none.json", "--rules", "rules.toml"]).failed();
    assert!(error.contains("can't read the baseline none.json"), "{error}");
}

#[test]
fn junit_and_json_are_the_same_verdict() {
    let place = place();
    rules(&place, "[floors]\nown = 90\n");
    let ended = gate(&place, &[&FILE[..], &["-o", "out/gate.xml"]].concat());
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.starts_with("with 400 documents"), "the text is printed all the same");
    let xml = place.read("out/gate.xml");
    let document = roxmltree::Document::parse(&xml).unwrap();
    let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).unwrap();
    let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
    assert_eq!(
        (suite.attribute("tests"), suite.attribute("failures"), suite.attribute("errors")),
        (Some("2"), Some("1"), Some("0"))
    );
    let failures: Vec<_> =
        cases.iter().filter(|case| case.children().any(|node| node.has_tag_name("failure"))).collect();
    assert_eq!((cases.len(), failures[0].attribute("name")), (2, Some("own: floor")));
    let json = gate(&place, &[&FILE[..], &["--format", "json"]].concat());
    let value: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, value["exit_code"].as_i64(), value["outcome"].as_str()), (1, Some(1), Some("regression")));
    assert_eq!(value["checks"][1]["floor"], 90.0);
}

#[test]
fn an_output_that_can_t_be_written_fails_before_the_work() {
    let place = Workplace::new();
    place.write("file", "");
    let args =
        ["gate", "--baseline", "scripted:a", "--candidate", "scripted:b", "--data", "bundled", "--accept-low-power"];
    let error = place.run(&[&args[..], &["-o", "file/gate.xml"]].concat()).failed();
    assert!(error.contains("can't write file/gate.xml"), "{error}");
    let mut command = place.command(&args);
    command.env("GITHUB_STEP_SUMMARY", place.path("file/summary"));
    assert!(place.end(command).failed().contains("can't write $GITHUB_STEP_SUMMARY"));
    assert!(!place.path("results/runs").exists());
}

#[test]
fn github_gets_lines_and_a_summary() {
    let place = place();
    rules(&place, "[floors]\nown = 90\n");
    place.write("summary.md", "before\n");
    let run = || {
        let mut command = place.command(&[&["gate", "--candidate", "scripted:a"], &OWN[..], &FILE].concat());
        command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", place.path("summary.md"));
        place.end(command)
    };
    let ended = run();
    assert_eq!(ended.code, 1);
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("::")).collect();
    assert_eq!(lines.len(), 1, "{}", ended.stderr);
    assert!(lines[0].starts_with("::error title=fireval gate%3A regression%2C own (floor)::"), "{}", lines[0]);
    let once = place.read("summary.md");
    assert!(once.starts_with("before\n### ❌ fireval gate: regression"), "{once}");
    run();
    assert_eq!(place.read("summary.md").matches("### ❌").count(), 2, "appended");
    let plain = gate(&place, &FILE);
    assert!(!plain.stderr.contains("::"), "not asked for elsewhere: {}", plain.stderr);
}

#[test]
fn a_plan_says_how_many_documents() {
    let place = Workplace::new();
    let text = place.run(&["plan-eval", "--margin", "1.0", "--power", "0.8"]).done();
    assert!(text.contains(": --limit ") && text.contains("Assumed: "), "{text}");
    let ended = place.run(&["plan-eval", "--margin", "0.1"]);
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert!(ended.stdout.contains("takes more than there is: all 28659 documents"), "{}", ended.stdout);
    assert!(place.run(&["plan-eval", "--flips", "8"]).failed().contains("a share of flips"));
}

/// The project's own gate, as `.ci/run` calls it: prompts, counting and the file's format as they were when it was saved.
#[test]
fn the_project_passes_its_own_gate() {
    let place = Workplace::new();
    let fixture = |name: &str| format!("{}/tests/fixtures/gate/{name}", env!("CARGO_MANIFEST_DIR"));
    let (baseline, rules) = (fixture("baseline.json"), fixture("rules.toml"));
    let args = ["gate", "--baseline", &baseline, "--rules", &rules, "--candidate"];
    let text = place.run(&[&args[..], &["scripted:self"]].concat()).done();
    assert!(text.contains(": 0.00 [") && last(&text).starts_with("pass: "), "{text}");
    let other = place.run(&[&args[..], &["scripted:self+dead", "--accept-low-power"]].concat());
    assert_eq!(other.code, 1, "{}", other.stdout);
    assert!(last(&other.stdout).starts_with("suspect: "), "{}", other.stdout);
}

#[allow(dead_code)] // the bench's own printing
#[path = "../benches/gate.rs"]
mod simulation;

/// The promises of the default rules on the whole suite, on a few of the gates that `cargo bench --bench gate` simulates.
/// Seeded, so this passes or fails alike everywhere.
#[test]
fn re_runs_are_left_in_peace_and_a_loss_of_two_points_is_seen() {
    use fireval::gate::plan::Assumed;
    use simulation::{Kind, Loss, simulate};

    const GATES: usize = 30;
    let kind = |assumed, loss, limit| Kind { assumed, loss: Loss::Everywhere(loss), limit };
    let quiet = simulate(kind(Assumed::ReRun, 0.0, None), GATES);
    assert_eq!(quiet.passed, GATES, "{quiet:?}");
    let lost = simulate(kind(Assumed::FineTune, 0.02, None), GATES);
    assert!(lost.regressions * 10 >= GATES * 8, "{lost:?}");
    let small = simulate(kind(Assumed::FineTune, 0.0, Some(20)), GATES);
    assert_eq!(small.refused, GATES, "twenty documents a task tell nothing of one point: {small:?}");
}
