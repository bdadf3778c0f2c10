//! A look at dialogues before a run learns from them: what is wrong with which lines, and whether that is too much.
//!
//! Files are read in batches, each row looked at by itself (side by side), and what is found noted in the files' order;
//! so files may be larger than memory, which holds some 40 bytes a dialogue and the lines of what was found.

mod finding;

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;

use super::format::Formatter;
use super::pieces::{Long, Pieces, pieces};
use super::spelling::KEYS;
use super::words::{Hashed, gram, mix, words};
use super::{Dialogue, Fault};
use crate::language::{self, Language};
use crate::rows::{RowStream, StreamedRow};

pub use finding::{Finding, Limits, lines, percent};

/// Bytes of rows that are looked at together.
const BATCH: usize = 8 << 20;

/// How rows are looked at.
#[derive(Default)]
pub struct Reading<'a> {
    /// Without one nothing is said of tokens.
    pub formatter: Option<&'a Formatter<'a>>,
    pub long: Long,
    /// The language that dialogues should be in.
    pub language: Option<Language>,
}

/// A dialogue that can be learnt from, as far as its row tells.
pub struct Checked {
    /// Which of the files.
    pub file: usize,
    pub line: usize,
    pub dialogue: Dialogue,
    /// Its tokens, where there is a formatter.
    pub pieces: Option<Pieces>,
}

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which of the files.
    pub file: usize,
    pub line: usize,
    /// More than the finding says by itself.
    pub detail: Option<String>,
}

/// What some files hold.
#[derive(Debug, Default)]
pub struct Check {
    pub files: Vec<String>,
    pub rows: usize,
    /// Rows that can be learnt from.
    pub dialogues: usize,
    pub turns: usize,
    pub findings: BTreeMap<Finding, Vec<Found>>,
    /// Dialogues by language; those in none that is plain under `None`.
    pub languages: BTreeMap<Option<&'static str>, usize>,
    pub tokens: Option<Tokens>,
}

/// Tokens of the dialogues that can be learnt from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// No example has more.
    pub limit: usize,
    /// Of each dialogue, before anything was cut.
    pub lengths: Vec<u32>,
    /// Examples within the limit, their tokens, and how many of those are predicted.
    pub examples: usize,
    pub tokens: usize,
    pub learnt: usize,
    /// Dialogues that became several examples.
    pub split: usize,
}

/// Looks at every row of `paths` in order and hands on the dialogues that can be learnt from. Only a file that can't be
/// read is an error.
pub fn check(paths: &[PathBuf], reading: &Reading, mut each: impl FnMut(Checked)) -> Result<Check> {
    let mut checker = Checker::new(paths, reading);
    for (file, path) in paths.iter().enumerate() {
        let mut rows = RowStream::open_columns(path, &KEYS)?;
        loop {
            let batch = rows.batch(BATCH)?;
            if batch.is_empty() {
                break;
            }
            let looked: Vec<Looked> = batch.par_iter().map(|row| look(rows.place(), row, reading)).collect();
            for (row, looked) in batch.iter().zip(looked) {
                checker.note(file, row.number, looked).into_iter().for_each(&mut each);
            }
        }
    }
    Ok(checker.check)
}

/// What a row says by itself.
enum Looked {
    Faulty(Fault),
    /// No place in the format.
    OutOfFormat(anyhow::Error),
    Dialogue(Box<Seen>),
}

struct Seen {
    dialogue: Dialogue,
    pieces: Option<Pieces>,
    language: Option<Language>,
    /// Of the words of all turns.
    hash: u64,
    unfinished: bool,
}

fn look(file: &str, row: &StreamedRow, reading: &Reading) -> Looked {
    let dialogue = match Dialogue::read(file, row) {
        Ok(dialogue) => dialogue,
        Err(fault) => return Looked::Faulty(fault),
    };
    let laid_out = reading.formatter.map(|formatter| pieces(&dialogue, formatter, reading.long)).transpose();
    let pieces = match laid_out {
        Err(error) => return Looked::OutOfFormat(error),
        Ok(pieces) => pieces,
    };
    let language = language::of(&dialogue.text());
    let unfinished = dialogue.answers().next_back().is_some_and(is_unfinished);
    Looked::Dialogue(Box::new(Seen { language, hash: hash(&dialogue), unfinished, pieces, dialogue }))
}

fn hash(dialogue: &Dialogue) -> u64 {
    dialogue.messages.iter().fold(0, |hash, message| mix(hash ^ gram(&words(&message.content))))
}

/// Whether an answer stops in the middle: an open block of code, or a last line of six words or more, no item of a list,
/// that ends in a letter, a digit or a comma.
fn is_unfinished(answer: &str) -> bool {
    let last = answer.trim_end().lines().next_back().unwrap_or_default().trim();
    let is_item = last.starts_with(['-', '*', '•', '+', '#', '|']) || last.starts_with(|c: char| c.is_ascii_digit());
    let stops = last.ends_with(|c: char| c.is_alphanumeric() || c == ',');
    let is_open = !answer.matches("```").count().is_multiple_of(2);
    is_open || (stops && !is_item && last.split_whitespace().count() >= 6)
}

