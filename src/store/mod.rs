//! What was measured, kept: `results/runs/<model>-<digest>/<protocol>/<task>.jsonl` with one line a document, and
//! `<task>.json`, the manifest, written last. `results/README.md` documents both for those who read them.
//!
//! A stored document is found by everything that can change its answer: the model's identity (the folder), the protocol,
//! the task's definition, subtask, row and the digest of its requests. So another limit or another data folder finds the
//! documents that are equal and only those, whatever name the model goes by now.

mod digests;
mod documents;
pub mod manifest;
pub mod samples;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use digests::FileDigests;
pub use documents::{DocumentKey, Documents, responses};
pub use manifest::Manifest;
pub use verify::{Finding, Verified, verify};

use crate::disk;
use crate::model_id::ModelId;
use crate::protocol::Protocol;

/// How many digits of a model's digest its folder carries.
const FOLDER_DIGITS: usize = 16;

/// A results folder.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Where one model's documents of one task lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    folder: PathBuf,
    task: String,
}

impl Store {
    /// The results folder `root`; it need not exist yet.
    pub fn new(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Digests of large files, remembered in this folder.
    pub fn file_digests(&self) -> FileDigests {
        FileDigests::open(self.root.join("digests.json"))
    }

    /// The shelf of a model's `task` (`mmlu/astronomy` shares its documents with `mmlu`). A folder of the same model
    /// under another name is used again; of two such none is the right one.
    pub fn shelf(&self, model: &str, id: &ModelId, protocol: Protocol, task: &str) -> Result<Shelf> {
        let ending = format!("-{}", &id.digest()[..FOLDER_DIGITS]);
        let runs = self.root.join("runs");
        let mut known = folders(&runs)?;
        known.retain(|folder| folder.to_string_lossy().ends_with(&ending));
        if let [first, other, ..] = &known[..] {
            bail!(
                "{} and {} are folders of one model; move one of them out of {} (lines of its .jsonl files may be appended to \
                 the other's)",
                first.display(),
                other.display(),
                runs.display()
            );
        }
        let folder = known.pop().unwrap_or_else(|| runs.join(format!("{}{ending}", file_name(model))));
        Ok(Shelf { folder: folder.join(protocol.name()), task: task.to_owned() })
    }

    /// Every manifest by path, or why it can't be read.
    pub fn manifests(&self) -> Result<Vec<(PathBuf, Result<Manifest>)>> {
        let mut manifests = Vec::new();
        for model in folders(&self.root.join("runs"))? {
            for protocol in folders(&model)? {
                for path in entries(&protocol)? {
                    if path.extension().is_some_and(|extension| extension == "json") {
                        let manifest = Manifest::read(&path).transpose();
                        manifests.extend(manifest.map(|manifest| (path, manifest)));
                    }
                }
            }
        }
        Ok(manifests)
    }
}

impl Shelf {
    /// The log of documents, which subtasks share.
    pub fn log_path(&self) -> PathBuf {
        let whole = self.task.split('/').next().unwrap_or(&self.task);
        self.folder.join(format!("{}.jsonl", file_name(whole)))
    }

    pub fn manifest_path(&self) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(&self.task)))
    }

    /// The manifest, if there is one.
    pub fn manifest(&self) -> Result<Option<Manifest>> {
        Manifest::read(&self.manifest_path())
    }

    pub fn write_manifest(&self, manifest: &Manifest) -> Result<()> {
        disk::make_folder(&self.folder)?;
        disk::replace(&self.manifest_path(), manifest.to_json().as_bytes())
    }
}

/// `name` as part of a file's name: the last part of a path, other characters than letters, digits, `.`, `_` and `-`
/// replaced.
fn file_name(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.trim_matches('/').chars().map(kept).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "model".to_owned() } else { name.chars().take(80).collect() }
}

/// The folders in `folder`, sorted; none if it is not there.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let place = || format!("can't read the folder {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(place),
    };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().with_context(place)?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(weights: &str) -> ModelId {
        ModelId {
            weights: weights.to_owned(),
            adapter: None,
            tokenizer: "t".to_owned(),
            dtype: "f32".to_owned(),
            quantization: None,
            engine: "e".to_owned(),
        }
    }

    #[test]
    fn a_model_keeps_its_folder_under_another_name_and_shares_it_with_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let shelf =
            |name: &str, weights: &str| store.shelf(name, &id(weights), Protocol::LeaderboardV1, "mmlu").unwrap();
        let first = shelf("models/base", "w");
        std::fs::create_dir_all(&first.folder).unwrap();
        assert_eq!(shelf("./other name", "w"), first);
        assert_ne!(shelf("models/base", "v"), first);
        assert!(first.folder.to_string_lossy().contains("runs/models-base-"));
    }

    #[test]
    fn two_folders_of_one_model_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let shelf = |name: &str| store.shelf(name, &id("w"), Protocol::LeaderboardV1, "mmlu");
        let first = shelf("one").unwrap().folder;
        let other = PathBuf::from(first.to_string_lossy().replace("one-", "two-"));
        [&first, &other].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let error = shelf("one").unwrap_err().to_string();
        assert!(error.contains("runs/one-") && error.contains("runs/two-") && error.contains("move one"), "{error}");
    }

    #[test]
    fn a_subtask_has_its_manifest_and_shares_the_log() {
        let store = Store::new(Path::new("results"));
        let shelf = |task| store.shelf("m", &id("w"), Protocol::LmEvalLatest, task).unwrap();
        assert_eq!(shelf("mmlu/astronomy").log_path(), shelf("mmlu").log_path());
        assert_ne!(shelf("mmlu/astronomy").manifest_path(), shelf("mmlu").manifest_path());
    }

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name("org/name@1 ü"), "org-name-1--");
        assert_eq!(file_name("../../x"), "x");
        assert_eq!(file_name("///"), "model");
    }
}
