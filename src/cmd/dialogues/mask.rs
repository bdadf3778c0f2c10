//! A dialogue's tokens as text, what is learnt of them marked.

use anyhow::Result;
use serde_json::{Value, json};

use crate::dialogue::format::Example;
use crate::tokenizer::Tokenizer;

/// How what is learnt stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Green; the rest dim.
    Colour,
    /// «So».
    Quotes,
}

/// The example as one text, special tokens among it.
pub fn shown(example: &Example, tokenizer: &Tokenizer, marks: Marks) -> Result<String> {
    let mut text = String::new();
    let mut start = 0;
    for run in example.learnt.chunk_by(|a, b| a == b) {
        let part = spelled(&example.ids[start..start + run.len()], tokenizer)?;
        start += run.len();
        match (marks, run[0]) {
            (Marks::Colour, true) => text.push_str(&format!("\x1b[32m{part}\x1b[0m")),
            (Marks::Colour, false) => text.push_str(&format!("\x1b[2m{part}\x1b[0m")),
            (Marks::Quotes, true) => text.push_str(&format!("«{part}»")),
            (Marks::Quotes, false) => text.push_str(&part),
        }
    }
    Ok(text)
}

/// The tokens one by one: id, as the vocabulary has it, and whether it is learnt.
pub fn listed(example: &Example, tokenizer: &Tokenizer) -> Vec<Value> {
    let token = |(&id, &learnt): (&u32, &bool)| json!({"id": id, "token": tokenizer.token(id), "learnt": learnt});
    example.ids.iter().zip(&example.learnt).map(token).collect()
}

/// Decoded, with the special tokens that decoding leaves out.
fn spelled(ids: &[u32], tokenizer: &Tokenizer) -> Result<String> {
    let mut text = String::new();
    let mut plain: Vec<u32> = Vec::new();
    for &id in ids {
        match tokenizer.is_special(id) {
            true => {
                text.push_str(&tokenizer.decode(&std::mem::take(&mut plain))?);
                text.push_str(&tokenizer.token(id).unwrap_or_default());
            }
            false => plain.push(id),
        }
    }
    Ok(text + &tokenizer.decode(&plain)?)
}
