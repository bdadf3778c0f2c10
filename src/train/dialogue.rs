//! Dialogues to learn from: one row each, in the three spellings that fine-tuning data comes in.
//!
//! `{"conversation": [{"human", "assistant"}, …]}` (Firefly), `{"messages": [{"role", "content"}, …]}` (OpenAI, Hugging
//! Face) and `{"conversations": [{"from", "value"}, …]}` (ShareGPT). Other keys of a row (ids, sources) are passed over.
//! A dialogue begins with the user, after at most one system turn, and its roles alternate; what follows the last answer
//! has nothing to be learnt from and is dropped with a count.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::chat::{Message, Role};
use crate::rows::{Row, Rows};

/// A conversation that ends with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// File and line, for errors.
    pub place: String,
    pub messages: Vec<Message>,
}

/// The dialogues of some files, and what was left out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialogues {
    pub dialogues: Vec<Dialogue>,
    /// Dialogues whose last turns, behind the last answer, were dropped.
    pub cut_tails: usize,
    /// Rows without any answer, dropped whole.
    pub without_answer: usize,
}

impl Dialogues {
    /// Reads every row of `paths` (.jsonl, .parquet), in order. A row that breaks a rule is an error with its line.
    pub fn read(paths: &[PathBuf]) -> Result<Dialogues> {
        let mut all = Dialogues::default();
        for path in paths {
            all.read_file(path)?;
        }
        ensure!(!all.dialogues.is_empty(), "there is no dialogue with an answer in {}", listed(paths));
        Ok(all)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let rows = Rows::open(path)?;
        for index in 0..rows.len() {
            let place = rows.place(index);
            let messages = messages(&rows.get(index)?).with_context(|| place.clone())?;
            self.push(place, messages);
        }
        Ok(())
    }

