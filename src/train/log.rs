//! `train_log.jsonl`: a line for every step, and one for every time the held-out loss was taken.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::disk;

pub const FILE: &str = "train_log.jsonl";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Entry {
    Step(Step),
    HeldOut(HeldOut),
}

/// What one step did. Losses are natural logs; a number that is not finite is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// From 1.
    pub step: usize,
    /// What was minimised: `cross_entropy` plus the router's part; means over the micro-batches.
    pub loss: Option<f64>,
    pub cross_entropy: Option<f64>,
    /// The load-balancing loss before its coefficient; `null` for a dense model.
    pub router_aux: Option<f64>,
    /// Before clipping.
    pub grad_norm: Option<f64>,
    pub learning_rate: f64,
    /// Tokens that went through the model, learnt or not.
    pub tokens: usize,
    pub tokens_per_second: f64,
    pub seconds: f64,
    /// The step changed nothing, since its loss or gradient was not finite.
    #[serde(default, skip_serializing_if = "is_false")]
    pub skipped: bool,
}

/// The loss of the held-out dialogues after so many steps: mean cross-entropy over their learnt tokens; `null` where it is
/// not finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    pub step: usize,
    #[serde(deserialize_with = "Option::deserialize")] // a line without it is none
    pub held_out_loss: Option<f64>,
}

impl Entry {
    fn step(&self) -> usize {
        match self {
            Entry::Step(step) => step.step,
            Entry::HeldOut(held_out) => held_out.step,
        }
    }
}

/// The log of a run, open at its end.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log in `folder` for a run that has done `steps` steps: lines of later steps (a run that got further
    /// than its last state) and a torn last line are dropped. A run that has done none begins its own.
    pub fn open(folder: &Path, steps: usize) -> Result<Log> {
        let path = folder.join(FILE);
        if path.exists() {
            let earlier = if steps == 0 { Vec::new() } else { read(&path)? };
            let kept: String = earlier.iter().filter(|entry| entry.step() <= steps).map(line).collect();
            disk::replace(&path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path);
        Ok(Log { file: file.with_context(|| format!("cannot write {}", path.display()))?, path })
    }

    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        self.file.write_all(line(entry).as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The entries of a log; a torn last line is passed over.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let entry = |(index, line)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}: no log entry", path.display(), index + 1))
    };
    whole.lines().enumerate().map(entry).collect()
}

fn line(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("an entry is plain numbers") + "\n"
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An entry for tests; without a loss the step was skipped.
    pub fn step(step: usize, loss: Option<f64>) -> Entry {
        Entry::Step(Step {
            step,
            loss,
            cross_entropy: loss,
            router_aux: None,
            grad_norm: loss,
            learning_rate: 1e-4,
            tokens: 100,
            tokens_per_second: 50.0,
            seconds: 2.0,
            skipped: loss.is_none(),
        })
    }

    #[test]
    fn a_log_continues_where_its_state_is() {
        let folder = tempfile::tempdir().unwrap();
        let step = |at| step(at, Some(2.5));
        let held_out = |step| Entry::HeldOut(HeldOut { step, held_out_loss: Some(3.0) });
        let mut log = Log::open(folder.path(), 0).unwrap();
        for entry in [held_out(0), step(1), step(2), held_out(2), step(3)] {
            log.append(&entry).unwrap();
        }
        drop(log);
        let path = folder.path().join(FILE);
        let torn = std::fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"lo";
        std::fs::write(&path, torn).unwrap();
        Log::open(folder.path(), 2).unwrap().append(&step(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [held_out(0), step(1), step(2), held_out(2), step(3)]);
    }

    #[test]
    fn a_run_from_the_start_has_a_log_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "{\"step\":0,\"held_out_loss\":3.0}\nof an earlier attempt\n").unwrap();
        Log::open(folder.path(), 0).unwrap().append(&step(1, None)).unwrap();
        assert_eq!(read(&path).unwrap(), [step(1, None)]);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [Entry::HeldOut(HeldOut { step: 0, held_out_loss: None }), step(1, None)];
        let mut log = Log::open(folder.path(), 0).unwrap();
        entries.iter().for_each(|entry| log.append(entry).unwrap());
        let path = folder.path().join(FILE);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\"step\":0,\"held_out_loss\":null}\n"));
        assert_eq!(read(&path).unwrap(), entries);
    }

    #[test]
    fn a_line_that_is_no_entry_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for line in ["{}", "{\"step\":1}"] {
            std::fs::write(&path, format!("{{\"step\":0,\"held_out_loss\":3.0}}\n{line}\n")).unwrap();
            assert!(format!("{:#}", read(&path).unwrap_err()).contains("line 2"), "{line}");
        }
    }
}
