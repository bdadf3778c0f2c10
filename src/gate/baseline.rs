//! A baseline as one small file to commit: what a model answered right, document by document, and which documents these
//! were, so that a candidate is paired with it where neither the weights nor the runs are. `results/README.md` documents the
//! format.
//!
//! Documents stand in the order of their rows. Of each document's digest the first eight digits are kept: they say at a
//! known place whether the same was asked, and are most of the file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::eval::{Run, TaskDocuments};
use crate::model_id::ModelId;
use crate::project::check_name;
use crate::protocol::Protocol;
use crate::score::DocScore;
use crate::settings;
use crate::stats::Estimate;
use crate::store::Manifest;
use crate::task::Document;

/// The version of the format in `results/README.md`.
pub const SCHEMA: u32 = 1;
/// What tells the file from other JSON.
const KIND: &str = "fireval baseline";
/// Digits of a document's digest.
const DIGITS: usize = 8;

/// One model on some tasks, as it is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    kind: String,
    pub schema: u32,
    /// The name it was asked for by.
    pub model: String,
    pub id: ModelId,
    pub protocol: Protocol,
    pub chat_template: bool,
    /// Where the rows came from.
    pub data: String,
    /// Documents asked for per task and subtask; all of them without one.
    pub limit: Option<usize>,
    pub fireval: String,
    /// When the last of its runs was finished, in UTC.
    pub date: String,
    pub tasks: Vec<BaselineTask>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineTask {
    pub task: String,
    /// sha256 of the task file.
    definition: String,
    metric: String,
    partial: bool,
    /// A fraction, counted again when the file is read.
    score: f64,
    documents: usize,
    subtasks: Vec<Subtask>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subtask {
    name: String,
    /// Rows of the official split, ascending: `0-99,105`.
    rows: String,
    /// The first digits of each document's digest, one after another.
    digests: String,
    outcomes: Outcomes,
}

/// What each document scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Outcomes {
    /// A character a document: 1 right, 0 wrong.
    Counted(String),
    /// In 0..1.
    Shares(Vec<f64>),
}

impl Baseline {
    /// The file of a model's runs, all asked alike.
    pub fn of(runs: &[Run]) -> Result<Baseline> {
        let Some(Run { manifest: first, .. }) = runs.first() else { bail!("no tasks: there is nothing to keep") };
        let Manifest { model, id, protocol, chat_template, data, limit, fireval, .. } = first.clone();
        check_name(&model)?;
        let date = runs.iter().map(|run| run.manifest.date.as_str()).max().unwrap_or_default().to_owned();
        let tasks = runs.iter().map(BaselineTask::of).collect::<Result<_>>()?;
        let kind = KIND.to_owned();
        Ok(Baseline { kind, schema: SCHEMA, model, id, protocol, chat_template, data, limit, fireval, date, tasks })
    }

