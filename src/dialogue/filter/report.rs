//! What a filter did.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Removal, Rule, Rules};
use crate::dialogue::contamination::Named;
use crate::dialogue::place;

/// Places a rule is shown with.
const SHOWN: usize = 3;

/// What a filter did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub files: Vec<String>,
    pub rows: usize,
    pub kept: usize,
    /// Words of the dialogues kept.
    pub words: usize,
    /// Each rule with what it asks.
    pub settings: Vec<(Rule, String)>,
    pub removed: BTreeMap<Rule, usize>,
    /// The first rows that each rule removed, with the reason.
    pub first: BTreeMap<Rule, Vec<(String, String)>>,
    pub contaminated: Vec<Contaminated>,
    last: Removed,
}

/// A row that went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub file: String,
    pub line: usize,
    pub rule: &'static str,
    pub why: String,
}

/// A dialogue with a document of a benchmark in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contaminated {
    pub place: String,
    pub document: Named,
    /// Runs of words that both have, and the first of them.
    pub runs: usize,
    pub text: String,
}

impl Report {
    pub fn new(paths: &[PathBuf], rules: &Rules) -> Report {
        Report {
            files: paths.iter().map(|path| path.display().to_string()).collect(),
            rows: 0,
            kept: 0,
            words: 0,
            settings: Rule::ALL.into_iter().map(|rule| (rule, rules.setting(rule))).collect(),
            removed: BTreeMap::new(),
            first: BTreeMap::new(),
            contaminated: Vec::new(),
            last: Removed::default(),
        }
    }

    pub(super) fn keep(&mut self, words: usize) {
        self.rows += 1;
        self.kept += 1;
        self.words += words;
    }

    pub(super) fn remove(&mut self, file: usize, line: usize, removal: Removal) -> &Removed {
        let Removal { rule, why, document } = removal;
        self.rows += 1;
        *self.removed.entry(rule).or_default() += 1;
        let place = place(&self.files[file], line);
        let first = self.first.entry(rule).or_default();
        if first.len() < SHOWN {
            first.push((place.clone(), why.clone()));
        }
        if let Some((document, runs)) = document {
            self.contaminated.push(Contaminated { place, document, runs, text: why.clone() });
        }
        self.last = Removed { file: self.files[file].clone(), line, rule: rule.name(), why };
        &self.last
    }

    pub fn removed(&self, rule: Rule) -> usize {
        self.removed.get(&rule).copied().unwrap_or(0)
    }
}
