//! Choosing dialogues from a large collection by stated rules: what Firefly's authors did with UltraChat for
//! firefly-mixtral-8x7b, and did not publish.
//!
//! One pass over the files, in batches: every row is judged by itself (side by side), then those left are compared with
//! the dialogues kept so far, in the files' order. The same files and rules give the same output on any number of threads.
//! Memory grows by a kept dialogue's signature and place alone (about 500 to 670 bytes, see [`super::minhash`]), and by what is
//! told of dialogues that hold a benchmark's documents.

mod report;
mod rule;

use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;

use super::contamination::Named;
use super::minhash::{MinHash, Seen, Signature};
use super::place;
use crate::progress::Progress;
use crate::rows::RowStream;

pub use report::{Contaminated, Removed, Report};
pub use rule::{Rule, Rules};

/// Bytes of rows that are judged together.
const BATCH: usize = 8 << 20;

/// What a filter writes to.
pub trait Sink {
    /// A row that stays, as its file has it, without a line end.
    fn keep(&mut self, row: &[u8]) -> Result<()>;
    /// A row that goes.
    fn remove(&mut self, removed: &Removed) -> Result<()>;
}

/// Why a row goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    pub rule: Rule,
    pub why: String,
    /// Of the contamination rule: the document, and how many runs of words it shares.
    pub document: Option<(Named, usize)>,
}

/// A row that passed every rule that looks at it alone.
pub struct Passed {
    /// Words of all turns.
    pub words: usize,
    /// Where duplicates are looked for.
    pub signature: Option<Signature>,
}

/// Judges every row of `paths`, in order.
pub fn filter(paths: &[PathBuf], rules: &Rules, sink: &mut dyn Sink, progress: &Progress) -> Result<Report> {
    let mut filter = Filter::new(paths, rules);
    for (file, path) in paths.iter().enumerate() {
        filter.file(file, path, sink, progress)?;
    }
    Ok(filter.report)
}

struct Filter<'a> {
    rules: &'a Rules,
    minhash: MinHash,
    seen: Seen,
    /// File and line of each dialogue in `seen`.
    places: Vec<(u32, u32)>,
    report: Report,
}

impl Filter<'_> {
    fn new<'a>(paths: &[PathBuf], rules: &'a Rules) -> Filter<'a> {
        Filter {
            rules,
            minhash: MinHash::default(),
            seen: Seen::new(rules.duplicates.unwrap_or(1.0)),
            places: Vec::new(),
            report: Report::new(paths, rules),
        }
    }

    fn file(&mut self, file: usize, path: &Path, sink: &mut dyn Sink, progress: &Progress) -> Result<()> {
        let mut rows = RowStream::open(path)?;
        loop {
            let batch = rows.batch(BATCH)?;
            if batch.is_empty() {
                return Ok(());
            }
            let judged: Vec<Result<Passed, Removal>> =
                batch.par_iter().map(|row| self.rules.judge(rows.place(), row, &self.minhash)).collect();
            for (row, judged) in batch.iter().zip(judged) {
                match judged.and_then(|passed| self.new_to_us(file, row.number, passed)) {
                    Ok(words) => {
                        self.report.keep(words);
                        sink.keep(&row.text)?;
                    }
                    Err(removal) => sink.remove(self.report.remove(file, row.number, removal))?,
                }
                progress.advance(row.text.len() as u64 + 1);
            }
        }
    }

    /// The dialogue's words, unless an earlier one says nearly the same.
    fn new_to_us(&mut self, file: usize, line: usize, passed: Passed) -> Result<usize, Removal> {
        let Some(signature) = &passed.signature else { return Ok(passed.words) };
        let Some((number, similarity)) = self.seen.find_or_add(signature) else {
            self.places.push((file as u32, line as u32));
            return Ok(passed.words);
        };
        let (file, line) = self.places[number];
        let first = place(&self.report.files[file as usize], line as usize);
        Err(Removal { rule: Rule::Duplicates, why: format!("{similarity:.2} like {first}"), document: None })
    }
}

#[cfg(test)]
mod tests;
