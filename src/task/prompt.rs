//! A row as the text a protocol shows: question, right answer, and the requests made of them.

use anyhow::{Result, bail, ensure};

use super::definition::{ChoiceList, Clean, Gold, Prompt, Truths};
use crate::protocol::Protocol;
use crate::python;
use crate::rows::Row;

/// A row read through a task's prompt: what is asked and what would be right.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Choice {
        question: String,
        choices: Vec<String>,
        gold: usize,
    },
    True {
        question: String,
        single: Vec<Claim>,
        several: Vec<Claim>,
    },
    /// `ending` follows each of `beginnings`.
    Partial {
        beginnings: Vec<String>,
        ending: String,
        gold: usize,
    },
    Text {
        question: String,
        target: String,
    },
}

/// A choice that is true or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub text: String,
    pub is_true: bool,
}

impl Prompt {
    pub fn read(&self, row: &Row) -> Result<Item> {
        Ok(match self {
            Prompt::MultipleChoice { text, clean, choices, gold } => {
                let cleaned = |text: String| match clean {
                    None => text,
                    Some(Clean::Hellaswag) => clean_hellaswag(&text),
                };
                let choices: Vec<String> = choices.read(row)?.into_iter().map(cleaned).collect();
                Item::Choice { question: cleaned(text.fill(row)?), gold: gold.read(row, choices.len())?, choices }
            }
            Prompt::MultipleTrue { text, single, several } => {
                Item::True { question: text.fill(row)?, single: single.read(row)?, several: several.read(row)? }
            }
            Prompt::PartialContext { sentence, options, gold } => {
                let sentence = sentence.text(row)?;
                let Some((prefix, tail)) = sentence.split_once('_') else { bail!("the sentence has no `_` to fill") };
                let beginning = |option: &super::template::Field| Ok(format!("{prefix}{}", option.text(row)?));
                Item::Partial {
                    beginnings: options.iter().map(beginning).collect::<Result<_>>()?,
                    ending: format!(" {}", python::strip(tail)),
                    gold: gold.read(row, options.len())?,
                }
            }
            Prompt::Generation { text, target, .. } => {
                Item::Text { question: text.fill(row)?, target: target.fill(row)? }
            }
        })
    }
}

impl ChoiceList {
    fn read(&self, row: &Row) -> Result<Vec<String>> {
        match self {
            ChoiceList::Fixed(choices) => Ok(choices.clone()),
            ChoiceList::Field(field) => field.texts(row),
        }
    }
}

impl Gold {
    fn read(&self, row: &Row, choices: usize) -> Result<usize> {
        let gold = match self {
            Gold::Index(field) => field.number(row)?,
            Gold::Number(field) => match field.number(row)?.checked_sub(1) {
                Some(gold) => gold,
                None => bail!("the right answer is numbered from 1, not 0"),
            },
            Gold::Label { label, among } => {
                let label = label.text(row)?;
                match among.texts(row)?.iter().position(|candidate| *candidate == label) {
                    Some(gold) => gold,
                    None => bail!("the answer {label:?} is not among the labels"),
                }
            }
        };
        ensure!(gold < choices, "the right answer is number {} of {choices} choices", gold + 1);
        Ok(gold)
    }
}

impl Truths {
    fn read(&self, row: &Row) -> Result<Vec<Claim>> {
        let choices = self.choices.texts(row)?;
        let labels: Option<Vec<bool>> = self.labels.value(row)?.as_array().and_then(|labels| {
            labels.iter().map(|label| label.as_u64().filter(|&label| label < 2).map(|label| label == 1)).collect()
        });
        match labels {
            Some(labels) if labels.len() == choices.len() => {
                Ok(choices.into_iter().zip(labels).map(|(text, is_true)| Claim { text, is_true }).collect())
            }
            _ => bail!("labels are a list of 0 and 1, one for each choice"),
        }
    }
}

impl Item {
    /// What stands at the end of the context, before the continuation. (For partial contexts it differs by request.)
    pub fn question(&self) -> &str {
        match self {
            Item::Choice { question, .. } | Item::True { question, .. } | Item::Text { question, .. } => question,
            Item::Partial { beginnings, gold, .. } => &beginnings[*gold],
        }
    }

    /// The right answer as it follows the question, without the space between.
    pub fn target(&self) -> Result<&str> {
        Ok(match self {
            Item::Choice { choices, gold, .. } => &choices[*gold],
            Item::True { several, .. } => match several.iter().find(|claim| claim.is_true) {
                Some(claim) => &claim.text,
                None => bail!("no choice is true"),
            },
            Item::Partial { ending, .. } => &ending[1..],
            Item::Text { target, .. } => target,
        })
    }

    /// The item as an example in a prompt.
    pub fn shot(&self) -> Result<String> {
        Ok(format!("{} {}", self.question(), self.target()?))
    }

    /// The choices whose probability is asked for, in the order of the requests.
    pub fn continuations(&self, protocol: Protocol) -> Vec<&str> {
        match self {
            Item::Choice { choices, .. } => choices.iter().map(String::as_str).collect(),
            Item::True { single, several, .. } => {
                // leaderboard-v1 asked for both lists in one go, lm-eval-latest's mc2 task for the second only.
                let asked: &[Claim] = match protocol {
                    Protocol::LeaderboardV1 => single,
                    Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => &[],
                };
                asked.iter().chain(several).map(|claim| claim.text.as_str()).collect()
            }
            Item::Partial { .. } | Item::Text { .. } => Vec::new(),
        }
    }
}

/// lm-evaluation-harness' preprocessing of HellaSwag (`lm_eval/tasks/hellaswag/utils.py`): strip; ` [title]` becomes
/// `. `; bracketed markers go; doubled spaces are folded once, left to right. Not stripped again afterwards.
pub fn clean_hellaswag(text: &str) -> String {
    let text = python::strip(text).replace(" [title]", ". ");
    remove_brackets(&text).replace("  ", " ")
}

/// Deletes every match of `\[.*?\]`, where `.` is no newline.
fn remove_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        match inside.find([']', '\n']) {
            Some(close) if inside[close..].starts_with(']') => rest = &inside[close + 1..],
            _ => {
                kept.push('[');
                rest = inside;
            }
        }
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_is_cleaned_step_by_step() {
        assert_eq!(clean_hellaswag(" A [title] B [step] c. "), "A. B c.");
        assert_eq!(clean_hellaswag("[header] How to x"), " How to x");
        assert_eq!(clean_hellaswag("a   b"), "a  b", "three spaces fold to two");
        assert_eq!(clean_hellaswag("a [b\nc] d ] [e"), "a [b\nc] d ] [e", "a marker ends on its line");
    }
}
