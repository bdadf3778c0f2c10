//! An evaluation: documents, minus what the store knows, to an engine, back into the store, and counted.
//!
//! The only place where an engine meets the disk. Everything missing of all tasks goes to the engine in one call, since
//! knowing the whole work is what makes it fast; each document is stored as it finishes, so an interrupted evaluation
//! continues; counts are made from the stored documents alone, so they do not depend on how often it was interrupted.

pub mod alarm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::chat::ChatTemplate;
use crate::engine::{Engine, Work};
use crate::model_id::ModelId;
use crate::progress::Progress;
use crate::protocol::Protocol;
use crate::published;
use crate::request::{Request, Response};
use crate::score::DocScore;
use crate::store::manifest::{self, Manifest};
use crate::store::{DocumentKey, Documents, Shelf, Store, responses};
use crate::task::{DataSource, Document, Task};

/// How documents are asked, of whatever model.
#[derive(Clone, Debug)]
pub struct Conditions {
    pub protocol: Protocol,
    pub data: DataSource,
    /// Documents per task and per subtask.
    pub limit: Option<usize>,
    pub chat_template: bool,
}

/// A task with its documents.
pub struct TaskDocuments {
    pub task: Task,
    pub documents: Vec<Document>,
}

/// The model an evaluation is about, by the name it was asked for by.
#[derive(Clone, Debug)]
pub struct NamedModel {
    pub name: String,
    pub id: ModelId,
}

/// One model on one task: what it was and its documents in evaluation order.
#[derive(Clone, Debug)]
pub struct Run {
    /// The column's head.
    pub title: String,
    pub manifest: Manifest,
    pub scores: Vec<DocScore>,
}

/// The documents of all tasks. `chat`: the model's template, if contexts are to be conversations.
pub fn questions(tasks: &[Task], conditions: &Conditions, chat: Option<&ChatTemplate>) -> Result<Vec<TaskDocuments>> {
    let ask = |task: &Task| {
        let documents = task.documents(conditions.protocol, &conditions.data, conditions.limit, chat)?;
        Ok(TaskDocuments { task: task.clone(), documents })
    };
    tasks.iter().map(ask).collect()
}

/// Scores what the store does not hold and returns a run for each of `questions`. `open` is called only if something is
/// missing.
pub fn evaluate(
    model: &NamedModel,
    open: &mut dyn FnMut() -> Result<Box<dyn Engine>>,
    questions: &[TaskDocuments],
    conditions: &Conditions,
    store: &Store,
    progress: &Progress,
) -> Result<Vec<Run>> {
    let mut evaluation = Evaluation::new(model, questions, conditions, store)?;
    let mut spent = vec![Spent::default(); questions.len()];
    if !evaluation.missing().is_empty() {
        evaluation.lock()?;
        // Another process may have answered some of them while this one waited for its turn.
        let missing = evaluation.missing();
        spent = evaluation.answer(open, &missing, progress)?;
    }
    evaluation.finish(&spent)
}

/// The runs that the store holds; otherwise an error that says what is missing, and what is `next`.
pub fn stored(
    model: &NamedModel,
    questions: &[TaskDocuments],
    conditions: &Conditions,
    store: &Store,
    next: &str,
) -> Result<Vec<Run>> {
    let evaluation = Evaluation::new(model, questions, conditions, store)?;
    let missing = evaluation.missing();
    if let Some(first) = missing.first() {
        let all: usize = questions.iter().map(|questions| questions.documents.len()).sum();
        bail!(
            "{}: {} of {all} documents are not scored yet, the first in {}; {next}",
            model.name,
            missing.len(),
            questions[first.task].task.name(),
        );
    }
    (0..questions.len()).map(|task| evaluation.stored_run(task)).collect()
}

