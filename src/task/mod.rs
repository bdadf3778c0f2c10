//! What is measured: tasks read from TOML, turned into documents and requests, and their answers into scores.
//!
//! What depends on the protocol is in Rust, matched without wildcard (`document`: order, draws; `metric`: counting);
//! what depends on the task is in its file (`definition`).

mod definition;
mod document;
mod metric;
mod prompt;
mod record;
mod shown;
mod source;
mod summary;
mod template;
mod texts;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::chat::ChatTemplate;
use crate::digest::sha256_hex;
use crate::protocol::Protocol;
use crate::request::{Request, Response};
use crate::score::DocScore;
use crate::settings;
use crate::stats::Estimate;
use definition::{Definition, Split};
use prompt::Item;

pub use definition::Hub;
pub use document::digest as request_digest;
pub use metric::first_largest;
pub use record::Record;
pub use shown::Shown;
pub use source::{DataSource, bundled_hashes};
pub use texts::DocumentText;

/// The task files that are built in.
const BUILT_IN: &[(&str, &str)] = &[
    ("arc_challenge", include_str!("../../tasks/arc_challenge.toml")),
    ("hellaswag", include_str!("../../tasks/hellaswag.toml")),
    ("mmlu", include_str!("../../tasks/mmlu.toml")),
    ("truthfulqa", include_str!("../../tasks/truthfulqa.toml")),
    ("winogrande", include_str!("../../tasks/winogrande.toml")),
    ("gsm8k", include_str!("../../tasks/gsm8k.toml")),
];

const SUITES: &[(&str, &str)] = &[("openllm", include_str!("../../tasks/openllm.toml"))];

/// A checked task, or one subtask of it.
#[derive(Clone, Debug)]
pub struct Task {
    /// `mmlu`, or `mmlu/astronomy`.
    name: String,
    subject: Option<String>,
    definition: Definition,
    digest: String,
    text: String,
}

/// One thing to ask a model.
#[derive(Clone, Debug)]
pub struct Document {
    /// The MMLU subject; the task's own name elsewhere.
    pub subtask: String,
    /// Row in the official split (of the subtask), from 0.
    pub row: usize,
    /// sha256 of the requests, as `tasks/protocol.md` section 9 computes it.
    pub digest: String,
    pub requests: Vec<Request>,
    item: Item,
}

impl Task {
    /// A built-in task by name (`mmlu/astronomy` is one subtask), or a task file by its path. `overrides`: a folder whose
    /// `NAME.toml` stands before the built-in one.
    pub fn load(name: &str, overrides: Option<&Path>) -> Result<Task> {
        if name.ends_with(".toml") {
            return Task::read(Path::new(name), None);
        }
        let (base, subject) = match name.split_once('/') {
            Some((base, subject)) => (base, Some(subject.to_owned())),
            None => (name, None),
        };
        if let Some(path) = overrides.map(|folder| folder.join(format!("{base}.toml"))).filter(|path| path.exists()) {
            return Task::read(&path, subject);
        }
        match BUILT_IN.iter().find(|(known, _)| *known == base) {
            Some((_, text)) => Task::parse(text, &format!("tasks/{base}.toml"), subject),
            None => bail!(
                "there is no task `{name}`{} (a task of your own is named by its .toml file)",
                did_you_mean(base, &known_tasks())
            ),
        }
    }

