//! A file of prompts: one a line, or, where its first line begins with `{` or `[`, JSON Lines of messages.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::chat::{Message, Role};

/// Turns, the last of which is the user's.
pub type Conversation = Vec<Turn>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// "system", "user" or "assistant".
    pub role: String,
    pub content: String,
}

/// A line of JSON: the messages, or an object that holds them beside what is of no use here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Messages(Vec<Turn>),
    Object { messages: Vec<Turn> },
}

impl Turn {
    pub fn message(&self) -> Result<Message> {
        Ok(Message::new(self.role.parse::<Role>()?, self.content.clone()))
    }
}

/// The prompts of a file, without its empty lines.
pub fn read(path: &Path) -> Result<Vec<Conversation>> {
    let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let is_json = lines().next().is_some_and(|(_, line)| line.trim_start().starts_with(['{', '[']));
    let prompt = |(index, line): (usize, &str)| {
        let place = || format!("{}, line {}", path.display(), index + 1);
        if is_json { conversation(line).with_context(place) } else { Ok(vec![user(line)]) }
    };
    let prompts: Vec<Conversation> = lines().map(prompt).collect::<Result<_>>()?;
    ensure!(!prompts.is_empty(), "{} has no prompt", path.display());
    Ok(prompts)
}

fn user(line: &str) -> Turn {
    Turn { role: Role::User.name().to_owned(), content: line.trim_end_matches('\r').to_owned() }
}

fn conversation(line: &str) -> Result<Conversation> {
    let read: Line = serde_json::from_str(line)
        .context("neither [{\"role\": …, \"content\": …}, …] nor {\"messages\": […]} as the file's first line")?;
    let (Line::Messages(turns) | Line::Object { messages: turns }) = read;
    turns.iter().try_for_each(|turn| turn.message().map(|_| ()))?;
    let last = turns.last().context("no message")?;
    ensure!(last.role == Role::User.name(), "the last message is the {}'s; an answer follows the user's", last.role);
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Conversation>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn lines_are_prompts() {
        let prompts = of("What is 2+2?\r\n\n  Why {so}?\n").unwrap();
        let contents: Vec<&str> = prompts.iter().map(|turns| turns[0].content.as_str()).collect();
        assert_eq!(contents, ["What is 2+2?", "  Why {so}?"]);
        assert!(prompts.iter().all(|turns| turns.len() == 1 && turns[0].role == "user"));
    }

    #[test]
    fn json_lines_are_conversations() {
        let turn = |role: &str| format!("{{\"role\": \"{role}\", \"content\": \"{role} says\"}}");
        let (system, user) = (turn("system"), turn("user"));
        let prompts = of(&format!("[{system}, {user}]\n{{\"id\": 7, \"messages\": [{user}]}}\n")).unwrap();
        assert_eq!((prompts[0].len(), prompts[1].len()), (2, 1));
        assert_eq!(prompts[0][0].message().unwrap().role, Role::System);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = |text: &str| format!("{:#}", of(text).unwrap_err());
        let good = "[{\"role\": \"user\", \"content\": \"x\"}]\n";
        assert!(error(&format!("{good}\nplain")).contains("line 3: neither"), "{}", error(&format!("{good}\nplain")));
        assert!(error(&good.replace("user", "robot")).contains("line 1: unknown role `robot`"));
        assert!(error(&good.replace("user", "assistant")).contains("the last message is the assistant's"));
        assert!(error(&format!("{good}[]")).contains("line 2: no message"));
        assert!(error("\n \n").contains("has no prompt"));
    }
}
