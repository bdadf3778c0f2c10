//! Comparisons worked by hand, the post's table, and refusals.

use std::collections::BTreeMap;

use super::difference::paired_stderr;
use super::notes::notes;
use super::*;
use crate::published::COLUMNS;
use crate::score::DocScore;
use crate::stats::Estimate;
use crate::store::manifest::tests::manifest;

fn run(task: &str, metric: &str, values: &[(&str, f64)]) -> Run {
    let scores: Vec<DocScore> = values
        .iter()
        .enumerate()
        .map(|(doc, (subtask, value))| DocScore {
            task: task.to_owned(),
            subtask: (*subtask).to_owned(),
            doc,
            digest: format!("{doc}"),
            requests: Vec::new(),
            output: None,
            metrics: BTreeMap::from([(metric.to_owned(), *value)]),
        })
        .collect();
    let values: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    let mut manifest = manifest();
    manifest.task = task.to_owned();
    manifest.metric = metric.to_owned();
    manifest.estimates = BTreeMap::from([(metric.to_owned(), Estimate::mean(&values).unwrap())]);
    Run { title: task.to_owned(), manifest, scores }
}

fn column(task: &str) -> Column {
    let file = if published::size(task).is_some() { TaskFile::BuiltIn } else { TaskFile::Own };
    Column { task: task.to_owned(), title: task.to_owned(), metric: "acc".to_owned(), file }
}

fn measured(model: &str, runs: Vec<Run>) -> Contender {
    Contender { model: model.to_owned(), outcome: Outcome::Measured(runs) }
}

fn row(name: &str) -> Contender {
    Contender { model: name.to_owned(), outcome: Outcome::Published(published::find(name).unwrap()) }
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
}

#[test]
fn differences_are_paired_by_document() {
    let a = run("t", "acc", &[("t", 0.0), ("t", 1.0), ("t", 0.0), ("t", 1.0)]);
    let b = run("t", "acc", &[("t", 1.0), ("t", 1.0), ("t", 0.0), ("t", 1.0)]);
    let found =
        compare(Protocol::LeaderboardV1, vec![column("t")], &[measured("a", vec![a]), measured("b", vec![b])]).unwrap();
    let difference = found.rows[1].cells[0].unwrap().difference.unwrap();
    // Differences 1, 0, 0, 0: mean 1/4, sum of squares 3/4, variance 1/4, error sqrt(1/4)/2 = 1/4.
    near(difference.value, 0.25);
    near(difference.stderr.unwrap(), 0.25);
    assert!(difference.paired && found.rows[0].cells[0].unwrap().difference.is_none());
    let average = found.rows[1].average.unwrap().difference.unwrap();
    near(average.value, 0.25);
    near(average.stderr.unwrap(), 0.25);
    assert_eq!((average.p_value, average.interval), (difference.p_value, difference.interval), "of one task");
}

#[test]
fn few_shares_are_said_to_be_few() {
    let notes_of = |count: u32| {
        let values: Vec<(&str, f64)> = (0..count).map(|doc| ("s", f64::from(doc) / 100.0)).collect();
        let runs = vec![run("s", "mc2", &values), run("t", "acc", &[("t", 1.0), ("t", 0.0)])];
        notes(&[column("s"), column("t")], &[measured("a", runs)]).join("\n")
    };
    assert!(notes_of(39).contains("s: of 39 documents the bootstrap's intervals are too narrow"));
    assert!(!notes_of(40).contains("bootstrap"), "and right or wrong answers have no bootstrap");
}

#[test]
fn subtasks_are_strata_as_the_protocol_weighs_them() {
    let a = run("mmlu", "acc", &[("x", 0.0), ("x", 0.0), ("y", 0.0), ("y", 0.0), ("y", 0.0), ("y", 0.0)]);
    let b = run("mmlu", "acc", &[("x", 1.0), ("x", 0.0), ("y", 1.0), ("y", 0.0), ("y", 0.0), ("y", 0.0)]);
    // x: differences 1, 0: error 1/2. y: 1, 0, 0, 0: error 1/4. Unweighted: sqrt(1/4 + 1/16) / 2.
    near(paired_stderr(Protocol::LeaderboardV1, &a, &b).unwrap(), (0.25_f64 + 0.0625).sqrt() / 2.0);
    // By size: sqrt((1 * 1/4 * 2 + 3 * 1/16 * 4) / (6 - 2) / 6).
    near(paired_stderr(Protocol::LmEvalLatest, &a, &b).unwrap(), (1.25_f64 / 24.0).sqrt());
}

