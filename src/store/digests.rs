//! Digests of large files, remembered by path, size, change time and inode, since hashing gigabytes at every call would
//! cost more than many an evaluation. Small files are read each time.
//!
//! What is remembered is only a shortcut: a damaged or missing `digests.json` costs time, never an answer.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::digest::sha256_file;
use crate::disk;

/// Files below this are hashed each time, in bytes.
const SMALL: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    size: u64,
    /// Nanoseconds since 1970.
    changed: i128,
    inode: u64,
    device: u64,
    sha256: String,
}

/// The memory of one results folder.
pub struct FileDigests {
    path: PathBuf,
    known: BTreeMap<String, Remembered>,
}

impl FileDigests {
    pub fn open(path: PathBuf) -> FileDigests {
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        FileDigests { path, known: known.unwrap_or_default() }
    }

    /// The sha256 of `file`.
    pub fn of(&mut self, file: &Path) -> Result<String> {
        let place = || format!("can't read {}", file.display());
        let whole = std::fs::canonicalize(file).with_context(place)?;
        let metadata = std::fs::metadata(&whole).with_context(place)?;
        if metadata.len() < SMALL {
            return sha256_file(&whole);
        }
        let key = whole.to_string_lossy().into_owned();
        let mut found = Remembered {
            size: metadata.len(),
            changed: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
            sha256: String::new(),
        };
        if let Some(known) = self.known.get(&key) {
            found.sha256.clone_from(&known.sha256);
            if found == *known {
                return Ok(found.sha256);
            }
        }
        found.sha256 = sha256_file(&whole)?;
        self.known.insert(key, found.clone());
        self.save();
        Ok(found.sha256)
    }

    /// Best effort: a folder that can't be written fails where it matters, when scores are stored.
    fn save(&self) {
        let text = serde_json::to_string_pretty(&self.known).expect("strings and numbers serialise");
        if let Some(folder) = self.path.parent() {
            let _ = disk::make_folder(folder).and_then(|()| disk::replace(&self.path, text.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_hashed_once_and_again_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("weights"), folder.path().join("digests.json"));
        std::fs::write(&file, vec![1; SMALL as usize]).unwrap();
        let first = FileDigests::open(memory.clone()).of(&file).unwrap();
        assert_eq!(first, sha256_file(&file).unwrap());
        // What is remembered is used: a doctored memory is believed...
        let doctored = std::fs::read_to_string(&memory).unwrap().replace(&first, "doctored");
        std::fs::write(&memory, doctored).unwrap();
        assert_eq!(FileDigests::open(memory.clone()).of(&file).unwrap(), "doctored");
        // ...until the file is another.
        std::fs::write(&file, vec![2; SMALL as usize + 1]).unwrap();
        assert_eq!(FileDigests::open(memory).of(&file).unwrap(), sha256_file(&file).unwrap());
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("weights"), folder.path().join("digests.json"));
        std::fs::write(&file, b"small").unwrap();
        std::fs::write(&memory, b"{").unwrap();
        let mut digests = FileDigests::open(memory);
        assert_eq!(digests.of(&file).unwrap(), sha256_file(&file).unwrap());
        assert!(digests.of(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
