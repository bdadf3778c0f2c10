//! Models side by side: scores, their average, and the difference to the first model with its standard error.
//!
//! Where both models answered the same documents the difference is paired: its error comes from the differences document
//! by document, which is smaller than that of two unrelated scores because models fail on the same questions (Miller,
//! "Adding Error Bars to Evals", arXiv 2411.00640, section 4.2). Unlike runs are refused. All values are fractions and
//! unrounded; rounding is `report`'s.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use crate::eval::Run;
use crate::protocol::Protocol;
use crate::published::{COLUMNS, Published};
use crate::score::DocScore;
use crate::stats::Estimate;
use crate::task::Task;

/// A model and what is known about it.
#[derive(Clone, Debug)]
pub struct Contender {
    pub model: String,
    pub outcome: Outcome,
}

/// Where scores come from.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A run for each column.
    Measured(Vec<Run>),
    Published(Published),
}

/// Models side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub protocol: Protocol,
    pub columns: Vec<Column>,
    /// The first is what the others differ from.
    pub rows: Vec<Row>,
    /// What a reader has to know to read the numbers.
    pub notes: Vec<String>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub task: String,
    pub title: String,
    pub metric: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Measured,
    Published,
}

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub model: String,
    pub origin: Origin,
    /// How the weights were held: "f32", "nf4", "bfloat16".
    pub held: String,
    /// One for each column; none where nothing was published.
    pub cells: Vec<Option<Cell>>,
    /// None if a cell is.
    pub average: Option<Cell>,
}

/// A score and how far it is from the first model's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub score: f64,
    pub stderr: Option<f64>,
    /// Unknown where only the score was published.
    pub documents: Option<usize>,
    /// None for the first model.
    pub difference: Option<Difference>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub value: f64,
    pub stderr: Option<f64>,
    /// Whether `stderr` was taken document by document.
    pub paired: bool,
}

impl Column {
    pub fn of(task: &Task, protocol: Protocol) -> Column {
        Column {
            task: task.name().to_owned(),
            title: task.title().to_owned(),
            metric: task.metric(protocol).to_owned(),
        }
    }
}

/// Compares `contenders`, each with a run for each of `columns` in that order, with the first of them.
pub fn compare(protocol: Protocol, columns: Vec<Column>, contenders: &[Contender]) -> Result<Comparison> {
    let Some(first) = contenders.first() else { bail!("nothing to compare: name at least one model") };
    check_alike(protocol, contenders)?;
    let mut rows: Vec<Row> = Vec::new();
    for contender in contenders {
        let mut row = plain_row(&columns, contender)?;
        if let Some(baseline) = rows.first() {
            for (column, cell) in row.cells.iter_mut().enumerate() {
                if let (Some(cell), Some(before)) = (cell, &baseline.cells[column]) {
                    cell.difference =
                        Some(difference(protocol, &first.outcome, &contender.outcome, column, before, cell));
                }
            }
            let average_difference = average_difference(baseline, &row);
            if let Some(average) = &mut row.average {
                average.difference = average_difference;
            }
        }
        rows.push(row);
    }
    Ok(Comparison { protocol, columns, rows, notes: notes(contenders) })
}

/// A contender's scores, without differences.
fn plain_row(columns: &[Column], contender: &Contender) -> Result<Row> {
    let (origin, cells): (Origin, Vec<Option<Cell>>) = match &contender.outcome {
        Outcome::Measured(runs) => {
            ensure!(
                runs.len() == columns.len(),
                "{}: {} runs for {} tasks",
                contender.model,
                runs.len(),
                columns.len()
            );
            let cells: Result<_> = runs.iter().map(|run| Ok(Some(cell(run.manifest.reported()?)))).collect();
            (Origin::Measured, cells?)
        }
        Outcome::Published(row) => {
            let cell = |column: &Column| row.score(&column.task).map(published_cell);
            (Origin::Published, columns.iter().map(cell).collect())
        }
    };
    let average = match &contender.outcome {
        Outcome::Measured(runs) => {
            let estimates: Result<Vec<Estimate>> = runs.iter().map(|run| run.manifest.reported()).collect();
            Estimate::macro_mean(&estimates?).map(cell)
        }
        Outcome::Published(row) => published_average(columns, row, &cells),
    };
    Ok(Row { model: contender.model.clone(), origin, held: held(&contender.outcome), cells, average })
}

/// How the weights were held.
fn held(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Measured(runs) => runs.first().map_or(String::new(), |run| {
            let id = &run.manifest.id;
            id.quantization.clone().unwrap_or_else(|| id.dtype.clone())
        }),
        Outcome::Published(row) => row.precision.name().to_owned(),
    }
}

fn cell(estimate: Estimate) -> Cell {
    Cell { score: estimate.value, stderr: estimate.stderr, documents: Some(estimate.n), difference: None }
}

