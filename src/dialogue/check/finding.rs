//! What can be wrong with a row, and how much of it a run puts up with.

use anyhow::{Result, bail};
use serde::{Deserialize, Deserializer};

use super::{Check, Found};
use crate::language::Language;

/// What can be wrong with a row. Of the first five nothing can be learnt: they are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    Malformed,
    EmptyTurns,
    WithoutAnswer,
    OutOfFormat,
    NothingLearnt,
    Duplicates,
    OtherLanguage,
    Unfinished,
    CutAtLimit,
    CutTails,
}

/// `[data.limits]`: the largest share of rows with a finding, 0 to 1. More stops a run before it begins.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub malformed: f64,
    pub empty_turns: f64,
    pub without_answer: f64,
    pub out_of_format: f64,
    pub nothing_learnt: f64,
    pub duplicates: f64,
    pub other_language: f64,
    pub unfinished: f64,
    pub cut_at_limit: f64,
    pub cut_tails: f64,
    /// What `other_language` counts against; without it nothing is.
    #[serde(deserialize_with = "language")]
    pub language: Option<Language>,
}

impl Default for Limits {
    /// Nothing that cannot be read, little that is dropped or learnt twice; what is only shortened is told, not refused.
    fn default() -> Limits {
        Limits {
            malformed: 0.0,
            empty_turns: 0.0,
            without_answer: 0.1,
            out_of_format: 0.0,
            nothing_learnt: 0.1,
            duplicates: 0.1,
            other_language: 0.1,
            unfinished: 1.0,
            cut_at_limit: 1.0,
            cut_tails: 1.0,
            language: None,
        }
    }
}

fn language<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Language>, D::Error> {
    let code = String::deserialize(deserializer)?;
    code.parse().map(Some).map_err(serde::de::Error::custom)
}

impl Limits {
    pub fn of(&self, finding: Finding) -> f64 {
        match finding {
            Finding::Malformed => self.malformed,
            Finding::EmptyTurns => self.empty_turns,
            Finding::WithoutAnswer => self.without_answer,
            Finding::OutOfFormat => self.out_of_format,
            Finding::NothingLearnt => self.nothing_learnt,
            Finding::Duplicates => self.duplicates,
            Finding::OtherLanguage => self.other_language,
            Finding::Unfinished => self.unfinished,
            Finding::CutAtLimit => self.cut_at_limit,
            Finding::CutTails => self.cut_tails,
        }
    }

    /// Shares are from 0 to 1.
    pub fn check(&self) -> Result<()> {
        for finding in Finding::ALL {
            let (name, share) = (finding.name(), self.of(finding));
            if !(0.0..=1.0).contains(&share) {
                bail!("`[data.limits] {name}` is {share}, outside 0 to 1: it is a share of the rows");
            }
        }
        Ok(())
    }
}

impl Finding {
    pub const ALL: [Finding; 10] = [
        Finding::Malformed,
        Finding::EmptyTurns,
        Finding::WithoutAnswer,
        Finding::OutOfFormat,
        Finding::NothingLearnt,
        Finding::Duplicates,
        Finding::OtherLanguage,
        Finding::Unfinished,
        Finding::CutAtLimit,
        Finding::CutTails,
    ];

    /// Its limit's key.
    pub fn name(self) -> &'static str {
        match self {
            Finding::Malformed => "malformed",
            Finding::EmptyTurns => "empty_turns",
            Finding::WithoutAnswer => "without_answer",
            Finding::OutOfFormat => "out_of_format",
            Finding::NothingLearnt => "nothing_learnt",
            Finding::Duplicates => "duplicates",
            Finding::OtherLanguage => "other_language",
            Finding::Unfinished => "unfinished",
            Finding::CutAtLimit => "cut_at_limit",
            Finding::CutTails => "cut_tails",
        }
    }

    /// As it follows "rows".
    pub fn meaning(self) -> &'static str {
        match self {
            Finding::Malformed => "that are no dialogue",
            Finding::EmptyTurns => "with an empty turn",
            Finding::WithoutAnswer => "without an answer",
            Finding::OutOfFormat => "that the format has no place for",
            Finding::NothingLearnt => "with nothing to learn within the token limit",
            Finding::Duplicates => "with the words of an earlier dialogue",
            Finding::OtherLanguage => "in another language",
            Finding::Unfinished => "whose last answer stops in the middle",
            Finding::CutAtLimit => "cut at the token limit",
            Finding::CutTails => "without the turns behind their last answer",
        }
    }

    /// Whether such rows are left out of a run.
    pub fn is_left_out(self) -> bool {
        match self {
            Finding::Malformed
            | Finding::EmptyTurns
            | Finding::WithoutAnswer
            | Finding::OutOfFormat
            | Finding::NothingLearnt => true,
            Finding::Duplicates
            | Finding::OtherLanguage
            | Finding::Unfinished
            | Finding::CutAtLimit
            | Finding::CutTails => false,
        }
    }
}

/// Lines that an error names.
const NAMED: usize = 8;

impl Check {
    /// What exceeds `limits`, a sentence each with the limit's key and the lines.
    pub fn exceeded(&self, limits: &Limits) -> Vec<String> {
        let over = Finding::ALL.into_iter().filter(|&finding| self.share(finding) > limits.of(finding));
        over.map(|finding| self.sentence(finding, limits.of(finding))).collect()
    }

    /// An error where a limit is exceeded.
    pub fn enforce(&self, limits: &Limits) -> Result<()> {
        let exceeded = self.exceeded(limits);
        if exceeded.is_empty() {
            return Ok(());
        }
        bail!("{} (`fireval dialogues check` lists every line; mend the data, or raise the limit)", exceeded.join("; "))
    }

    fn sentence(&self, finding: Finding, limit: f64) -> String {
        let found = &self.findings[&finding];
        let within = match (&self.tokens, finding) {
            (Some(tokens), Finding::NothingLearnt) => format!(" (within {} tokens)", tokens.limit),
            _ => String::new(),
        };
        format!(
            "`[data.limits] {}` allows {} of the rows, and {} of {} ({}) are rows {}{within}: {}",
            finding.name(),
            percent(limit),
            found.len(),
            self.rows,
            percent(self.share(finding)),
            finding.meaning(),
            self.lines(found, NAMED)
        )
    }

    /// [`lines`] of these files.
    pub fn lines(&self, found: &[Found], most: usize) -> String {
        lines(&self.files, found, most)
    }
}

/// `some.jsonl, lines 3, 17: why, 20; other.jsonl, line 2; and 7 more`, at most `most` of them.
pub fn lines(files: &[String], found: &[Found], most: usize) -> String {
    let shown = &found[..found.len().min(most)];
    let mut parts: Vec<String> = shown
        .chunk_by(|a, b| a.file == b.file)
        .map(|chunk| {
            let word = if chunk.len() == 1 { "line" } else { "lines" };
            let lines: Vec<String> = chunk.iter().map(line).collect();
            format!("{}, {word} {}", files[chunk[0].file], lines.join(", "))
        })
        .collect();
    if found.len() > most {
        parts.push(format!("and {} more", found.len() - most));
    }
    parts.join("; ")
}

fn line(found: &Found) -> String {
    match &found.detail {
        Some(detail) => format!("{}: {detail}", found.line),
        None => found.line.to_string(),
    }
}

/// A share with one decimal, without one where that is 0.
pub fn percent(share: f64) -> String {
    let tenths = (share * 1000.0).round();
    if tenths % 10.0 == 0.0 { format!("{} %", tenths / 10.0) } else { format!("{:.1} %", tenths / 10.0) }
}