    fn push(&mut self, place: String, mut messages: Vec<Message>) {
        let Some(last) = messages.iter().rposition(|message| message.role == Role::Assistant) else {
            self.without_answer += 1;
            return;
        };
        self.cut_tails += usize::from(last + 1 < messages.len());
        messages.truncate(last + 1);
        self.dialogues.push(Dialogue { place, messages });
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Reads one turn (Firefly's hold two messages).
type Turn = fn(&Value) -> Result<Vec<Message>>;

/// The turns of a row, their roles and texts checked.
fn messages(row: &Row) -> Result<Vec<Message>> {
    ensure!(!row.contains_key("system"), "`system` stands beside the turns: make it the first turn");
    let spellings: [(&str, Turn); 3] =
        [("conversation", human_and_assistant), ("messages", role_and_content), ("conversations", from_and_value)];
    let mut present = spellings.iter().filter(|(key, _)| row.contains_key(*key));
    let (Some((key, read)), None) = (present.next(), present.next()) else {
        bail!("a dialogue has one of `conversation`, `messages` and `conversations`");
    };
    let turns = row[*key].as_array().with_context(|| format!("`{key}` is not a list"))?;
    let mut messages = Vec::with_capacity(turns.len());
    for (index, turn) in turns.iter().enumerate() {
        messages.extend(read(turn).with_context(|| format!("`{key}`, turn {}", index + 1))?);
    }
    check(&messages)?;
    Ok(messages)
}

fn human_and_assistant(turn: &Value) -> Result<Vec<Message>> {
    Ok(vec![Message::new(Role::User, text(turn, "human")?), Message::new(Role::Assistant, text(turn, "assistant")?)])
}

fn role_and_content(turn: &Value) -> Result<Vec<Message>> {
    Ok(vec![Message::new(text(turn, "role")?.parse()?, text(turn, "content")?)])
}

fn from_and_value(turn: &Value) -> Result<Vec<Message>> {
    let role = match text(turn, "from")? {
        "human" | "user" => Role::User,
        "gpt" | "assistant" => Role::Assistant,
        "system" => Role::System,
        other => bail!("unknown speaker `{other}` (known: human, user, gpt, assistant, system)"),
    };
    Ok(vec![Message::new(role, text(turn, "value")?)])
}

fn text<'a>(turn: &'a Value, key: &str) -> Result<&'a str> {
    let value = turn.get(key).ok_or_else(|| anyhow!("`{key}` is missing"))?;
    value.as_str().ok_or_else(|| anyhow!("`{key}` is not text"))
}

fn check(messages: &[Message]) -> Result<()> {
    ensure!(!messages.is_empty(), "the dialogue has no turns");
    let mut expected = Role::User;
    for (index, message) in messages.iter().enumerate() {
        ensure!(!message.content.trim().is_empty(), "turn {} ({}) is empty", index + 1, message.role);
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

    fn read(lines: &str) -> Result<Dialogues> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.jsonl");
        std::fs::write(&path, lines).unwrap();
        Dialogues::read(&[path])
    }

    fn turns(dialogue: &Dialogue) -> Vec<(Role, &str)> {
        dialogue.messages.iter().map(|message| (message.role, message.content.as_str())).collect()
    }

    #[test]
    fn three_spellings_of_the_same_dialogue() {
        let read = read(concat!(
            "{\"conversation\": [{\"human\": \"Hi\", \"assistant\": \"Hello\"}], \"id\": 7}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello\"}]}\n",
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}, {\"from\": \"gpt\", \"value\": \"Hello\"}]}\n",
        ))
        .unwrap();
        assert_eq!(read.dialogues.len(), 3);
        for dialogue in &read.dialogues {
            assert_eq!(turns(dialogue), [(Role::User, "Hi"), (Role::Assistant, "Hello")]);
        }
        assert!(read.dialogues[2].place.ends_with("some.jsonl, line 3"), "{}", read.dialogues[2].place);
    }

    #[test]
    fn what_follows_the_last_answer_is_dropped_and_counted() {
        let turn = |role: &str, content: &str| format!("{{\"role\": \"{role}\", \"content\": \"{content}\"}}");
        let row = |turns: &[String]| format!("{{\"messages\": [{}]}}\n", turns.join(","));
        let (system, user, answer) = (turn("system", "s"), turn("user", "u"), turn("assistant", "a"));
        let text = row(&[system, user.clone(), answer, user.clone()]) + &row(&[user]);
        let read = read(&text).unwrap();
        assert_eq!((read.dialogues.len(), read.cut_tails, read.without_answer), (1, 1, 1));
        assert_eq!(turns(&read.dialogues[0]), [(Role::System, "s"), (Role::User, "u"), (Role::Assistant, "a")]);
    }

    #[test]
    fn a_row_that_breaks_a_rule_is_an_error_with_its_line() {
        let good = "{\"conversation\": [{\"human\": \"Hi\", \"assistant\": \"Hello\"}]}\n";
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
            ("{\"conversation\": [{\"human\": \" \\n\", \"assistant\": \"x\"}]}", "turn 1 (user) is empty"),
            ("{\"system\": \"s\", \"conversation\": []}", "`system` stands beside the turns"),
            (
                "{\"conversations\": [{\"from\": \"user\", \"value\": \"x\"}, {\"from\": \"system\", \"value\": \"y\"}]}",
                "turn 2 is the system's, where the assistant's was due",
            ),
            ("{\"messages\": ", "not JSON"),
        ] {
            let error = format!("{:#}", read(&format!("{good}{row}\n")).unwrap_err());
            assert!(error.contains(told) && error.contains("some.jsonl, line 2"), "{row}: {error}");
        }
    }

    #[test]
    fn a_file_without_dialogues_is_an_error() {
        assert!(read("\n").unwrap_err().to_string().contains("no dialogue"));
        let error = Dialogues::read(&[PathBuf::from("missing.jsonl")]).unwrap_err();
        assert!(format!("{error:#}").contains("missing.jsonl"));
    }
}