fn published_cell(percent: f64) -> Cell {
    Cell { score: percent / 100.0, stderr: None, documents: None, difference: None }
}

/// Over all six tasks the leaderboard's own average, which it took of unrounded scores; over fewer the mean of what it
/// published.
fn published_average(columns: &[Column], row: &Published, cells: &[Option<Cell>]) -> Option<Cell> {
    if columns.iter().map(|column| column.task.as_str()).eq(COLUMNS.iter().map(|(task, _)| *task)) {
        return Some(published_cell(row.average));
    }
    let scores: Option<Vec<f64>> = cells.iter().map(|cell| cell.map(|cell| cell.score * 100.0)).collect();
    let scores = scores.filter(|scores| !scores.is_empty())?;
    Some(published_cell(scores.iter().sum::<f64>() / scores.len() as f64))
}

fn difference(
    protocol: Protocol,
    first: &Outcome,
    other: &Outcome,
    column: usize,
    before: &Cell,
    after: &Cell,
) -> Difference {
    let value = after.score - before.score;
    match (first, other) {
        (Outcome::Measured(first), Outcome::Measured(other)) => {
            let stderr = paired_stderr(protocol, &first[column], &other[column]);
            Difference { value, stderr, paired: true }
        }
        (Outcome::Published(_), _) | (_, Outcome::Published(_)) => {
            let squares = before.stderr.zip(after.stderr).map(|(a, b)| a * a + b * b);
            Difference { value, stderr: squares.map(f64::sqrt), paired: false }
        }
    }
}

/// The standard error of the mean difference document by document; with subtasks in the way the protocol averages them.
fn paired_stderr(protocol: Protocol, first: &Run, other: &Run) -> Option<f64> {
    let metric = &first.manifest.metric;
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (before, after) in first.scores.iter().zip(&other.scores) {
        let (before_value, after_value) = (before.metrics.get(metric)?, after.metrics.get(metric)?);
        parts.entry(&before.subtask).or_default().push(after_value - before_value);
    }
    let parts: Vec<Estimate> = parts.values().filter_map(|differences| Estimate::mean(differences)).collect();
    let mean = match (&parts[..], protocol) {
        ([only], _) => Some(*only),
        (_, Protocol::LeaderboardV1) => Estimate::macro_mean(&parts),
        (_, Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) => Estimate::micro_mean(&parts),
    };
    mean?.stderr
}

/// The difference of averages; the tasks are strata, so their errors add up as squares.
fn average_difference(baseline: &Row, row: &Row) -> Option<Difference> {
    let value = row.average?.score - baseline.average?.score;
    let differences: Option<Vec<Difference>> =
        row.cells.iter().map(|cell| cell.and_then(|cell| cell.difference)).collect();
    let differences = differences?;
    let squares: Option<f64> = differences.iter().map(|difference| Some(difference.stderr?.powi(2))).sum();
    let stderr = squares.map(|sum| sum.sqrt() / differences.len() as f64);
    Some(Difference { value, stderr, paired: differences.iter().all(|difference| difference.paired) })
}

/// Refuses what can't be compared, with the reason.
fn check_alike(protocol: Protocol, contenders: &[Contender]) -> Result<()> {
    let measured: Vec<(&str, &[Run])> = contenders
        .iter()
        .filter_map(|contender| match &contender.outcome {
            Outcome::Measured(runs) => Some((contender.model.as_str(), &runs[..])),
            Outcome::Published(_) => None,
        })
        .collect();
    for (model, runs) in &measured {
        for run in *runs {
            let (manifest, name) = (&run.manifest, &run.manifest.task);
            ensure!(manifest.protocol == protocol, "{model}, {name}: measured by {}", manifest.protocol.name());
            let published = measured.len() < contenders.len();
            ensure!(
                !published || (protocol == Protocol::LeaderboardV1 && !manifest.chat_template),
                "{model} was measured by {}{}, published rows by {} without one: these are not the same questions",
                protocol.name(),
                if manifest.chat_template { " with a chat template" } else { "" },
                Protocol::LeaderboardV1.name(),
            );
        }
    }
    if let Some(((first, runs), others)) = measured.split_first() {
        for (other, other_runs) in others {
            for (a, b) in runs.iter().zip(*other_runs) {
                if let Some(reason) = unlike(a, b) {
                    bail!("{first} and {other} can't be compared on {}: {reason}", a.manifest.task);
                }
            }
        }
    }
    Ok(())
}

