//! Text with places to fill: `"Question: {question}\nAnswer:"`.
//!
//! A place names a field of the row, with a path into it (`{choices.text.0}`), and may name one treatment
//! (`{ctx_b|capitalize}`) of a closed set. There is no other logic in a template.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::python;
use crate::rows::Row;

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Place { field: Field, treatment: Treatment },
}

/// A field of a row, with a path into it.
#[derive(Clone, Debug, PartialEq)]
pub struct Field(Vec<String>);

/// What may be done to a field's text on its way into a template.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Treatment {
    AsIs,
    Strip,
    Capitalize,
    /// Underscores become spaces.
    Spaces,
}

impl Template {
    /// Parses `text`; `{{` and `}}` stand for the braces themselves.
    pub fn parse(text: &str) -> Result<Template> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '{' | '}' if characters.next_if_eq(&c).is_some() => plain.push(c),
                '{' => {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(place_of(&place_text(&mut characters, text)?)?);
                }
                '}' => bail!("a lone `}}` in {text:?} (write `}}}}` for the character itself)"),
                c => plain.push(c),
            }
        }
        pieces.push(Piece::Text(plain));
        Ok(Template(pieces))
    }

    /// The text for `row`.
    pub fn fill(&self, row: &Row) -> Result<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Place { field, treatment } => text.push_str(&treatment.apply(&field.text(row)?)),
            }
        }
        Ok(text)
    }

    /// What stands in the places for `row`, without the text between them.
    pub fn places(&self, row: &Row) -> Result<Vec<String>> {
        let filled = |piece: &Piece| match piece {
            Piece::Text(_) => None,
            Piece::Place { field, treatment } => Some(field.text(row).map(|text| treatment.apply(&text))),
        };
        self.0.iter().filter_map(filled).collect()
    }
}

/// What stands before the brace that closes a place; `text` is the whole template.
fn place_text(characters: &mut impl Iterator<Item = char>, text: &str) -> Result<String> {
    let mut place = String::new();
    loop {
        match characters.next() {
            Some('}') => return Ok(place),
            Some(c) => place.push(c),
            None => bail!("`{{{place}` in {text:?} is not closed (write `{{{{` for the brace itself)"),
        }
    }
}

fn place_of(place: &str) -> Result<Piece> {
    let (field, treatment) = place.split_once('|').unwrap_or((place, ""));
    let treatment = match treatment.trim() {
        "" => Treatment::AsIs,
        "strip" => Treatment::Strip,
        "capitalize" => Treatment::Capitalize,
        "spaces" => Treatment::Spaces,
        other => bail!("unknown treatment `{other}` in `{{{place}}}` (known: strip, capitalize, spaces)"),
    };
    Ok(Piece::Place { field: Field::parse(field)?, treatment })
}

impl Treatment {
    fn apply(self, text: &str) -> String {
        match self {
            Treatment::AsIs => text.to_owned(),
            Treatment::Strip => python::strip(text).to_owned(),
            Treatment::Capitalize => python::capitalize(text),
            Treatment::Spaces => text.replace('_', " "),
        }
    }
}

impl Field {
    /// Parses `choices.text.0`.
    pub fn parse(path: &str) -> Result<Field> {
        let parts: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            bail!("{path:?} names no field");
        }
        Ok(Field(parts))
    }

    /// The field's value.
    pub fn value<'a>(&self, row: &'a Row) -> Result<&'a Value> {
        let mut parts = self.0.iter();
        let first = parts.next().expect("a field has a first part");
        let mut value = row.get(first);
        for part in parts {
            value = match value {
                Some(Value::Array(items)) => part.parse().ok().and_then(|index: usize| items.get(index)),
                Some(Value::Object(fields)) => fields.get(part),
                _ => None,
            };
        }
        match value {
            Some(value) => Ok(value),
            None => {
                let known: Vec<&str> = row.keys().map(String::as_str).collect();
                bail!("the row has no field `{}` (it has {})", self.0.join("."), known.join(", "))
            }
        }
    }

    /// The field's value as text; numbers are written out.
    pub fn text(&self, row: &Row) -> Result<String> {
        match self.value(row)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => bail!("field `{}` is not text", self.0.join(".")),
        }
    }

    /// The field's value as a list of texts.
    pub fn texts(&self, row: &Row) -> Result<Vec<String>> {
        let items = self.value(row)?.as_array();
        let texts: Option<Vec<String>> =
            items.and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        match texts {
            Some(texts) if !texts.is_empty() => Ok(texts),
            _ => bail!("field `{}` is not a list of texts", self.0.join(".")),
        }
    }

    /// The field's value as a count: a whole number or its digits in a text.
    pub fn number(&self, row: &Row) -> Result<usize> {
        let value = self.value(row)?;
        let number = match value {
            Value::String(text) => python::strip(text).parse().ok(),
            _ => value.as_u64().map(|number| number as usize),
        };
        match number {
            Some(number) => Ok(number),
            None => bail!("field `{}` is not a whole number", self.0.join(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let value = serde_json::json!({"q": " what_is ", "n": 3, "c": {"text": ["x", "y"]}});
        value.as_object().unwrap().clone()
    }

    #[test]
    fn places_are_filled() {
        let fill = |text: &str| Template::parse(text).unwrap().fill(&row()).unwrap();
        assert_eq!(fill("Q:{q}|{q|strip}"), "Q: what_is |what_is");
        assert_eq!(fill("{q|spaces}{n}{c.text.1} {{n}}"), " what is 3y {n}");
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        let error = |text: &str| match Template::parse(text) {
            Ok(template) => template.fill(&row()).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error("{answer}").contains("`answer`") && error("{answer}").contains("q, n, c"));
        assert!(error("{q|upper}").contains("`upper`"));
        assert!(error("a } b").contains('}'));
        for open in ["Q: {q", "Q: {q|strip", "Q: {"] {
            assert!(error(open).contains("is not closed"), "{}", error(open));
        }
        assert!(error("{c}").contains("not text"));
        assert!(error("{c.text.7}").contains("c.text.7"));
    }
}
