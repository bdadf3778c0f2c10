//! Refusals and "as an AI" boilerplate: answers that hold a phrase of a list (`refusals.txt`, or one's own).

use std::path::Path;

use anyhow::{Context, Result, ensure};

const BUILT_IN: &str = include_str!("refusals.txt");

/// The phrases that are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrases {
    anywhere: Vec<String>,
    at_start: Vec<String>,
}

impl Default for Phrases {
    fn default() -> Phrases {
        Phrases::parse(BUILT_IN)
    }
}

impl Phrases {
    /// A file like `refusals.txt`: a phrase a line, `^` before those that count only at an answer's beginning.
    pub fn read(path: &Path) -> Result<Phrases> {
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        let phrases = Phrases::parse(&text);
        ensure!(phrases.anywhere.len() + phrases.at_start.len() > 0, "{} lists no phrase", path.display());
        Ok(phrases)
    }

    fn parse(text: &str) -> Phrases {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (at_start, anywhere): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with('^'));
        let phrase = |line: &str| plain(line.trim_start_matches('^').trim());
        Phrases {
            anywhere: anywhere.into_iter().map(phrase).collect(),
            at_start: at_start.into_iter().map(phrase).collect(),
        }
    }

    /// The first phrase of the list that `answer` holds. A phrase begins and ends with a word: `as an ai` is not found in
    /// `as an aid`.
    pub fn found_in(&self, answer: &str) -> Option<&str> {
        let answer = plain(answer.trim());
        let anywhere = self.anywhere.iter().find(|phrase| holds(&answer, phrase));
        let at_start = || {
            self.at_start.iter().find(|phrase| answer.starts_with(phrase.as_str()) && ends_word(&answer, phrase.len()))
        };
        anywhere.or_else(at_start).map(String::as_str)
    }
}

/// Lower case, with plain apostrophes.
fn plain(text: &str) -> String {
    text.to_lowercase().replace(['\u{2019}', '\u{2018}'], "'")
}

fn holds(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        !before.is_some_and(char::is_alphanumeric) && ends_word(text, start + phrase.len())
    })
}

/// Whether no word goes on at byte `end`.
fn ends_word(text: &str, end: usize) -> bool {
    !text[end..].chars().next().is_some_and(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_as_words() {
        let phrases = Phrases::default();
        assert_eq!(phrases.found_in("Well. As an AI, I can't know."), Some("as an ai"));
        assert_eq!(phrases.found_in("It serves as an aid. Was an AI there?"), None);
        assert_eq!(phrases.found_in(" I\u{2019}m sorry, but I can't."), Some("i'm sorry, but i"));
        assert_eq!(phrases.found_in("I'm sorry, but it is late."), None);
        assert_eq!(phrases.found_in("She said: I'm sorry, but I can't."), None, "a quotation is no refusal");
    }

    #[test]
    fn a_list_of_ones_own_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("phrases.txt");
        std::fs::write(&path, "# mine\n^Nope\nHelp\u{2019}s Over\n").unwrap();
        let phrases = Phrases::read(&path).unwrap();
        assert_eq!(phrases.found_in("nope."), Some("nope"));
        assert_eq!(phrases.found_in("Well, help's over"), Some("help's over"));
        assert_eq!(phrases.found_in("As an AI"), None);
        std::fs::write(&path, "# none\n").unwrap();
        assert!(Phrases::read(&path).unwrap_err().to_string().contains("lists no phrase"));
    }
}