    /// Reads `path`.
    pub fn read(path: &Path) -> Result<Baseline> {
        let bytes = std::fs::read(path).with_context(|| format!("can't read the baseline {}", path.display()))?;
        Baseline::parse(&bytes).with_context(|| format!("{}: not a baseline", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Baseline> {
        /// What is read first, so that another version says so.
        #[derive(Deserialize)]
        struct Head {
            kind: Option<String>,
            schema: Option<u32>,
        }
        let head: Head = serde_json::from_slice(bytes)?;
        ensure!(
            head.kind.as_deref() == Some(KIND),
            "`fireval baseline save MODEL` writes one, with \"kind\": {KIND:?}"
        );
        let schema = head.schema.context("no `schema`")?;
        ensure!(schema == SCHEMA, "schema {schema} where this fireval reads {SCHEMA}; save it again");
        check_texts(&serde_json::from_slice(bytes)?)?;
        Ok(serde_json::from_slice(bytes)?)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and finite numbers serialise") + "\n"
    }

    /// Refuses another protocol than the file's: its documents would be others, or asked otherwise.
    pub fn check_protocol(&self, asked: Protocol) -> Result<()> {
        ensure!(
            asked == self.protocol,
            "the baseline was saved under {}, {} is asked for: leave --protocol out, or save a baseline under it",
            self.protocol.name(),
            asked.name()
        );
        Ok(())
    }

    pub fn task_names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.task.clone()).collect()
    }

    /// The baseline's runs on the documents of `questions`, in their order, counted again. An error where a document is not
    /// in the file, or is asked otherwise now.
    pub fn runs(&self, questions: &[TaskDocuments]) -> Result<Vec<Run>> {
        questions.iter().map(|asked| self.run(asked)).collect()
    }

    fn run(&self, asked: &TaskDocuments) -> Result<Run> {
        let name = asked.task.name();
        let kept = self.tasks.iter().find(|kept| kept.task == name).with_context(|| {
            let names = self.task_names();
            let near = settings::closest(name, names.iter().map(String::as_str));
            let hint = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
            format!("the baseline has no {name}{hint}, but {}", names.join(", "))
        })?;
        ensure!(kept.definition == asked.task.digest(), "{name}: the task's file changed since the baseline was saved");
        let documents = kept.read().with_context(|| format!("the baseline's {name}"))?;
        let scores = kept.paired(&documents, asked, self.chat_template)?;
        let estimates = asked.task.estimates(self.protocol, &scores)?;
        let manifest = self.manifest(kept, estimates.into_iter().collect(), scores.len());
        let counted = manifest.reported()?.value;
        ensure!(
            (counted - kept.score).abs() < 1e-9,
            "{name}: the file says {}, its documents say {counted}; it was edited: save it again",
            kept.score
        );
        Ok(Run { title: asked.task.title().to_owned(), manifest, scores })
    }

    fn manifest(&self, kept: &BaselineTask, estimates: BTreeMap<String, Estimate>, documents: usize) -> Manifest {
        Manifest {
            schema: crate::store::manifest::SCHEMA,
            model: self.model.clone(),
            id: self.id.clone(),
            task: kept.task.clone(),
            definition: kept.definition.clone(),
            protocol: self.protocol,
            data: self.data.clone(),
            chat_template: self.chat_template,
            limit: self.limit,
            documents,
            partial: kept.partial,
            metric: kept.metric.clone(),
            estimates,
            warnings: Vec::new(),
            fireval: self.fireval.clone(),
            date: self.date.clone(),
            seconds: 0.0,
            tokens: 0,
        }
    }
}

/// A document of the file: the start of its digest, and its outcome.
type Documents<'a> = HashMap<(&'a str, usize), (&'a str, f64)>;

impl BaselineTask {
    fn of(run: &Run) -> Result<BaselineTask> {
        let Manifest { task, definition, metric, partial, .. } = run.manifest.clone();
        let mut subtasks: BTreeMap<&str, Vec<&DocScore>> = BTreeMap::new();
        for score in &run.scores {
            subtasks.entry(&score.subtask).or_default().push(score);
        }
        let subtasks = subtasks.into_iter().map(|(name, scores)| Subtask::of(name, scores, &metric));
        let (score, documents) = (run.manifest.reported()?.value, run.scores.len());
        Ok(BaselineTask {
            task,
            definition,
            partial,
            score,
            documents,
            subtasks: subtasks.collect::<Result<_>>()?,
            metric,
        })
    }

    fn read(&self) -> Result<Documents<'_>> {
        let mut documents = HashMap::new();
        for subtask in &self.subtasks {
            subtask.read(&mut documents).with_context(|| format!("subtask {}", subtask.name))?;
        }
        ensure!(documents.len() == self.documents, "{} documents, {} said", documents.len(), self.documents);
        Ok(documents)
    }

    /// The outcomes of the documents of `asked`, in their order. Under a chat template each model sees the same document in
    /// its own words, so that digests say nothing.
    fn paired(&self, documents: &Documents, asked: &TaskDocuments, chat_template: bool) -> Result<Vec<DocScore>> {
        let task = &self.task;
        ensure!(
            documents.len() == asked.documents.len(),
            "{task}: the baseline has {} documents, {} are asked now; ask as many with --limit, or all without it, of the same \
             data",
            documents.len(),
            asked.documents.len()
        );
        let pair = |document: &Document| {
            let Document { subtask, row, digest, .. } = document;
            let known = documents.get(&(subtask.as_str(), *row));
            let known = known.with_context(|| format!("{task}: the baseline has no {subtask} document {row}"))?;
            ensure!(
                chat_template || digest.starts_with(known.0),
                "{task}: {subtask} document {row} was not asked alike (other rows or other examples); save the baseline again"
            );
            let metrics = BTreeMap::from([(self.metric.clone(), known.1)]);
            let (requests, output) = (Vec::new(), None);
            let (task, subtask, digest) = (task.clone(), subtask.clone(), digest.clone());
            Ok(DocScore { task, subtask, doc: *row, digest, requests, output, metrics })
        };
        asked.documents.iter().map(pair).collect()
    }
}

