//! Which language a text is in [whatlang]: trigrams of 70 languages (Cavnar and Trenkle, 1994), the script first.
//!
//! The rule, for every use here: the first 2,000 characters decide, and only where whatlang calls its answer reliable
//! (confidence above 0.9); else the language is unknown. No state, so the same text has the same answer everywhere.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};

/// How much of a text is looked at, in characters.
const CHARACTERS: usize = 2000;

/// A language by its code of three letters (ISO 639-3): `eng`, `cmn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language(whatlang::Lang);

impl Language {
    pub fn code(self) -> &'static str {
        self.0.code()
    }
}

impl fmt::Display for Language {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

impl FromStr for Language {
    type Err = anyhow::Error;

    fn from_str(code: &str) -> Result<Language> {
        let known = || whatlang::Lang::all().iter().map(|language| language.code()).collect::<Vec<_>>().join(", ");
        let language = whatlang::Lang::from_code(code);
        language.map(Language).with_context(|| format!("unknown language `{code}` (known: {})", known()))
    }
}

/// The language of `text`, where it is plain.
pub fn of(text: &str) -> Option<Language> {
    let end = text.char_indices().nth(CHARACTERS).map_or(text.len(), |(end, _)| end);
    let found = whatlang::detect(&text[..end])?;
    found.is_reliable().then(|| Language(found.lang()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_have_a_language_and_others_none() {
        let code = |text: &str| of(text).map(Language::code);
        let english = "The museum opens at nine, and on Sundays you can look at the paintings for free.";
        let german = "Das Museum öffnet um neun, und sonntags kann man sich die Gemälde umsonst ansehen.";
        assert_eq!((code(english), code(german)), (Some("eng"), Some("deu")));
        assert_eq!(code("博物馆九点开门,星期天可以免费看画。"), Some("cmn"));
        assert_eq!((code("2 + 2 = 4"), code("")), (None, None));
        let long = format!("{}{}", english.repeat(40), german.repeat(400));
        assert_eq!(code(&long), Some("eng"), "the beginning decides");
    }

    #[test]
    fn codes_are_read() {
        assert_eq!("eng".parse::<Language>().unwrap().to_string(), "eng");
        let error = "english".parse::<Language>().unwrap_err().to_string();
        assert!(error.contains("unknown language `english`") && error.contains("deu"), "{error}");
    }
}
