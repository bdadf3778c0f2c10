//! Commands that are suggested: whole, and quoted where a shell needs it, so that they work as they are printed.

/// `fireval` with `words`.
pub fn command(words: impl IntoIterator<Item = String>) -> String {
    let words = words.into_iter().map(quoted);
    ["fireval".to_owned()].into_iter().chain(words).collect::<Vec<String>>().join(" ")
}

fn quoted(word: String) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@=,+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_words_back() {
        let words = ["eval", "org/name@1", "", "my model's"].map(str::to_owned);
        assert_eq!(command(words), "fireval eval org/name@1 '' 'my model'\\''s'");
    }
}