impl Subtask {
    fn of(name: &str, mut scores: Vec<&DocScore>, metric: &str) -> Result<Subtask> {
        scores.sort_by_key(|score| score.doc);
        let rows: Vec<usize> = scores.iter().map(|score| score.doc).collect();
        let digests = scores
            .iter()
            .map(|score| score.digest.get(..DIGITS).context("a digest of a few digits"))
            .collect::<Result<_>>()?;
        let value = |score: &&DocScore| {
            score.metrics.get(metric).copied().with_context(|| format!("document {} has no `{metric}`", score.doc))
        };
        let values: Vec<f64> = scores.iter().map(value).collect::<Result<_>>()?;
        let counted = values.iter().all(|&value| value == 0.0 || value == 1.0);
        let outcomes = match counted {
            true => Outcomes::Counted(values.iter().map(|&value| if value == 1.0 { '1' } else { '0' }).collect()),
            false => Outcomes::Shares(values),
        };
        Ok(Subtask { name: name.to_owned(), rows: ranges(&rows), digests, outcomes })
    }

    fn read<'a>(&'a self, documents: &mut Documents<'a>) -> Result<()> {
        let rows = rows(&self.rows)?;
        let outcomes = self.outcomes.values()?;
        ensure!(
            self.digests.is_ascii() && self.digests.len() == rows.len() * DIGITS && outcomes.len() == rows.len(),
            "{} rows, {} digits of digests ({DIGITS} each), {} outcomes",
            rows.len(),
            self.digests.len(),
            outcomes.len()
        );
        for (index, (row, outcome)) in rows.into_iter().zip(outcomes).enumerate() {
            let digest = &self.digests[index * DIGITS..(index + 1) * DIGITS];
            ensure!(documents.insert((&self.name, row), (digest, outcome)).is_none(), "row {row} is there twice");
        }
        Ok(())
    }
}

impl Outcomes {
    fn values(&self) -> Result<Vec<f64>> {
        match self {
            Outcomes::Counted(text) => text
                .chars()
                .map(|c| match c {
                    '1' => Ok(1.0),
                    '0' => Ok(0.0),
                    other => bail!("an outcome is {other:?}, neither 1 nor 0"),
                })
                .collect(),
            Outcomes::Shares(values) => {
                let outside = values.iter().find(|value| !(0.0..=1.0).contains(*value));
                ensure!(outside.is_none(), "an outcome is {}, not in 0..1", outside.unwrap_or(&0.0));
                Ok(values.clone())
            }
        }
    }
}