/// Why two runs do not answer the same questions.
fn unlike(a: &Run, b: &Run) -> Option<String> {
    let (left, right) = (&a.manifest, &b.manifest);
    if left.task != right.task {
        return Some(format!("the other run is of {}", right.task));
    }
    if left.definition != right.definition {
        return Some("the task's file changed between the runs".to_owned());
    }
    if left.chat_template != right.chat_template {
        return Some("one run used a chat template".to_owned());
    }
    if a.scores.len() != b.scores.len() {
        return Some(format!("{} documents against {}", a.scores.len(), b.scores.len()));
    }
    // Under a chat template each model sees the same document in its own words.
    let same = |(a, b): (&DocScore, &DocScore)| {
        a.subtask == b.subtask && a.doc == b.doc && (left.chat_template || a.digest == b.digest)
    };
    let differs = a.scores.iter().zip(&b.scores).find(|pair| !same(*pair));
    differs.map(|(a, _)| format!("{} document {} was not asked alike (other rows or other examples)", a.subtask, a.doc))
}

fn notes(contenders: &[Contender]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut published: Vec<String> = Vec::new();
    for Contender { model, outcome } in contenders {
        match outcome {
            Outcome::Measured(runs) => {
                for manifest in runs.iter().map(|run| &run.manifest) {
                    notes.extend(manifest.warnings.iter().map(|text| format!("{model}, {}: {text}", manifest.task)));
                }
            }
            Outcome::Published(row) => published.push(format!("{model} ({})", row.precision.name())),
        }
    }
    if !published.is_empty() {
        notes.push(format!(
            "published by the Open LLM Leaderboard, not measured here, so differences to them are unpaired: {}",
            published.join(", ")
        ));
    }
    notes.extend(partial_note(contenders));
    let measured: Vec<(String, &str)> = contenders
        .iter()
        .filter(|contender| matches!(contender.outcome, Outcome::Measured(_)))
        .map(|contender| (held(&contender.outcome), contender.model.as_str()))
        .collect();
    if measured.iter().any(|(dtype, _)| *dtype != measured[0].0) {
        let list: Vec<String> = measured.iter().map(|(dtype, model)| format!("{model} in {dtype}")).collect();
        notes.push(format!("not held alike: {}", list.join(", ")));
    }
    notes
}

fn partial_note(contenders: &[Contender]) -> Option<String> {
    let runs = contenders.iter().find_map(|contender| match &contender.outcome {
        Outcome::Measured(runs) => Some(runs),
        Outcome::Published(_) => None,
    })?;
    let manifest = runs.iter().map(|run| &run.manifest).find(|manifest| manifest.partial)?;
    let documents: usize = runs.iter().map(|run| run.scores.len()).sum();
    let limit = manifest.limit.map(|limit| format!(", limit {limit}")).unwrap_or_default();
    Some(format!("scores of {documents} documents ({}{limit}): not the benchmark's scores", manifest.data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published;
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
        Column { task: task.to_owned(), title: task.to_owned(), metric: "acc".to_owned() }
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
            compare(Protocol::LeaderboardV1, vec![column("t")], &[measured("a", vec![a]), measured("b", vec![b])])
                .unwrap();
        let difference = found.rows[1].cells[0].unwrap().difference.unwrap();
        // Differences 1, 0, 0, 0: mean 1/4, sum of squares 3/4, variance 1/4, error sqrt(1/4)/2 = 1/4.
        near(difference.value, 0.25);
        near(difference.stderr.unwrap(), 0.25);
        assert!(difference.paired && found.rows[0].cells[0].unwrap().difference.is_none());
        let average = found.rows[1].average.unwrap().difference.unwrap();
        near(average.value, 0.25);
        near(average.stderr.unwrap(), 0.25);
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
        assert_eq!(average(1).difference.unwrap().stderr, None);
        assert_eq!(found.notes.len(), 1);
        assert!(found.notes[0].contains("firefly-mixtral-8x7b-v0.1 (float16)"), "{:?}", found.notes);
    }

    #[test]
    fn published_and_measured_rows_stand_together_unpaired() {
        let runs = vec![run("arc_challenge", "acc", &[("t", 1.0), ("t", 0.0)]), run("own", "acc", &[("t", 1.0)])];
        let columns = vec![column("arc_challenge"), column("own")];
        let found =
            compare(Protocol::LeaderboardV1, columns, &[measured("a", runs), row("mistralai/Mixtral-8x7B-v0.1")])
                .unwrap();
        let published = &found.rows[1];
        assert_eq!((published.origin, published.cells[1], published.average), (Origin::Published, None, None));
        let difference = published.cells[0].unwrap().difference.unwrap();
        near(difference.value, 0.6604 - 0.5);
        assert!(!difference.paired && difference.stderr.is_none());
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
    fn notes_say_what_was_held_differently() {
        let mut other = run("t", "acc", &[("t", 1.0)]);
        other.manifest.id.quantization = Some("nf4".to_owned());
        other.manifest.warnings.push("dead scorer".to_owned());
        let contenders = [measured("a", vec![run("t", "acc", &[("t", 1.0)])]), measured("b", vec![other])];
        let notes = notes(&contenders).join("\n");
        assert!(notes.contains("a in f32, b in nf4") && notes.contains("b, t: dead scorer"), "{notes}");
        assert!(notes.contains("1 documents (bundled slice, limit 8)"), "{notes}");
    }
}
