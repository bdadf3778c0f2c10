//! Dialogues to learn from: read in the field's spellings ([`spelling`]), laid out as tokens with a loss mask ([`format`]),
//! looked over before a run ([`check`]), and chosen from larger collections ([`filter`]).
//!
//! A dialogue begins with the user, after at most one system turn, and its roles alternate; what follows the last answer
//! has nothing to be learnt from and is dropped.

pub mod check;
pub mod contamination;
pub mod filter;
pub mod format;
pub mod minhash;
pub mod pieces;
pub mod refusal;
pub mod repetition;
pub mod spelling;
pub mod words;

use anyhow::{Context, Result, ensure};

use crate::chat::{Message, Role};
use crate::rows::StreamedRow;

/// A conversation that ends with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// File and line, for errors.
    pub place: String,
    pub messages: Vec<Message>,
    /// Turns behind the last answer were dropped.
    pub cut_tail: bool,
}

/// Why a row is no dialogue. Errors name file and line.
#[derive(Debug)]
pub enum Fault {
    /// Not JSON, none of the spellings, or roles out of turn.
    Malformed(anyhow::Error),
    EmptyTurn(anyhow::Error),
    WithoutAnswer,
}

impl Dialogue {
    /// Reads `row` of the file `file`.
    pub fn read(file: &str, row: &StreamedRow) -> std::result::Result<Dialogue, Fault> {
        let place = place(file, row.number);
        let read = row.read().and_then(|row| spelling::messages(&row));
        let mut messages = read.with_context(|| place.clone()).map_err(Fault::Malformed)?;
        none_empty(&messages).with_context(|| place.clone()).map_err(Fault::EmptyTurn)?;
        in_turn(&messages).with_context(|| place.clone()).map_err(Fault::Malformed)?;
        let last = messages.iter().rposition(|message| message.role == Role::Assistant).ok_or(Fault::WithoutAnswer)?;
        let cut_tail = last + 1 < messages.len();
        messages.truncate(last + 1);
        Ok(Dialogue { place, messages, cut_tail })
    }

    /// What the assistant says, turn by turn.
    pub fn answers(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.messages.iter().filter(|message| message.role == Role::Assistant).map(|message| message.content.as_str())
    }

    /// All turns, a line or more each, as one text.
    pub fn text(&self) -> String {
        self.messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// How errors and lists name a row.
pub fn place(file: &str, line: usize) -> String {
    format!("{file}, line {line}")
}

fn none_empty(messages: &[Message]) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        ensure!(!message.content.trim().is_empty(), "turn {} ({}) is empty", index + 1, message.role);
    }
    Ok(())
}

fn in_turn(messages: &[Message]) -> Result<()> {
    ensure!(!messages.is_empty(), "the dialogue has no turns");
    let mut expected = Role::User;
    for (index, message) in messages.iter().enumerate() {
        if index == 0 && message.role == Role::System {
            continue;
        }
        let role = message.role;
        ensure!(role == expected, "turn {} is the {role}'s, where the {expected}'s was due", index + 1);
        expected = if expected == Role::User { Role::Assistant } else { Role::User };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> std::result::Result<Dialogue, Fault> {
        Dialogue::read("some.jsonl", &StreamedRow { number: 2, text: line.as_bytes().to_vec() })
    }

    fn turns(line: &str) -> Vec<(Role, String)> {
        let messages = read(line).unwrap().messages;
        messages.into_iter().map(|message| (message.role, message.content)).collect()
    }

    #[test]
    fn what_follows_the_last_answer_is_dropped() {
        let turn = |role: &str, content: &str| format!("{{\"role\": \"{role}\", \"content\": \"{content}\"}}");
        let row = |turns: &[String]| format!("{{\"messages\": [{}]}}\n", turns.join(","));
        let (system, user, answer) = (turn("system", "s"), turn("user", "u"), turn("assistant", "a"));
        let found = read(&row(&[system, user.clone(), answer, user.clone()])).unwrap();
        assert!(found.cut_tail && found.place == "some.jsonl, line 2");
        assert_eq!((found.text().as_str(), found.answers().collect::<Vec<_>>()), ("s\nu\na", vec!["a"]));
        assert!(matches!(read(&row(&[user])), Err(Fault::WithoutAnswer)));
    }

    #[test]
    fn a_system_prompt_beside_the_turns_is_the_first_turn() {
        let line = "{\"system\": \"s\", \"conversation\": [{\"human\": \"u\", \"assistant\": \"a\"}]}";
        assert_eq!(turns(line)[0], (Role::System, "s".to_owned()));
        assert_eq!(turns(&line.replace("\"s\"", "\" \"")).len(), 2, "an empty one is none");
        assert_eq!(turns(&line.replace("\"s\"", "null")).len(), 2);
    }

    #[test]
    fn a_row_that_breaks_a_rule_is_an_error_with_its_line() {
        for (row, told) in [
            ("{\"text\": \"x\"}", "has one of `conversation`"),
            ("{\"messages\": [], \"conversation\": []}", "has one of `conversation`"),
            ("{\"messages\": \"x\"}", "`messages` is not a list"),
            ("{\"messages\": []}", "no turns"),
            ("{\"messages\": [7]}", "turn 1: `role` is missing"),
            ("{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}", "unknown role `robot`"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "`content` is not text"),
            ("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}", "where the user's was due"),
            ("{\"conversations\": [{\"from\": \"bard\", \"value\": \"x\"}]}", "unknown speaker `bard`"),
            ("{\"conversation\": [{\"human\": \"x\"}]}", "`assistant` is missing"),
            ("{\"data\": [7]}", "turn 1 is not text"),
            ("{\"instruction\": \"x\"}", "`output` is missing"),
            ("{\"instruction\": \"x\", \"input\": 7, \"output\": \"y\"}", "`input` is not text"),
            ("{\"system\": 7, \"conversation\": []}", "`system` is not text"),
            (
                "{\"conversations\": [{\"from\": \"user\", \"value\": \"x\"}, {\"from\": \"system\", \"value\": \"y\"}]}",
                "turn 2 is the system's, where the assistant's was due",
            ),
            ("{\"messages\": ", "not JSON"),
            ("[]", "a row is a JSON object"),
        ] {
            let Err(Fault::Malformed(error)) = read(row) else { panic!("{row} is read") };
            let error = format!("{error:#}");
            assert!(error.contains(told) && error.contains("some.jsonl, line 2"), "{row}: {error}");
        }
        for row in ["{\"conversation\": [{\"human\": \" \\n\", \"assistant\": \"x\"}]}", "{\"data\": [\"\", \"x\"]}"] {
            let Err(Fault::EmptyTurn(error)) = read(row) else { panic!("{row} is read") };
            assert!(format!("{error:#}").contains("line 2: turn 1 (user) is empty"), "{error:#}");
        }
    }
}