    fn read(path: &Path, subject: Option<String>) -> Result<Task> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read the task file {place}"))?;
        Task::parse(&text, &place, subject)
    }

    fn parse(text: &str, place: &str, subject: Option<String>) -> Result<Task> {
        let definition = Definition::parse(text, place)?;
        if let Some(subject) = &subject {
            ensure!(definition.subtask.is_some(), "{} has no subtasks, so no `{subject}`", definition.name);
        }
        let name = match &subject {
            Some(subject) => format!("{}/{subject}", definition.name),
            None => definition.name.clone(),
        };
        Ok(Task { name, subject, definition, digest: sha256_hex(text.as_bytes()), text: text.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The column head: `ARC`, `MMLU`.
    pub fn title(&self) -> &str {
        self.subject.as_deref().unwrap_or(&self.definition.title)
    }

    /// The metric that the protocol reports.
    pub fn metric(&self, protocol: Protocol) -> &str {
        self.definition.metric(protocol)
    }

    /// How many examples are shown.
    pub fn shots(&self) -> usize {
        self.definition.shots
    }

    pub fn version(&self) -> u32 {
        self.definition.version
    }

    /// The one subtask that is asked, if it is not all of them.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Where the rows lie on the hub, if the task file says so.
    pub fn hub(&self) -> Option<&Hub> {
        self.definition.data.hub.as_ref()
    }

    /// The split that is evaluated, as the hub calls it.
    pub fn split(&self) -> &'static str {
        match self.definition.data.split {
            Split::Test => "test",
            Split::Validation => "validation",
        }
    }

    /// sha256 of the task file: a task that changed is another task.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The task file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Documents in evaluation order, at most `limit` of the task or of each subtask. `chat`: contexts as conversations
    /// in this template (leaderboard-v1 never used one).
    pub fn documents(
        &self,
        protocol: Protocol,
        data: &DataSource,
        limit: Option<usize>,
        chat: Option<&ChatTemplate>,
    ) -> Result<Vec<Document>> {
        ensure!(limit != Some(0), "a limit of 0 documents leaves nothing to score");
        self.check_metric(protocol)?;
        document::documents(&self.definition, self.subject.as_deref(), protocol, data, limit, chat)
            .with_context(|| format!("task {}", self.name))
    }

    /// An error if what the protocol reports is not among what its documents score.
    fn check_metric(&self, protocol: Protocol) -> Result<()> {
        let (metric, known) = (self.metric(protocol), metric::names(&self.definition, protocol));
        ensure!(
            known.iter().any(|name| name == metric),
            "task {}: no metric `{metric}` under {} (known: {}); mend `metric` in the task file, or `metric_latest`, which \
             stands before it under the lm-eval protocols",
            self.name,
            protocol.name(),
            known.join(", ")
        );
        Ok(())
    }

    /// What the documents say, without prompts and examples; of the bundled slice, those that are in it.
    pub fn texts(&self, data: &DataSource) -> Result<Vec<DocumentText>> {
        texts::texts(&self.definition, self.subject.as_deref(), data).with_context(|| format!("task {}", self.name))
    }

    /// What `responses`, in the order of the document's requests, score.
    pub fn score(&self, protocol: Protocol, document: &Document, responses: &[Response]) -> Result<DocScore> {
        metric::score(&self.definition, protocol, document, responses)
            .with_context(|| format!("task {}, {} document {}", self.name, document.subtask, document.row))
    }

    /// An estimate of every metric over the scores of a run.
    pub fn estimates(&self, protocol: Protocol, scores: &[DocScore]) -> Result<BTreeMap<String, Estimate>> {
        summary::estimates(&self.definition, protocol, scores).with_context(|| format!("task {}", self.name))
    }
}

/// A set of tasks whose plain mean is reported.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub name: String,
    pub tasks: Vec<String>,
}

/// A suite by name.
pub fn suite(name: &str) -> Result<Suite> {
    match SUITES.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => settings::parse(text, &format!("tasks/{name}.toml")),
        None => {
            let known: Vec<String> = SUITES.iter().map(|(known, _)| (*known).to_owned()).collect();
            bail!("there is no suite `{name}`{}", did_you_mean(name, &known))
        }
    }
}

/// Names of the built-in tasks.
pub fn known_tasks() -> Vec<String> {
    BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn did_you_mean(word: &str, known: &[String]) -> String {
    match settings::closest(word, known.iter().map(String::as_str)) {
        Some(near) => format!(" (did you mean `{near}`?)"),
        None => format!(" (known: {})", known.join(", ")),
    }
}
