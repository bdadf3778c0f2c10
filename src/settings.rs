//! TOML files that people write: strict, and helpful about what is wrong in them.

use anyhow::{Result, anyhow};
use serde::de::DeserializeOwned;

/// Parses `text` into `T`. The error names `place` (the file), the line, and for a misspelt key the nearest known one.
pub fn parse<T: DeserializeOwned>(text: &str, place: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| format!(", line {}", text[..span.start].matches('\n').count() + 1));
        anyhow!("{place}{}: {}", line.unwrap_or_default(), with_suggestion(error.message()))
    })
}

/// serde says "unknown field `x`, expected one of `a`, `b`": the nearest of those is added.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.starts_with("unknown "), quoted.split_first()) {
        (true, Some((unknown, known))) => match closest(unknown, known.iter().copied()) {
            Some(near) => format!("{message} (did you mean `{near}`?)"),
            None => message.to_owned(),
        },
        _ => message.to_owned(),
    }
}

/// The candidate nearest to `word`, if it is near enough to be meant.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    let contained = near.1.contains(word) || word.contains(near.1);
    (near.0 <= 2.max(word.len() / 3) || contained).then_some(near.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[allow(dead_code)]
        shots: usize,
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_neighbour() {
        let error = parse::<File>("# a task\nshot = 5\n", "tasks/mmlu.toml").unwrap_err().to_string();
        assert!(error.starts_with("tasks/mmlu.toml, line 2:"), "{error}");
        assert!(error.contains("`shot`") && error.contains("did you mean `shots`?"), "{error}");
        assert!(parse::<File>("shots = []", "x").unwrap_err().to_string().starts_with("x, line 1:"));
        assert_eq!(parse::<File>("shots = 5", "x").unwrap().shots, 5);
    }

    #[test]
    fn near_is_near() {
        assert_eq!(closest("hellaswg", ["arc_challenge", "hellaswag"]), Some("hellaswag"));
        assert_eq!(closest("base", ["instruct"]), None);
        assert_eq!((distance("kitten", "sitting"), distance("", "ab")), (3, 2));
    }
}