/// Stores `answers` that were given elsewhere to the documents of one task, and returns its run. What is stored of them
/// already has to be the same.
pub fn record(
    model: &NamedModel,
    questions: &TaskDocuments,
    answers: &dyn Fn(&Document) -> Result<Vec<Response>>,
    conditions: &Conditions,
    store: &Store,
) -> Result<Run> {
    let questions = std::slice::from_ref(questions);
    let mut evaluation = Evaluation::new(model, questions, conditions, store)?;
    evaluation.lock()?;
    for (document, asked) in questions[0].documents.iter().enumerate() {
        let (at, responses) = (At { task: 0, document }, answers(asked)?);
        match evaluation.known(at) {
            Some(known) => ensure!(
                known == responses,
                "{}: {} document {} was answered otherwise in what is stored already; give this one another name",
                model.name,
                asked.subtask,
                asked.row
            ),
            None => evaluation.keep(at, &responses)?,
        }
    }
    Ok(evaluation.finish(&[Spent::default()])?.remove(0))
}

/// A document by its task and place.
#[derive(Clone, Copy, Debug)]
struct At {
    task: usize,
    document: usize,
}

/// What a task cost.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    seconds: f64,
    tokens: u64,
}

struct Evaluation<'a> {
    model: &'a NamedModel,
    questions: &'a [TaskDocuments],
    conditions: &'a Conditions,
    shelves: Vec<Shelf>,
    /// A log of documents may serve several tasks (`mmlu` and `mmlu/astronomy`).
    logs: Vec<Documents>,
    /// Index into `logs` of each task.
    log_of: Vec<usize>,
}

