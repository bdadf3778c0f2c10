//! Texts of other people on a page: cut where they are long, which is said, and without what a browser might obey.

use serde::Serialize;

/// A text, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cut {
    pub text: String,
    /// Characters that were left out.
    pub left_out: usize,
}

/// The first `limit` characters.
pub fn beginning(text: &str, limit: usize) -> Cut {
    let all = text.chars().count();
    Cut { text: plain(text.chars().take(limit)), left_out: all.saturating_sub(limit) }
}

/// The last `limit` characters, which of a prompt are those that ask.
pub fn end(text: &str, limit: usize) -> Cut {
    let left_out = text.chars().count().saturating_sub(limit);
    Cut { text: plain(text.chars().skip(left_out)), left_out }
}

/// Control characters and marks that turn the direction of writing round are shown as what they are: not text.
fn plain(characters: impl Iterator<Item = char>) -> String {
    let is_mark = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| if (c.is_control() && c != '\n' && c != '\t') || is_mark(c) { '\u{fffd}' } else { c };
    characters.map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_in_characters() {
        let cut = |text: &str, left_out| Cut { text: text.to_owned(), left_out };
        assert_eq!(beginning("übel", 2), cut("üb", 2));
        assert_eq!(end("übel", 2), cut("el", 2));
        assert_eq!((beginning("ü", 2), end("", 2)), (cut("ü", 0), cut("", 0)));
        let long = "x".repeat(200_000);
        assert_eq!((beginning(&long, 1_000).text.len(), end(&long, 1_000).left_out), (1_000, 199_000));
    }

    #[test]
    fn nothing_that_is_obeyed_is_left() {
        assert_eq!(beginning("a\u{0}b\u{1b}c\u{202e}d\n\te", 20).text, "a\u{fffd}b\u{fffd}c\u{fffd}d\n\te");
    }
}