#[test]
fn the_post_s_table() {
    let columns: Vec<Column> = COLUMNS.iter().map(|(task, _)| column(task)).collect();
    let rows = [
        row("mistralai/Mixtral-8x7B-v0.1"),
        row("YeungNLP/firefly-mixtral-8x7b-v0.1"),
        row("mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ];
    let found = compare(Protocol::LeaderboardV1, columns, &rows).unwrap();
    let average = |index: usize| found.rows[index].average.unwrap();
    near(average(0).score, 0.6842);
    near(average(1).score, 0.7034);
    near(average(1).difference.unwrap().value, 0.0192);
    near(average(2).difference.unwrap().value, 0.0420);
    // Two binomial errors a task, six tasks as strata; TruthfulQA's mc2 at its largest possible variance.
    let difference = average(1).difference.unwrap();
    assert!(!difference.paired && difference.holm.is_none() && difference.flips.is_none());
    let interval = difference.interval.unwrap();
    assert!(interval.low > 0.0 && interval.high < 0.05 && interval.contains(0.0192), "{interval:?}");
    let truthfulqa = found.rows[1].cells[3].unwrap().difference.unwrap();
    assert!(truthfulqa.holm.unwrap() < 0.01 && truthfulqa.holm > truthfulqa.p_value);
    let [arc, mmlu] = [0, 2].map(|task| found.rows[0].cells[task].unwrap());
    assert_eq!((arc.correct, arc.documents, mmlu.correct), (Some(774), Some(1172), None));
    assert_eq!(found.notes.len(), 1);
    assert!(found.notes[0].contains("firefly-mixtral-8x7b-v0.1 (float16)"), "{:?}", found.notes);
}

#[test]
fn published_and_measured_rows_stand_together_unpaired() {
    let runs = vec![run("arc_challenge", "acc", &[("t", 1.0), ("t", 0.0)]), run("own", "acc", &[("t", 1.0)])];
    let columns = vec![column("arc_challenge"), column("own")];
    let found =
        compare(Protocol::LeaderboardV1, columns, &[measured("a", runs), row("mistralai/Mixtral-8x7B-v0.1")]).unwrap();
    let published = &found.rows[1];
    assert_eq!((published.origin, published.cells[1], published.average), (Origin::Published, None, None));
    let difference = published.cells[0].unwrap().difference.unwrap();
    near(difference.value, 0.6604 - 0.5);
    // 1/2 of two documents has an error of 1/2, the published score of 1,172 next to none.
    assert!(!difference.paired && (difference.stderr.unwrap() - 0.5).abs() < 0.001);
    assert!(difference.interval.unwrap().contains(0.0) && difference.p_value.unwrap() > 0.3);
}

#[test]
fn unlike_runs_are_refused_with_the_reason() {
    let two = || run("t", "acc", &[("t", 1.0), ("t", 0.0)]);
    let error = |change: &dyn Fn(&mut Run)| {
        let mut other = two();
        change(&mut other);
        let contenders = [measured("a", vec![two()]), measured("b", vec![other])];
        compare(Protocol::LeaderboardV1, vec![column("t")], &contenders).unwrap_err().to_string()
    };
    assert!(error(&|run| run.manifest.protocol = Protocol::LmEvalLatest).contains("lm-eval-latest"));
    assert!(error(&|run| run.manifest.definition = "x".to_owned()).contains("file changed"));
    assert!(error(&|run| run.manifest.chat_template = true).contains("chat template"));
    assert!(error(&|run| run.scores.truncate(1)).contains("2 documents against 1"));
    assert!(error(&|run| run.scores[1].digest = "x".to_owned()).contains("t document 1"));
    let latest = |mut run: Run| {
        run.manifest.protocol = Protocol::LmEvalLatest;
        measured("a", vec![run])
    };
    let mixed = [latest(two()), row("mistralai/Mixtral-8x7B-v0.1")];
    let error = compare(Protocol::LmEvalLatest, vec![column("t")], &mixed).unwrap_err().to_string();
    assert!(error.contains("not the same questions"), "{error}");
    assert!(compare(Protocol::LeaderboardV1, Vec::new(), &[]).is_err());
}

#[test]
fn a_changed_task_file_is_not_the_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    let text = Task::load("arc_challenge", None).unwrap().text().replace("shots = 25", "shots = 24");
    std::fs::write(folder.path().join("arc_challenge.toml"), text).unwrap();
    let of = |name: &str| TaskFile::of(&Task::load(name, Some(folder.path())).unwrap());
    assert_eq!((of("arc_challenge"), of("mmlu/astronomy")), (TaskFile::Changed, TaskFile::BuiltIn));

    let alike = || measured("a", vec![run("arc_challenge", "acc", &[("t", 1.0), ("t", 0.0)])]);
    let changed = || vec![Column { file: TaskFile::Changed, ..column("arc_challenge") }];
    let noise = |columns: Vec<Column>| {
        let found = compare(Protocol::LeaderboardV1, columns, &[alike(), alike()]).unwrap();
        (found.rows[1].cells[0].unwrap().difference.unwrap().in_noise, found.notes)
    };
    assert!(noise(vec![column("arc_challenge")]).0);
    let (in_noise, notes) = noise(changed());
    assert!(!in_noise && notes.iter().any(|note| note.starts_with("arc_challenge: the task file")), "{notes:?}");
    let beside = [alike(), row("mistralai/Mixtral-8x7B-v0.1")];
    let error = compare(Protocol::LeaderboardV1, changed(), &beside).unwrap_err().to_string();
    assert!(error.contains("a, arc_challenge: its task file is not the built-in one"), "{error}");
    assert!(compare(Protocol::LeaderboardV1, vec![column("arc_challenge")], &beside).is_ok());
}

#[test]
fn notes_say_what_was_held_differently() {
    let mut other = run("t", "acc", &[("t", 1.0)]);
    other.manifest.id.quantization = Some("nf4".to_owned());
    other.manifest.warnings.push("dead scorer".to_owned());
    let contenders = [measured("a", vec![run("t", "acc", &[("t", 1.0)])]), measured("b", vec![other])];
    let notes = notes(&[column("t")], &contenders).join("\n");
    assert!(notes.contains("a in f32, b in nf4") && notes.contains("b, t: dead scorer"), "{notes}");
    assert!(notes.contains("1 documents (bundled slice, limit 8)"), "{notes}");
    assert!(notes.contains("4 bits cost") && notes.contains("2.61 points"), "{notes}");
}

#[test]
fn every_cell_has_its_interval_and_every_difference_its_test() {
    let answers = |step: usize| -> Vec<(&str, f64)> {
        (0..400).map(|doc| (if doc < 200 { "x" } else { "y" }, if doc % step == 0 { 0.0 } else { 1.0 })).collect()
    };
    let plain = |step| answers(step).into_iter().map(|(_, value)| ("t", value)).collect::<Vec<_>>();
    let shares = |by: f64| (0..50).map(|doc| ("s", f64::from(doc) / 100.0 + by)).collect::<Vec<_>>();
    let runs = |step, by| {
        vec![run("t", "acc", &plain(step)), run("mmlu", "acc", &answers(step)), run("s", "acc", &shares(by))]
    };
    let contenders = [measured("a", runs(3, 0.0)), measured("b", runs(5, 0.25))];
    let found = compare(Protocol::LeaderboardV1, vec![column("t"), column("mmlu"), column("s")], &contenders).unwrap();
    for row in &found.rows {
        for cell in row.cells.iter().flatten().chain(&row.average) {
            assert!(cell.interval.unwrap().contains(cell.score), "{cell:?}");
        }
    }
    let differences: Vec<Difference> =
        found.rows[1].cells.iter().map(|cell| cell.unwrap().difference.unwrap()).collect();
    // Of 400, every third is 134, every fifth 80, every fifteenth 27: 107 gained, 53 lost.
    let flips = differences[0].flips.unwrap();
    assert_eq!((flips.gained, flips.lost, flips.neither), (107, 53, 27));
    assert_eq!(
        (differences[0].interval.unwrap(), differences[0].p_value),
        (flips.interval(crate::stats::Z), Some(flips.mid_p()))
    );
    assert!(differences[1].interval.unwrap().contains(differences[1].value) && differences[1].flips == Some(flips));
    assert!(differences[2].flips.is_none() && (differences[2].interval.unwrap().low - 0.25).abs() < 1e-12);
    let p_values: Vec<f64> = differences.iter().map(|difference| difference.p_value.unwrap()).collect();
    let holm: Vec<f64> = differences.iter().map(|difference| difference.holm.unwrap()).collect();
    assert_eq!(holm, holm::adjusted(&p_values));
    let origins = why::origins(&found, &contenders);
    let average = found.rows[1].average.unwrap().difference.unwrap();
    near(origins[0].tasks.iter().map(|share| share.change).sum(), average.value);
    let subjects: Vec<&str> = origins[0].subtasks.iter().map(|share| share.name.as_str()).collect();
    assert!(subjects.len() == 2 && subjects.contains(&"mmlu/x"), "{subjects:?}");
    near(origins[0].subtasks.iter().map(|share| share.change).sum(), differences[1].value / 3.0);
    let (Outcome::Measured(a), Outcome::Measured(b)) = (&contenders[0].outcome, &contenders[1].outcome) else {
        panic!()
    };
    let flipped = why::flips(("a", &a[0]), ("b", &b[0])).unwrap();
    assert!(flipped.len() == 160 && flipped[0].index == 3 && (flipped[0].before, flipped[0].now) == (0.0, 1.0));
    assert!(why::flips(("a", &a[0]), ("b", &b[1])).is_err());
    let nearly = [run("t", "acc", &[("t", 0.3), ("t", 0.5)]), run("t", "acc", &[("t", 0.1 + 0.2), ("t", 0.6)])];
    let flipped = why::flips(("a", &nearly[0]), ("b", &nearly[1])).unwrap();
    assert!(flipped.len() == 1 && flipped[0].index == 1, "0.1 + 0.2 is 0.3: {flipped:?}");
}