/// All that may be printed has to stay in its line.
fn check_texts(value: &Value) -> Result<()> {
    match value {
        Value::String(text) => check_name(text),
        Value::Array(items) => items.iter().try_for_each(check_texts),
        Value::Object(fields) => fields.values().try_for_each(check_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Ascending rows as `0-99,105`.
fn ranges(rows: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == row => *last = row,
            _ => runs.push((row, row)),
        }
    }
    let text =
        |(first, last): (usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// What [`ranges`] wrote. A file that was made up can't ask for more rows than any benchmark has.
fn rows(text: &str) -> Result<Vec<usize>> {
    const MOST: usize = 10_000_000;
    let mut rows = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let place = || format!("rows {range:?}: a number or a range, as 0-99");
        let (first, last): (usize, usize) = (first.parse().with_context(place)?, last.parse().with_context(place)?);
        ensure!(first <= last && last < MOST, "{}", place());
        rows.extend(first..=last);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::manifest;
    use crate::task::{DataSource, Task};

    /// A run of ARC's first documents, with these values of `acc_norm`, and its questions.
    fn run(values: &[f64]) -> (Run, TaskDocuments) {
        let task = Task::load("arc_challenge", None).unwrap();
        let protocol = Protocol::LeaderboardV1;
        let documents = task.documents(protocol, &DataSource::Bundled, Some(values.len()), None).unwrap();
        let score = |(document, &value): (&Document, &f64)| DocScore {
            task: "arc_challenge".to_owned(),
            subtask: document.subtask.clone(),
            doc: document.row,
            digest: document.digest.clone(),
            requests: Vec::new(),
            output: None,
            metrics: BTreeMap::from([("acc_norm".to_owned(), value)]),
        };
        let scores: Vec<DocScore> = documents.iter().zip(values).map(score).collect();
        let estimates = BTreeMap::from([("acc_norm".to_owned(), Estimate::mean(values).unwrap())]);
        let definition = task.digest().to_owned();
        let manifest = Manifest { definition, estimates, documents: scores.len(), ..manifest() };
        (Run { title: "ARC".to_owned(), manifest, scores }, TaskDocuments { task, documents })
    }

    #[test]
    fn a_run_is_read_as_it_was_saved() {
        for values in [vec![1.0, 0.0, 0.0, 1.0, 1.0], vec![0.25, 1.0 / 3.0, 0.0, 1.0, 0.5]] {
            let (run, asked) = run(&values);
            let json = Baseline::of(std::slice::from_ref(&run)).unwrap().to_json();
            let back = Baseline::parse(json.as_bytes()).unwrap().runs(&[asked]).unwrap().remove(0);
            assert_eq!(back.scores, run.scores, "in the order of evaluation, which is not that of rows");
            assert_eq!(back.manifest.reported().unwrap(), run.manifest.reported().unwrap());
        }
    }

    #[test]
    fn what_is_not_the_same_document_is_refused() {
        let (saved, _) = run(&[1.0, 0.0, 0.0]);
        let baseline = Baseline::of(std::slice::from_ref(&saved)).unwrap();
        let error = |baseline: &Baseline, change: &dyn Fn(&mut TaskDocuments)| {
            let (_, mut asked) = run(&[1.0, 0.0, 0.0]);
            change(&mut asked);
            format!("{:#}", baseline.runs(&[asked]).unwrap_err())
        };
        let digest = |asked: &mut TaskDocuments| asked.documents[1].digest.replace_range(..1, "x");
        assert!(error(&baseline, &digest).contains("was not asked alike"));
        assert!(
            error(&baseline, &|asked| asked.documents[1].row = 1_171).contains("has no arc_challenge document 1171")
        );
        assert!(error(&baseline, &|asked| asked.documents.truncate(2)).contains("has 3 documents, 2 are asked"));
        let mut other = baseline.clone();
        other.tasks[0].definition = "x".to_owned();
        assert!(error(&other, &|_| ()).contains("the task's file changed"));
        other.tasks[0].task = "arc_chalenge".to_owned();
        assert!(error(&other, &|_| ()).contains("did you mean `arc_chalenge`?"));
        other = Baseline { chat_template: true, ..baseline };
        let (_, mut asked) = run(&[1.0, 0.0, 0.0]);
        digest(&mut asked);
        assert!(other.runs(&[asked]).is_ok(), "each model's own words");
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        let (run, asked) = run(&[1.0, 0.0, 0.0]);
        let mut baseline = Baseline::of(&[run]).unwrap();
        let subtask = &mut baseline.tasks[0].subtasks[0];
        (subtask.rows, subtask.outcomes) = ("0-2".to_owned(), Outcomes::Counted("001".to_owned()));
        let json = baseline.to_json();
        let error = |from: &str, to: &str| {
            assert!(json.contains(from), "{json}");
            let found = Baseline::parse(json.replace(from, to).as_bytes());
            format!("{:#}", found.and_then(|baseline| baseline.runs(std::slice::from_ref(&asked))).unwrap_err())
        };
        assert!(error("\"fireval baseline\"", "\"x\"").contains("fireval baseline save"));
        assert!(error("{", "[").contains("expected"));
        assert!(error("\"schema\": 1", "\"schema\": 9").contains("schema 9"));
        assert!(error("\"rows\"", "\"rwos\"").contains("rwos"));
        assert!(error("\"0-2\"", "\"0-3\"").contains("4 rows"));
        assert!(error("\"0-2\"", "\"2-0\"").contains("2-0"));
        assert!(error("\"0-2\"", "\"0-1,1\"").contains("row 1 is there twice"));
        assert!(error("\"001\"", "\"00x\"").contains("'x'"));
        assert!(error("\"001\"", "[0, 0, 2]").contains("not in 0..1"));
        assert!(error("\"documents\": 3", "\"documents\": 4").contains("4 said"));
        assert!(error("\"base\"", "\"base\\n::error::y\"").contains("\"base\\n::error::y\" has control characters"));
    }

    #[test]
    fn another_protocol_is_refused() {
        let baseline = Baseline::of(&[run(&[1.0, 0.0]).0]).unwrap();
        assert!(baseline.check_protocol(Protocol::LeaderboardV1).is_ok());
        let error = baseline.check_protocol(Protocol::LmEvalLatest).unwrap_err().to_string();
        assert!(error.contains("saved under leaderboard-v1, lm-eval-latest is asked for"), "{error}");
    }

    #[test]
    fn a_file_that_was_edited_is_found() {
        let (run, asked) = run(&[1.0, 0.0, 0.0]);
        let mut baseline = Baseline::of(&[run]).unwrap();
        baseline.tasks[0].subtasks[0].outcomes = Outcomes::Counted("111".to_owned());
        let error = baseline.runs(&[asked]).unwrap_err().to_string();
        assert!(error.contains("it was edited"), "{error}");
    }

    #[test]
    fn rows_are_short() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(rows("0-2,5,7-8").unwrap(), [0, 1, 2, 5, 7, 8]);
        assert!(rows("").is_err() && rows("0-99999999999").is_err() && rows("a").is_err());
    }
}