impl<'a> Evaluation<'a> {
    fn new(
        model: &'a NamedModel,
        questions: &'a [TaskDocuments],
        conditions: &'a Conditions,
        store: &Store,
    ) -> Result<Evaluation<'a>> {
        let mut evaluation =
            Evaluation { model, questions, conditions, shelves: Vec::new(), logs: Vec::new(), log_of: Vec::new() };
        let mut paths: Vec<PathBuf> = Vec::new();
        for TaskDocuments { task, .. } in questions {
            let shelf = store.shelf(&model.name, &model.id, conditions.protocol, task.name())?;
            let path = shelf.log_path();
            let log = match paths.iter().position(|known| *known == path) {
                Some(log) => log,
                None => {
                    evaluation.logs.push(Documents::open(&shelf)?);
                    paths.push(path);
                    paths.len() - 1
                }
            };
            evaluation.log_of.push(log);
            evaluation.shelves.push(shelf);
        }
        Ok(evaluation)
    }

    fn key(&self, at: At) -> DocumentKey {
        let TaskDocuments { task, documents } = &self.questions[at.task];
        let document = &documents[at.document];
        DocumentKey::new(task.digest(), &document.subtask, document.row, &document.digest)
    }

    /// The stored responses of a document.
    fn known(&self, at: At) -> Option<Vec<Response>> {
        let score = self.logs[self.log_of[at.task]].get(&self.key(at))?;
        responses(score, &self.questions[at.task].documents[at.document].requests)
    }

    /// Documents without stored responses, each once.
    fn missing(&self) -> Vec<At> {
        let mut seen = HashSet::new();
        let all =
            self.questions.iter().enumerate().flat_map(|(task, questions)| {
                (0..questions.documents.len()).map(move |document| At { task, document })
            });
        all.filter(|&at| self.known(at).is_none() && seen.insert((self.log_of[at.task], self.key(at)))).collect()
    }

    fn lock(&mut self) -> Result<()> {
        self.logs.iter_mut().try_for_each(Documents::lock)
    }

    fn answer(
        &mut self,
        open: &mut dyn FnMut() -> Result<Box<dyn Engine>>,
        missing: &[At],
        progress: &Progress,
    ) -> Result<Vec<Spent>> {
        let mut spent = vec![Spent::default(); self.questions.len()];
        if missing.is_empty() {
            return Ok(spent);
        }
        let mut engine = open()?;
        let name = &self.model.name;
        ensure!(*engine.id() == self.model.id, "{name}: its files changed while it was opened; start again");
        let documents: Vec<&[Request]> =
            missing.iter().map(|at| &self.questions[at.task].documents[at.document].requests[..]).collect();
        let protocol = Some(self.conditions.protocol);
        let work = Work { documents: &documents, protocol, sampling: None, progress: progress.clone() };
        let mut unanswered = missing.len();
        let mut last = (Instant::now(), progress.done());
        let result = engine.answer(&work, &mut |index, responses| {
            let at = missing[index];
            self.keep(at, &responses)?;
            unanswered -= 1;
            spent[at.task].seconds += last.0.elapsed().as_secs_f64();
            spent[at.task].tokens += progress.done() - last.1;
            last = (Instant::now(), progress.done());
            Ok(())
        });
        // What was answered before an error is kept, and on the disk.
        let closed = self.logs.iter_mut().try_for_each(Documents::close);
        result.with_context(|| format!("model {name}"))?;
        closed?;
        ensure!(unanswered == 0, "model {name}: {unanswered} documents were not answered");
        Ok(spent)
    }

    fn keep(&mut self, at: At, responses: &[Response]) -> Result<()> {
        let TaskDocuments { task, documents } = &self.questions[at.task];
        let document = &documents[at.document];
        for response in responses {
            if let Response::LogLikelihood { sum, .. } = response {
                ensure!(
                    sum.is_finite(),
                    "{}, document {}: a log-likelihood is {sum}; the weights or the dtype are broken",
                    document.subtask,
                    document.row
                );
            }
        }
        let score = task.score(self.conditions.protocol, document, responses)?;
        self.logs[self.log_of[at.task]].add(task.digest(), score)
    }

    fn finish(mut self, spent: &[Spent]) -> Result<Vec<Run>> {
        self.logs.iter_mut().try_for_each(Documents::close)?;
        let runs: Result<Vec<Run>> = (0..self.questions.len()).map(|task| self.run(task, spent[task])).collect();
        let runs = runs?;
        for (run, shelf) in runs.iter().zip(&self.shelves) {
            let before = shelf.manifest().ok().flatten();
            if !before.is_some_and(|before| before.same_outcome(&run.manifest)) {
                shelf.write_manifest(&run.manifest)?;
            }
        }
        Ok(runs)
    }

    /// The run of one task; when and how fast it was made is in its stored manifest, if that is of this very run.
    fn stored_run(&self, task: usize) -> Result<Run> {
        let mut run = self.run(task, Spent::default())?;
        let before = self.shelves[task].manifest().ok().flatten();
        if let Some(before) = before.filter(|before| before.same_outcome(&run.manifest)) {
            run.manifest = Manifest { model: run.manifest.model, ..before };
        }
        Ok(run)
    }

    /// The run of one task, counted from stored responses.
    fn run(&self, task: usize, spent: Spent) -> Result<Run> {
        let Conditions { protocol, data, limit, chat_template } = self.conditions;
        let asked = &self.questions[task];
        let score = |document: usize| {
            let responses = self.known(At { task, document }).context("a document that was scored is gone")?;
            asked.task.score(*protocol, &asked.documents[document], &responses)
        };
        let scores: Vec<DocScore> = (0..asked.documents.len()).map(score).collect::<Result<_>>()?;
        let estimates = asked.task.estimates(*protocol, &scores)?;
        let manifest = Manifest {
            schema: manifest::SCHEMA,
            model: self.model.name.clone(),
            id: self.model.id.clone(),
            task: asked.task.name().to_owned(),
            definition: asked.task.digest().to_owned(),
            protocol: *protocol,
            data: data.describe(),
            chat_template: *chat_template,
            limit: *limit,
            documents: scores.len(),
            partial: *data == DataSource::Bundled || limit.is_some() || !is_whole(asked),
            metric: asked.task.metric(*protocol).to_owned(),
            estimates: estimates.into_iter().collect::<BTreeMap<_, _>>(),
            warnings: alarm::warnings(&scores),
            fireval: env!("CARGO_PKG_VERSION").to_owned(),
            date: manifest::now(),
            seconds: spent.seconds,
            tokens: spent.tokens,
        };
        Ok(Run { title: asked.task.title().to_owned(), manifest, scores })
    }
}

/// Whether these are as many documents as the benchmark has, where that is known; a data folder may hold fewer.
fn is_whole(asked: &TaskDocuments) -> bool {
    published::documents(asked.task.name()).is_none_or(|documents| documents == asked.documents.len())
}
