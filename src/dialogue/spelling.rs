//! The spellings that fine-tuning data comes in, each known by the one key that only it has.
//!
//! | key | of | turns |
//! |---|---|---|
//! | `conversation` | Firefly | `{"human", "assistant"}`, two turns each |
//! | `messages` | OpenAI, Hugging Face | `{"role", "content"}` |
//! | `conversations` | ShareGPT | `{"from", "value"}` |
//! | `data` | UltraChat | strings, the user's and the assistant's in turn |
//! | `instruction` | Alpaca | `instruction`, `input` and `output`, one question and its answer |
//!
//! A `system` beside the turns is their first. Other keys of a row (ids, sources) are passed over; a key that holds
//! `null`, as columns of Parquet files do, is absent.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::chat::{Message, Role};
use crate::rows::Row;

/// All keys of a row that are read; of a Parquet file no other column need be.
pub const KEYS: [&str; 8] =
    ["conversation", "messages", "conversations", "data", "instruction", "input", "output", "system"];

/// Where a row's turns stand and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    Firefly,
    Messages,
    ShareGpt,
    UltraChat,
    Alpaca,
}

impl Spelling {
    const ALL: [Spelling; 5] =
        [Spelling::Firefly, Spelling::Messages, Spelling::ShareGpt, Spelling::UltraChat, Spelling::Alpaca];

    fn key(self) -> &'static str {
        match self {
            Spelling::Firefly => "conversation",
            Spelling::Messages => "messages",
            Spelling::ShareGpt => "conversations",
            Spelling::UltraChat => "data",
            Spelling::Alpaca => "instruction",
        }
    }

    fn of(row: &Row) -> Result<Spelling> {
        let mut present = Spelling::ALL.into_iter().filter(|spelling| given(row, spelling.key()).is_some());
        match (present.next(), present.next()) {
            (Some(spelling), None) => Ok(spelling),
            (None, _) | (_, Some(_)) => {
                bail!("a dialogue has one of `conversation`, `messages`, `conversations`, `data` and `instruction`")
            }
        }
    }

    fn turns(self, row: &Row) -> Result<Vec<Message>> {
        match self {
            Spelling::Firefly => each_turn(row, self.key(), human_and_assistant),
            Spelling::Messages => each_turn(row, self.key(), role_and_content),
            Spelling::ShareGpt => each_turn(row, self.key(), from_and_value),
            Spelling::UltraChat => alternating(row, self.key()),
            Spelling::Alpaca => instruction(row),
        }
    }
}

/// The turns of a row, in its own spelling; neither their texts nor their order are checked.
pub fn messages(row: &Row) -> Result<Vec<Message>> {
    let turns = Spelling::of(row)?.turns(row)?;
    let Some(system) = given(row, "system") else { return Ok(turns) };
    let system = system.as_str().context("`system` is not text")?;
    let first = (!system.trim().is_empty()).then(|| Message::new(Role::System, system));
    Ok(first.into_iter().chain(turns).collect())
}

fn given<'a>(row: &'a Row, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|value| !value.is_null())
}

fn list<'a>(row: &'a Row, key: &str) -> Result<&'a Vec<Value>> {
    row[key].as_array().with_context(|| format!("`{key}` is not a list"))
}

fn each_turn(row: &Row, key: &str, read: fn(&Value) -> Result<Vec<Message>>) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for (index, turn) in list(row, key)?.iter().enumerate() {
        messages.extend(read(turn).with_context(|| format!("`{key}`, turn {}", index + 1))?);
    }
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

fn alternating(row: &Row, key: &str) -> Result<Vec<Message>> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let turns = list(row, key)?.iter().zip(roles).enumerate();
    turns
        .map(|(index, (turn, role))| {
            let text = turn.as_str().with_context(|| format!("`{key}`, turn {} is not text", index + 1))?;
            Ok(Message::new(role, text))
        })
        .collect()
}

/// Alpaca's row as one question and its answer; the question in the words that Stanford's `train.py` put around it
/// (tatsu-lab/stanford_alpaca, `PROMPT_DICT`).
fn instruction(row: &Row) -> Result<Vec<Message>> {
    let field = |key: &str| match given(row, key) {
        Some(value) => value.as_str().with_context(|| format!("`{key}` is not text")).map(Some),
        None => Ok(None),
    };
    let instruction = field("instruction")?.unwrap_or_default();
    let output = field("output")?.context("`output` is missing")?;
    ensure!(!instruction.trim().is_empty(), "`instruction` is empty");
    let question = match field("input")?.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
             Input:\n{input}\n\n### Response:"
        ),
        None => format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        ),
    };
    Ok(vec![Message::new(Role::User, question), Message::new(Role::Assistant, output)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Vec<(Role, String)> {
        let messages = messages(&serde_json::from_str(line).unwrap()).unwrap();
        messages.into_iter().map(|message| (message.role, message.content)).collect()
    }

    #[test]
    fn spellings_of_the_same_dialogue() {
        for line in [
            "{\"conversation\": [{\"human\": \"Hi\", \"assistant\": \"Hello\"}], \"id\": 7}",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello\"}]}",
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}, {\"from\": \"gpt\", \"value\": \"Hello\"}]}",
            "{\"id\": \"0\", \"data\": [\"Hi\", \"Hello\"], \"messages\": null}",
        ] {
            assert_eq!(read(line), [(Role::User, "Hi".to_owned()), (Role::Assistant, "Hello".to_owned())], "{line}");
        }
    }

    #[test]
    fn every_spellings_key_is_among_those_that_are_read() {
        assert!(Spelling::ALL.iter().all(|spelling| KEYS.contains(&spelling.key())));
    }

    #[test]
    fn alpaca_has_its_own_words() {
        let plain = read("{\"instruction\": \"Add.\", \"input\": \"\", \"output\": \"4\"}");
        let expected = "Below is an instruction that describes a task. Write a response that appropriately completes \
                        the request.\n\n### Instruction:\nAdd.\n\n### Response:";
        assert_eq!(plain, [(Role::User, expected.to_owned()), (Role::Assistant, "4".to_owned())]);
        assert_eq!(read("{\"instruction\": \"Add.\", \"output\": \"4\"}"), plain);
        let with_input = &read("{\"instruction\": \"Add.\", \"input\": \"2 2\", \"output\": \"4\"}")[0].1;
        assert!(
            with_input.ends_with(
                "further context. Write a response that appropriately completes the request.\
                                      \n\n### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:"
            ),
            "{with_input}"
        );
    }
}
