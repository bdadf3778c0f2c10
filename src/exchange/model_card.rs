//! A model's scores as the hub reads them: `model-index` in the YAML block of a model card (hub-docs, `modelcard.md`), and
//! `.eval_results/*.yaml` (hub-docs, `eval_results.yaml` and `docs/hub/eval-results.md`, as of August 2026).
//!
//! Values are percentages with the table's digits, and data sets carry the names that the Open LLM Leaderboard wrote into
//! cards in 2023 and 2024. A card has no room for "on 8 documents", so scores of a part of a benchmark are refused, or
//! marked in every place that a reader or a parser looks at.

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::known::known;
use super::yaml;
use crate::compare::TaskFile;
use crate::eval::Run;
use crate::project::IMPORTED;
use crate::protocol::Protocol;
use crate::report::{Figure, Table, one_line};
use crate::store::Manifest;
use crate::task::Task;

/// How a card is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// What the card calls the model, instead of the name it was measured by.
    pub name: Option<String>,
    /// Where the runs can be looked at; the hub takes no source without one.
    pub source: Option<Source>,
    /// Write scores of a part of a benchmark, marked as such.
    pub allow_partial: bool,
}

/// Where a result can be looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    pub url: String,
    pub name: String,
}

/// A model's scores, ready to be written.
#[derive(Clone, Debug)]
pub struct Card {
    head: Vec<String>,
    index: ModelIndex,
    files: Vec<(String, EvalResult)>,
}

#[derive(Clone, Debug, Serialize)]
struct ModelIndex {
    #[serde(rename = "model-index")]
    models: [IndexedModel; 1],
}

#[derive(Clone, Debug, Serialize)]
struct IndexedModel {
    name: String,
    results: Vec<IndexedResult>,
}

#[derive(Clone, Debug, Serialize)]
struct IndexedResult {
    task: TaskType,
    dataset: Dataset,
    metrics: [Metric; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
}

#[derive(Clone, Debug, Serialize)]
struct TaskType {
    r#type: &'static str,
    name: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct Dataset {
    name: String,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    split: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    args: Args,
}

#[derive(Clone, Debug, Serialize)]
struct Args {
    num_few_shot: usize,
    /// Only where they are not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    documents: Option<usize>,
}

#[derive(Clone, Debug, Serialize)]
struct Metric {
    r#type: String,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    verified: bool,
}

#[derive(Clone, Debug, Serialize)]
struct EvalResult {
    dataset: Benchmark,
    value: f64,
    date: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    notes: String,
}

#[derive(Clone, Debug, Serialize)]
struct Benchmark {
    id: String,
    task_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

impl Card {
    /// The card of the one model of `table`, whose `runs` are of `tasks`, in this order.
    pub fn of(table: &Table, tasks: &[Task], runs: &[Run], wishes: &Wishes) -> Result<Card> {
        let [row] = &table.rows[..] else { bail!("a model card is of one model, not of {}", table.rows.len()) };
        let own_name = row.model.strip_prefix(IMPORTED).unwrap_or(&row.model);
        let name = wishes.name.clone().unwrap_or_else(|| own_name.to_owned());
        let by = runs.first().map(|run| answered_by(&run.manifest)).unwrap_or_default();
        let mut card = Card {
            head: vec![format!("{}: {}.", by, harness(table, runs)?)],
            index: ModelIndex { models: [IndexedModel { name, results: Vec::new() }] },
            files: Vec::new(),
        };
        for ((task, run), figure) in tasks.iter().zip(runs).zip(&row.figures) {
            ensure_built_in(&row.model, task)?;
            ensure_whole(&row.model, &run.manifest, wishes)?;
            card.add(task, &run.manifest, figure, wishes.source.clone())?;
        }
        if runs.iter().any(|run| run.manifest.partial) {
            card.head.push("PARTIAL: of only some documents. These are not the benchmarks' scores.".to_owned());
        }
        Ok(card)
    }

