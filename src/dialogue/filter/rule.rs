//! The rules, in the order they are tried; the first that speaks removes a dialogue.

use std::ops::RangeInclusive;

use super::{Passed, Removal};
use crate::dialogue::contamination::Benchmarks;
use crate::dialogue::minhash::MinHash;
use crate::dialogue::refusal::Phrases;
use crate::dialogue::repetition::repeated_share;
use crate::dialogue::words::words;
use crate::dialogue::{Dialogue, Fault};
use crate::language::{self, Language};
use crate::rows::StreamedRow;

/// A reason to leave a dialogue out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// It is no dialogue. Always on.
    Unreadable,
    Length,
    Language,
    Refusals,
    Repetition,
    Contamination,
    Duplicates,
}

/// What each rule asks; a rule that is `None` is off.
#[derive(Default)]
pub struct Rules {
    /// Words of all turns together.
    pub length: Option<RangeInclusive<usize>>,
    /// Dialogues that are plainly in another one go; those in none that is plain (figures, code) stay.
    pub language: Option<Language>,
    /// What no answer may hold.
    pub refusals: Option<Phrases>,
    /// The largest share of an answer's runs of words that it may have had before; and no two answers may be equal.
    pub repetition: Option<f64>,
    pub contamination: Option<Benchmarks>,
    /// From what similarity on two dialogues are the same, 0 to 1.
    pub duplicates: Option<f64>,
}

impl Rule {
    pub const ALL: [Rule; 7] = [
        Rule::Unreadable,
        Rule::Length,
        Rule::Language,
        Rule::Refusals,
        Rule::Repetition,
        Rule::Contamination,
        Rule::Duplicates,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Rule::Unreadable => "unreadable",
            Rule::Length => "length",
            Rule::Language => "language",
            Rule::Refusals => "refusals",
            Rule::Repetition => "repetition",
            Rule::Contamination => "contamination",
            Rule::Duplicates => "duplicates",
        }
    }
}

type Judgement = Result<(), (Rule, String)>;

impl Rules {
    /// What is asked of a dialogue by `rule`, or that nothing is.
    pub fn setting(&self, rule: Rule) -> String {
        let stated = match rule {
            Rule::Unreadable => Some("rows that are no dialogue".to_owned()),
            Rule::Length => self
                .length
                .as_ref()
                .map(|words| format!("fewer than {} or more than {} words", words.start(), words.end())),
            Rule::Language => self.language.map(|language| format!("plainly not in {language}")),
            Rule::Refusals => self.refusals.as_ref().map(|_| "an answer with a listed phrase".to_owned()),
            Rule::Repetition => {
                self.repetition.map(|most| format!("an answer repeats itself by more than {most}, or another answer"))
            }
            Rule::Contamination => self.contamination.as_ref().map(|benchmarks| {
                let (documents, runs) = benchmarks.counts();
                format!("shares one of {runs} runs of words with {documents} benchmark documents")
            }),
            Rule::Duplicates => self.duplicates.map(|similarity| format!("MinHash similarity of {similarity} or more")),
        };
        stated.unwrap_or_else(|| "off".to_owned())
    }

    /// What the rules say of a row by itself (all but the last).
    pub fn judge(&self, file: &str, row: &StreamedRow, minhash: &MinHash) -> Result<Passed, Removal> {
        let removal = |(rule, why)| Removal { rule, why, document: None };
        let dialogue = Dialogue::read(file, row).map_err(|fault| removal((Rule::Unreadable, told(fault))))?;
        let text = dialogue.text();
        let words = words(&text);
        self.length(words.len())
            .and_then(|()| self.language(&text))
            .and_then(|()| self.refusals(&dialogue))
            .and_then(|()| self.repetition(&dialogue))
            .map_err(removal)?;
        self.contamination(&dialogue)?;
        Ok(Passed { words: words.len(), signature: self.duplicates.map(|_| minhash.signature(&words)) })
    }

    fn length(&self, words: usize) -> Judgement {
        match &self.length {
            Some(length) if !length.contains(&words) => Err((Rule::Length, format!("{words} words"))),
            Some(_) | None => Ok(()),
        }
    }

    fn language(&self, text: &str) -> Judgement {
        let Some(wanted) = self.language else { return Ok(()) };
        match language::of(text) {
            Some(found) if found != wanted => Err((Rule::Language, found.to_string())),
            Some(_) | None => Ok(()),
        }
    }

    fn refusals(&self, dialogue: &Dialogue) -> Judgement {
        let Some(phrases) = &self.refusals else { return Ok(()) };
        match dialogue.answers().find_map(|answer| phrases.found_in(answer)) {
            Some(phrase) => Err((Rule::Refusals, phrase.to_owned())),
            None => Ok(()),
        }
    }

    fn repetition(&self, dialogue: &Dialogue) -> Judgement {
        let Some(most) = self.repetition else { return Ok(()) };
        let mut answers: Vec<&str> = dialogue.answers().map(str::trim).collect();
        if let Some(share) = answers.iter().map(|answer| repeated_share(answer)).find(|share| *share > most) {
            return Err((Rule::Repetition, format!("an answer repeats {share:.2} of itself")));
        }
        answers.sort_unstable();
        match answers.windows(2).find(|pair| pair[0] == pair[1] && words(pair[0]).len() >= SAID_TWICE) {
            Some(_) => Err((Rule::Repetition, "the same answer twice".to_owned())),
            None => Ok(()),
        }
    }

    fn contamination(&self, dialogue: &Dialogue) -> Result<(), Removal> {
        let Some(overlap) = self.contamination.as_ref().and_then(|benchmarks| benchmarks.overlap(dialogue)) else {
            return Ok(());
        };
        let document = Some((overlap.document.clone(), overlap.runs));
        Err(Removal { rule: Rule::Contamination, why: overlap.text, document })
    }
}

/// Shorter answers (`Yes.`, `You are welcome.`) may come twice.
const SAID_TWICE: usize = 8;

fn told(fault: Fault) -> String {
    let without_place =
        |error: anyhow::Error| error.chain().skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    match fault {
        Fault::Malformed(error) | Fault::EmptyTurn(error) => without_place(error),
        Fault::WithoutAnswer => "no answer".to_owned(),
    }
}
