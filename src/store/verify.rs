//! Whether what is stored is whole: checksums, formats, identities, and manifests against their documents.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::documents::{DocumentKey, Line};
use super::{FOLDER_DIGITS, Manifest, Store, entries, folders};
use crate::disk;
use crate::score::DocScore;
use crate::task::Task;

/// How far a recounted estimate may be from the manifest's: the order of a sum's terms.
const TOLERANCE: f64 = 1e-9;

/// Something to know about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub path: PathBuf,
    pub what: String,
    /// Whether something is wrong; else it is only told (a torn tail is dropped at the next run).
    pub is_wrong: bool,
}

/// What was looked at, and found.
#[derive(Debug, Default)]
pub struct Verified {
    pub documents: usize,
    pub manifests: usize,
    /// Manifests whose estimates were counted again from their documents.
    pub recounted: usize,
    pub findings: Vec<Finding>,
}

impl Verified {
    pub fn is_whole(&self) -> bool {
        !self.findings.iter().any(|finding| finding.is_wrong)
    }

    fn tell(&mut self, path: &Path, is_wrong: bool, what: String) {
        self.findings.push(Finding { path: path.to_owned(), what, is_wrong });
    }
}

/// A log's documents, the newest line of each.
type Log = HashMap<DocumentKey, DocScore>;

/// Looks at all runs of `store`. `task` loads a task by its name. Fails only where a folder can't be read.
pub fn verify(store: &Store, task: &dyn Fn(&str) -> Result<Task>) -> Result<Verified> {
    let mut verified = Verified::default();
    let models = folders(&store.root().join("runs"))?;
    for (index, model) in models.iter().enumerate() {
        let first = digits(model).and_then(|own| models[..index].iter().find(|other| digits(other) == Some(own)));
        if let Some(first) = first {
            verified.tell(
                model,
                true,
                format!("a folder of the same model as {}; move one of them away", first.display()),
            );
        }
        for protocol in folders(model)? {
            protocol_folder(model, &protocol, task, &mut verified)?;
        }
    }
    Ok(verified)
}

/// Those of a model's digest at the end of its folder's name.
fn digits(model: &Path) -> Option<&str> {
    let (_, digits) = model.file_name()?.to_str()?.rsplit_once('-')?;
    Some(digits).filter(|digits| digits.len() == FOLDER_DIGITS)
}

fn protocol_folder(
    model: &Path,
    folder: &Path,
    task: &dyn Fn(&str) -> Result<Task>,
    verified: &mut Verified,
) -> Result<()> {
    let files = entries(folder)?;
    let ends = |path: &&PathBuf, ending: &str| path.extension().is_some_and(|extension| extension == ending);
    let mut logs: HashMap<PathBuf, Log> = HashMap::new();
    for path in files.iter().filter(|path| ends(path, "jsonl")) {
        let log = log(path, verified)?;
        verified.documents += log.len();
        logs.insert(path.clone(), log);
    }
    for path in files.iter().filter(|path| ends(path, "json")) {
        match Manifest::read(path) {
            Ok(Some(manifest)) => {
                verified.manifests += 1;
                identity(model, folder, path, &manifest, verified);
                documents(&logs, path, &manifest, task, verified);
            }
            Ok(None) => {}
            Err(error) => verified.tell(path, true, format!("{error:#}")),
        }
    }
    for path in files.iter().filter(|path| ends(path, "tmp")) {
        verified.tell(path, false, "left by a call that was killed; may be deleted when none is running".to_owned());
    }
    Ok(())
}

fn log(path: &Path, verified: &mut Verified) -> Result<Log> {
    let found = disk::inspect_log(path)?;
    for line in &found.changed {
        let what = format!("line {line}: the checksum is wrong; delete the line to have its document scored again");
        verified.tell(path, true, what);
    }
    if found.torn > 0 {
        let what = format!("{} bytes after the last whole line, dropped when the run goes on", found.torn);
        verified.tell(path, false, what);
    }
    let mut log = Log::new();
    for (line, text) in &found.objects {
        match serde_json::from_str::<Line>(text) {
            Ok(document) => {
                log.extend([document.parts()]);
            }
            Err(error) => verified.tell(path, true, format!("line {line}: not a document of this version ({error})")),
        }
    }
    Ok(log)
}

/// A manifest stands in the folder of its model and protocol.
fn identity(model: &Path, folder: &Path, path: &Path, manifest: &Manifest, verified: &mut Verified) {
    let digest = manifest.id.digest();
    let name = |folder: &Path| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name(model).ends_with(&format!("-{}", &digest[..FOLDER_DIGITS])) {
        verified.tell(path, true, format!("its model's digest is {}, not its folder's", &digest[..FOLDER_DIGITS]));
    }
    if name(folder) != manifest.protocol.name() {
        verified.tell(path, true, format!("its protocol is {}, not its folder's", manifest.protocol.name()));
    }
}

/// A manifest's documents are all there and, where the log holds no others of its task, give its estimates.
fn documents(
    logs: &HashMap<PathBuf, Log>,
    path: &Path,
    manifest: &Manifest,
    task: &dyn Fn(&str) -> Result<Task>,
    verified: &mut Verified,
) {
    let (whole, subject) = match manifest.task.split_once('/') {
        Some((whole, subject)) => (whole, Some(subject)),
        None => (manifest.task.as_str(), None),
    };
    let log_path = path.with_file_name(format!("{}.jsonl", super::file_name(whole)));
    let of_run = |(key, _): &(&DocumentKey, &DocScore)| {
        manifest.definition.starts_with(&key.definition) && subject.is_none_or(|subject| key.subtask == subject)
    };
    let held: Vec<DocScore> =
        logs.get(&log_path).into_iter().flatten().filter(of_run).map(|(_, score)| score.clone()).collect();
    if held.len() < manifest.documents {
        let what = format!("{} documents, of which its log holds {}", manifest.documents, held.len());
        verified.tell(path, true, format!("{what}; `fireval eval {}` scores the others again", manifest.model));
    } else if held.len() == manifest.documents {
        match recount(manifest, &held, task) {
            Recount::OtherTask => {}
            Recount::Equal => verified.recounted += 1,
            Recount::Differs(what) => verified.tell(path, true, what),
        }
    }
}

/// How a count of stored documents compares with the manifest.
enum Recount {
    /// The task file is another by now, or is not known here.
    OtherTask,
    Equal,
    Differs(String),
}

fn recount(manifest: &Manifest, held: &[DocScore], task: &dyn Fn(&str) -> Result<Task>) -> Recount {
    let Some(task) = task(&manifest.task).ok().filter(|task| task.digest() == manifest.definition) else {
        return Recount::OtherTask;
    };
    let counted = match task.estimates(manifest.protocol, held) {
        Ok(counted) => counted,
        Err(error) => return Recount::Differs(format!("can't be counted again: {error:#}")),
    };
    for (metric, stored) in &manifest.estimates {
        let again = counted.get(metric).map(|estimate| estimate.value);
        if !again.is_some_and(|again| (again - stored.value).abs() <= TOLERANCE) {
            let again = again.map_or("none".to_owned(), |again| again.to_string());
            return Recount::Differs(format!("{metric} is {} where its documents give {again}", stored.value));
        }
    }
    Recount::Equal
}
