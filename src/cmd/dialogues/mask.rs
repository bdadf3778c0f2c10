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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_stands_out() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dialogues/byte-level");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let ids = tokenizer.encode("<|im_start|>café<|im_end|>", false).unwrap();
        let mut learnt = vec![true; ids.len()];
        learnt[0] = false;
        let example = Example { ids, learnt };
        let quoted = shown(&example, &tokenizer, Marks::Quotes).unwrap();
        assert_eq!(quoted, "<|im_start|>«café<|im_end|>»");
        let coloured = shown(&example, &tokenizer, Marks::Colour).unwrap();
        assert_eq!(coloured, "\x1b[2m<|im_start|>\x1b[0m\x1b[32mcafé<|im_end|>\x1b[0m");
        let listed = listed(&example, &tokenizer);
        assert_eq!((&listed[0]["token"], &listed[0]["learnt"]), (&json!("<|im_start|>"), &json!(false)));
    }
}