    fn add(&mut self, task: &Task, manifest: &Manifest, figure: &Figure, source: Option<Source>) -> Result<()> {
        let value: f64 = figure.score.as_deref().context("a run has a score")?.parse()?;
        let metric = metric(&manifest.metric, value);
        let dataset = dataset(task, manifest);
        if let Some(hub) = task.hub() {
            let benchmark = Benchmark {
                id: hub.repository.clone(),
                task_id: task.name().replace('/', "_"),
                revision: dataset.revision.clone(),
            };
            let (date, notes) = (manifest.date.clone(), notes(task, manifest, figure));
            let result = EvalResult { dataset: benchmark, value, date, source: source.clone(), notes };
            self.files.push((format!("{}.yaml", task.name().replace('/', "-")), result));
        }
        let task = TaskType { r#type: "text-generation", name: "Text Generation" };
        self.index.models[0].results.push(IndexedResult { task, dataset, metrics: [metric], source });
        Ok(())
    }

    /// The lines for the YAML block at the top of a model card.
    pub fn block(&self) -> Result<String> {
        Ok(self.head() + &yaml::to_string(&self.index)?)
    }

    /// Names and texts of the files of `.eval_results`, one for each task whose data set is on the hub.
    pub fn files(&self) -> Result<Vec<(String, String)>> {
        let text = |result: &EvalResult| -> Result<String> { Ok(self.head() + &yaml::to_string(&[result])?) };
        self.files.iter().map(|(name, result)| Ok((name.clone(), text(result)?))).collect()
    }

    /// Comments; who answered is said in another program's words, which must not end one.
    fn head(&self) -> String {
        self.head.iter().map(|line| format!("# {}\n", one_line(line))).collect()
    }
}

/// Refuses a benchmark's name on what another task file asked.
fn ensure_built_in(model: &str, task: &Task) -> Result<()> {
    ensure!(
        TaskFile::of(task) != TaskFile::Changed,
        "{model}, {}: its task file is not the built-in one, and a model card would say it is the benchmark; give the task \
         another `name`",
        task.name()
    );
    Ok(())
}

/// Refuses the scores of a part of a benchmark that nobody asked for.
fn ensure_whole(model: &str, manifest: &Manifest, wishes: &Wishes) -> Result<()> {
    ensure!(
        !manifest.partial || wishes.allow_partial,
        "{model}, {}: {} documents ({}) are not the benchmark, and a model card would say they are; evaluate all of them \
         (without --limit, of the hub's rows), or have the card marked with --allow-partial",
        manifest.task,
        manifest.documents,
        manifest.data
    );
    Ok(())
}

/// `Measured by fireval 0.1.0`, or who answered what was imported.
fn answered_by(manifest: &Manifest) -> String {
    match manifest.model.starts_with(IMPORTED) {
        true => format!("Answered by {}, counted by fireval {}", manifest.id.engine, manifest.fireval),
        false => format!("Measured by fireval {}", manifest.fireval),
    }
}

/// Whose rules, on what, held how.
fn harness(table: &Table, runs: &[Run]) -> Result<String> {
    let first = &runs.first().context("a card needs at least one task")?.manifest;
    let harness = match first.protocol {
        Protocol::LeaderboardV1 => "as lm-evaluation-harness b281b092, the leaderboard's, does",
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => "as lm-evaluation-harness 0.4.13 does",
    };
    let chat = if first.chat_template { ", in the model's chat template" } else { "" };
    let held = &table.rows[0].held;
    Ok(format!("protocol {} ({harness}){chat}; weights in {held}", first.protocol.name()))
}

fn metric(name: &str, value: f64) -> Metric {
    let (kind, filter) = name.split_once(',').map_or((name, None), |(kind, filter)| (kind, Some(filter)));
    let words = match kind {
        "acc" => Some("accuracy".to_owned()),
        "acc_norm" => Some("normalized accuracy".to_owned()),
        "exact_match" => Some(format!("exact match{}", filter.map(|f| format!(" ({f})")).unwrap_or_default())),
        _ => None,
    };
    Metric { r#type: kind.to_owned(), value, name: words, verified: false }
}

fn dataset(task: &Task, manifest: &Manifest) -> Dataset {
    let base = task.name().split('/').next().unwrap_or_default();
    let (called, word, config) =
        known(base).map_or((base, "shot", None), |known| (known.card, known.shot, known.config));
    let subject = task.subject().map(|subject| format!(" {}", subject.replace('_', " "))).unwrap_or_default();
    let part = if manifest.partial { format!(", {} documents only", manifest.documents) } else { String::new() };
    Dataset {
        name: format!("{called}{subject} ({}-{word}){part}", task.shots()),
        r#type: task.hub().map_or_else(|| task.name().to_owned(), |hub| hub.repository.clone()),
        config: task.subject().or(config).map(str::to_owned),
        split: task.split(),
        // Rows of a folder may be another revision's.
        revision: task.hub().filter(|_| manifest.data == "hub").map(|hub| hub.revision.clone()),
        args: Args { num_few_shot: task.shots(), documents: manifest.partial.then_some(manifest.documents) },
    }
}

/// `25-shot, acc_norm, 1172 documents, 95 % interval [63.29, 68.67], leaderboard-v1, bf16, Measured by fireval 0.1.0`.
fn notes(task: &Task, manifest: &Manifest, figure: &Figure) -> String {
    let mut notes = Vec::new();
    if manifest.partial {
        notes.push("PARTIAL, not the benchmark's score".to_owned());
    }
    notes.push(format!("{}-shot", task.shots()));
    notes.push(manifest.metric.replace(',', " "));
    notes.push(format!("{} documents", manifest.documents));
    if let (Some(low), Some(high)) = (&figure.low, &figure.high) {
        notes.push(format!("95 % interval [{low}, {high}]"));
    }
    notes.push(manifest.protocol.name().to_owned());
    if manifest.chat_template {
        notes.push("chat template".to_owned());
    }
    notes.push(manifest.id.quantization.clone().unwrap_or_else(|| manifest.id.dtype.clone()));
    notes.push(answered_by(manifest));
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compare::{self, Column, Contender, Outcome};
    use crate::score::DocScore;
    use crate::stats::Estimate;
    use crate::store::manifest::tests::manifest;

    /// A run of `task` with two of three documents right.
    fn run(task: &str, metric: &str, change: impl Fn(&mut Manifest)) -> Run {
        let score = |doc: usize| DocScore {
            task: task.to_owned(),
            subtask: task.to_owned(),
            doc,
            digest: doc.to_string(),
            requests: Vec::new(),
            output: None,
            metrics: BTreeMap::from([(metric.to_owned(), f64::from(u8::from(doc > 0)))]),
        };
        let scores: Vec<DocScore> = (0..3).map(score).collect();
        let estimates = BTreeMap::from([(metric.to_owned(), Estimate { value: 2.0 / 3.0, stderr: Some(0.3), n: 3 })]);
        let mut manifest = Manifest {
            task: task.to_owned(),
            metric: metric.to_owned(),
            documents: 3,
            data: "hub".to_owned(),
            limit: None,
            partial: false,
            estimates,
            ..manifest()
        };
        change(&mut manifest);
        Run { title: task.to_owned(), manifest, scores }
    }

    fn card(task: &str, run: Run, wishes: &Wishes) -> Result<Card> {
        let tasks = [Task::load(task, None).unwrap()];
        let protocol = run.manifest.protocol;
        let columns = vec![Column::of(&tasks[0], protocol)];
        let contender = Contender { model: "ft".to_owned(), outcome: Outcome::Measured(vec![run.clone()]) };
        let table = Table::of(&compare::compare(protocol, columns, &[contender]).unwrap());
        Card::of(&table, &tasks, &[run], wishes)
    }

    #[test]
    fn rows_of_the_hub_are_named_with_their_revision() {
        let made = card("arc_challenge", run("arc_challenge", "acc_norm", |_| {}), &Wishes::default()).unwrap();
        let block = made.block().unwrap();
        for line in [
            "- name: \"ft\"\n",
            "      name: \"AI2 Reasoning Challenge (25-Shot)\"\n",
            "      type: \"allenai/ai2_arc\"\n",
            "      config: \"ARC-Challenge\"\n",
            "      split: \"test\"\n",
            "      revision: \"210d026faf9955653af8916fad021475a3f00453\"\n",
            "        num_few_shot: 25\n",
            "    - type: \"acc_norm\"\n      value: 66.67\n      name: \"normalized accuracy\"\n      verified: false\n",
        ] {
            assert!(block.contains(line), "no {line:?} in\n{block}");
        }
        assert!(!block.contains("source:") && !block.contains("documents:"), "{block}");
        let (name, text) = &made.files().unwrap()[0];
        assert_eq!(name, "arc_challenge.yaml");
        assert!(text.contains("    revision: \"210d026faf9955653af8916fad021475a3f00453\"\n"), "{text}");
        let folder =
            card("arc_challenge", run("arc_challenge", "acc_norm", |m| m.data = "rows".into()), &Wishes::default());
        assert!(!folder.unwrap().block().unwrap().contains("revision"), "nobody knows which revision a folder is");
    }

    #[test]
    fn a_part_is_refused_or_marked_wherever_it_is_read() {
        let part = || run("gsm8k", "acc", |manifest| (manifest.partial, manifest.limit) = (true, Some(3)));
        let error = card("gsm8k", part(), &Wishes::default()).unwrap_err().to_string();
        assert!(error.contains("ft, gsm8k: 3 documents") && error.contains("--allow-partial"), "{error}");
        let wishes = Wishes { allow_partial: true, ..Wishes::default() };
        let made = card("gsm8k", part(), &wishes).unwrap();
        let block = made.block().unwrap();
        assert!(block.contains("# PARTIAL") && block.contains("GSM8k (5-shot), 3 documents only"), "{block}");
        assert!(block.contains("        documents: 3\n"), "{block}");
        assert!(made.files().unwrap()[0].1.contains("PARTIAL, not the benchmark's score"));
    }

    #[test]
    fn a_changed_task_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = Task::load("winogrande", None).unwrap().text().replace("shots = 5", "shots = 0");
        std::fs::write(folder.path().join("winogrande.toml"), text).unwrap();
        let task = Task::load("winogrande", Some(folder.path())).unwrap();
        let error = ensure_built_in("ft", &task).unwrap_err().to_string();
        assert!(error.contains("ft, winogrande: its task file is not the built-in one"), "{error}");
    }

    #[test]
    fn a_comment_can_t_be_left() {
        let evil = run("winogrande", "acc", |manifest| {
            manifest.model = "imported:org/ft".to_owned();
            manifest.id.engine = "hf\nmodel-index: []\r\u{2028}evil: 1".to_owned();
        });
        let made = card("winogrande", evil, &Wishes::default()).unwrap();
        let block = made.block().unwrap();
        let comments = block.lines().filter(|line| line.starts_with('#')).count();
        assert_eq!((comments, block.matches("\nmodel-index:").count()), (1, 1), "{block}");
        assert!(!block.contains(['\r', '\u{2028}']), "{block}");
    }

    #[test]
    fn what_another_program_answered_is_said_to_be_its() {
        let imported = run("winogrande", "acc", |manifest| {
            manifest.model = "imported:org/ft".to_owned();
            manifest.id.engine = "lm-eval 0.4.13 hf".to_owned();
        });
        let made = card("winogrande", imported, &Wishes::default()).unwrap();
        let by = "Answered by lm-eval 0.4.13 hf, counted by fireval 0.1.0";
        assert!(made.block().unwrap().starts_with(&format!("# {by}: protocol leaderboard-v1")), "{made:?}");
        assert!(made.files().unwrap()[0].1.contains(by), "{made:?}");
        let own = card("winogrande", run("winogrande", "acc", |_| {}), &Wishes::default()).unwrap();
        assert!(own.block().unwrap().starts_with("# Measured by fireval 0.1.0: "), "{own:?}");
    }

    #[test]
    fn metrics_and_subjects_have_their_names() {
        assert_eq!(metric("exact_match,strict-match", 1.0).r#type, "exact_match");
        assert_eq!(metric("exact_match,strict-match", 1.0).name.as_deref(), Some("exact match (strict-match)"));
        assert_eq!((metric("mc2", 1.0).r#type.as_str(), metric("mc2", 1.0).name), ("mc2", None));
        let task = Task::load("mmlu/high_school_mathematics", None).unwrap();
        let set = dataset(&task, &run("mmlu/high_school_mathematics", "acc", |_| {}).manifest);
        assert_eq!(set.name, "MMLU high school mathematics (5-Shot)");
        assert_eq!(set.config.as_deref(), Some("high_school_mathematics"));
    }
}