struct Checker<'a> {
    reading: &'a Reading<'a>,
    check: Check,
    /// File and line of each dialogue by the hash of its words.
    first: HashMap<u64, (u32, u32), BuildHasherDefault<Hashed>>,
}

impl Checker<'_> {
    fn new<'a>(paths: &[PathBuf], reading: &'a Reading<'a>) -> Checker<'a> {
        let tokens = reading.formatter.map(|formatter| Tokens { limit: formatter.max_tokens(), ..Tokens::default() });
        let files = paths.iter().map(|path| path.display().to_string()).collect();
        Checker { reading, check: Check { files, tokens, ..Check::default() }, first: HashMap::default() }
    }

    fn note(&mut self, file: usize, line: usize, looked: Looked) -> Option<Checked> {
        self.check.rows += 1;
        let mut find = |finding: Finding, detail: Option<String>| {
            self.check.findings.entry(finding).or_default().push(Found { file, line, detail });
        };
        let detail =
            |error: anyhow::Error| Some(error.chain().skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": "));
        let seen = match looked {
            Looked::Faulty(Fault::Malformed(error)) => return find_and_drop(find, Finding::Malformed, detail(error)),
            Looked::Faulty(Fault::EmptyTurn(error)) => return find_and_drop(find, Finding::EmptyTurns, detail(error)),
            Looked::Faulty(Fault::WithoutAnswer) => return find_and_drop(find, Finding::WithoutAnswer, None),
            Looked::OutOfFormat(error) => return find_and_drop(find, Finding::OutOfFormat, detail(error)),
            Looked::Dialogue(seen) => *seen,
        };
        if seen.pieces.as_ref().is_some_and(|pieces| pieces.examples.is_empty()) {
            return find_and_drop(find, Finding::NothingLearnt, None);
        }
        if seen.dialogue.cut_tail {
            find(Finding::CutTails, None);
        }
        if seen.unfinished {
            find(Finding::Unfinished, None);
        }
        if seen.pieces.as_ref().is_some_and(|pieces| pieces.cut) {
            find(Finding::CutAtLimit, None);
        }
        if let (Some(wanted), Some(found)) = (self.reading.language, seen.language)
            && wanted != found
        {
            find(Finding::OtherLanguage, Some(found.to_string()));
        }
        match self.first.get(&seen.hash) {
            Some((file, line)) => {
                let first = super::place(&self.check.files[*file as usize], *line as usize);
                find(Finding::Duplicates, Some(format!("of {first}")));
            }
            None => {
                self.first.insert(seen.hash, (file as u32, line as u32));
            }
        }
        self.check.count(&seen);
        Some(Checked { file, line, dialogue: seen.dialogue, pieces: seen.pieces })
    }
}

fn find_and_drop(
    mut find: impl FnMut(Finding, Option<String>),
    finding: Finding,
    detail: Option<String>,
) -> Option<Checked> {
    find(finding, detail);
    None
}

impl Check {
    fn count(&mut self, seen: &Seen) {
        self.dialogues += 1;
        self.turns += seen.dialogue.messages.len();
        *self.languages.entry(seen.language.map(Language::code)).or_default() += 1;
        if let (Some(tokens), Some(pieces)) = (&mut self.tokens, &seen.pieces) {
            tokens.lengths.push(u32::try_from(pieces.tokens).unwrap_or(u32::MAX));
            tokens.examples += pieces.examples.len();
            tokens.tokens += pieces.examples.iter().map(|example| example.ids.len()).sum::<usize>();
            tokens.learnt += pieces.examples.iter().map(|example| example.target_count()).sum::<usize>();
            tokens.split += usize::from(pieces.split);
        }
    }

    /// How many rows have it.
    pub fn found(&self, finding: Finding) -> usize {
        self.findings.get(&finding).map_or(0, Vec::len)
    }

    /// The share of rows that have it.
    pub fn share(&self, finding: Finding) -> f64 {
        self.found(finding) as f64 / self.rows.max(1) as f64
    }
}

impl Tokens {
    /// Of the dialogues before anything was cut: the median and the longest.
    pub fn median_and_longest(&self) -> (u32, u32) {
        let mut lengths = self.lengths.clone();
        lengths.sort_unstable();
        let at = |index: usize| lengths.get(index).copied().unwrap_or(0);
        (at(lengths.len() / 2), at(lengths.len().saturating_sub(1)))
    }
}

/// The names of `paths`, for errors.
pub fn listed(paths: &[impl AsRef<Path>]) -> String {
    paths.iter().map(|path| path.as_ref().display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
