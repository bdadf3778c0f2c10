//! Where a task's rows come from: the hub, a folder, or the slice that is built in.

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::definition::{Definition, Hub};
use crate::hub;
use crate::rows::Rows;

/// The slice in `tasks/data`: folder, file, rows.
const SLICE: &[(&str, &str, &[u8])] = &[
    ("arc_challenge", "train", include_bytes!("../../tasks/data/arc_challenge/train.jsonl")),
    ("arc_challenge", "test", include_bytes!("../../tasks/data/arc_challenge/test.jsonl")),
    ("hellaswag", "train", include_bytes!("../../tasks/data/hellaswag/train.jsonl")),
    ("hellaswag", "validation", include_bytes!("../../tasks/data/hellaswag/validation.jsonl")),
    ("mmlu", "dev", include_bytes!("../../tasks/data/mmlu/dev.jsonl")),
    ("mmlu", "test", include_bytes!("../../tasks/data/mmlu/test.jsonl")),
    ("truthfulqa", "mc_validation", include_bytes!("../../tasks/data/truthfulqa/mc_validation.jsonl")),
    ("winogrande", "train_xl", include_bytes!("../../tasks/data/winogrande/train_xl.jsonl")),
    ("winogrande", "validation", include_bytes!("../../tasks/data/winogrande/validation.jsonl")),
    ("gsm8k", "train", include_bytes!("../../tasks/data/gsm8k/train.jsonl")),
    ("gsm8k", "test", include_bytes!("../../tasks/data/gsm8k/test.jsonl")),
];

const MANIFEST: &str = include_str!("../../tasks/data/slice.json");

/// sha256 of the slice's prompts, as the harnesses make them from the whole data: `PROTOCOL/TASK.tsv` and its lines.
const HASHES: &[(&str, &str)] = &[
    ("leaderboard-v1/arc_challenge.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/arc_challenge.tsv")),
    ("leaderboard-v1/hellaswag.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/hellaswag.tsv")),
    ("leaderboard-v1/mmlu.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/mmlu.tsv")),
    ("leaderboard-v1/truthfulqa_mc.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/truthfulqa_mc.tsv")),
    ("leaderboard-v1/winogrande.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/winogrande.tsv")),
    ("leaderboard-v1/gsm8k.tsv", include_str!("../../tasks/data/prompts/leaderboard-v1/gsm8k.tsv")),
    ("lm-eval-latest/arc_challenge.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/arc_challenge.tsv")),
    ("lm-eval-latest/hellaswag.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/hellaswag.tsv")),
    ("lm-eval-latest/mmlu.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/mmlu.tsv")),
    ("lm-eval-latest/truthfulqa_mc2.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/truthfulqa_mc2.tsv")),
    ("lm-eval-latest/winogrande.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/winogrande.tsv")),
    ("lm-eval-latest/gsm8k.tsv", include_str!("../../tasks/data/prompts/lm-eval-latest/gsm8k.tsv")),
];

/// The reference's hashes of the bundled slice, by `PROTOCOL/TASK.tsv`.
pub fn bundled_hashes(file: &str) -> Option<&'static str> {
    HASHES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

/// What `slice.json` says of one file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Rows of the whole file.
    rows: usize,
    /// Which of them are here.
    kept: Vec<usize>,
    /// Documents that can be asked in every protocol's order, of the task or of each subtask.
    documents: Option<usize>,
    /// Subtasks whose rows are here: name, first row in the whole file, rows.
    parts: Option<Vec<(String, usize, usize)>>,
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// The hub's data sets at the revisions that the task files pin.
    Hub,
    /// A folder laid out as `tasks/README.md` says.
    Folder(PathBuf),
    /// The slice built into the binary: the first documents in every protocol's order, with their few-shot examples.
    Bundled,
}

/// The rows of one file, and what is known of them beyond their text.
pub struct DataFile {
    pub rows: Rows,
    /// At most this many documents can be asked, of the task or of each subtask.
    pub documents: Option<usize>,
    /// Subtasks at hand: name, first row, rows.
    pub parts: Option<Vec<(String, usize, usize)>>,
}

impl DataSource {
    /// `bundled`, `hub` or a folder.
    pub fn parse(text: &str) -> DataSource {
        match text {
            "bundled" => DataSource::Bundled,
            "hub" => DataSource::Hub,
            folder => DataSource::Folder(PathBuf::from(folder)),
        }
    }

    pub fn describe(&self) -> String {
        match self {
            DataSource::Hub => "hub".to_owned(),
            DataSource::Folder(path) => path.display().to_string(),
            DataSource::Bundled => "bundled slice".to_owned(),
        }
    }

    /// The documents' file.
    pub(super) fn evaluation(&self, task: &Definition) -> Result<DataFile> {
        self.open(task, &task.data.evaluation, |hub| Some(&hub.evaluation))
    }

    /// The examples' file; none for a task that shows none.
    pub(super) fn shots(&self, task: &Definition) -> Result<Option<DataFile>> {
        match &task.data.shots {
            Some(file) if task.shots > 0 => self.open(task, file, |hub| hub.shots.as_deref()).map(Some),
            _ => Ok(None),
        }
    }

    fn open<'a>(&self, task: &'a Definition, file: &str, of: impl Fn(&'a Hub) -> Option<&'a str>) -> Result<DataFile> {
        let folder = &task.data.folder;
        let whole = |rows| DataFile { rows, documents: None, parts: None };
        match self {
            DataSource::Bundled => bundled(folder, file),
            DataSource::Folder(root) => {
                let rows = Rows::find(&root.join(folder).join(file));
                Ok(whole(rows.context("the data folder is laid out as tasks/README.md says")?))
            }
            DataSource::Hub => {
                let Some((hub, name)) = task.data.hub.as_ref().and_then(|hub| Some((hub, of(hub)?))) else {
                    bail!("the task file names no `[data.hub]` file for {file}: give a data folder with --data DIR");
                };
                let path = hub::dataset_file(&hub.repository, &hub.revision, name).context(
                    "the data come from the hub unless --data names a folder (or `bundled`, a small slice for trials)",
                )?;
                Ok(whole(Rows::open(&path)?))
            }
        }
    }
}

fn bundled(folder: &str, file: &str) -> Result<DataFile> {
    let Some((_, _, bytes)) = SLICE.iter().find(|(known, stem, _)| *known == folder && *stem == file) else {
        bail!("the bundled slice has no {folder}/{file}: give a data folder with --data DIR");
    };
    let mut manifest: std::collections::HashMap<String, Entry> = serde_json::from_str(MANIFEST)?;
    let entry = manifest.remove(&format!("{folder}/{file}")).context("slice.json lists every file of the slice")?;
    let rows = Rows::lines(format!("tasks/data/{folder}/{file}.jsonl"), Cow::Borrowed(*bytes));
    Ok(DataFile { rows: rows.as_slice_of(entry.rows, entry.kept)?, documents: entry.documents, parts: entry.parts })
}
