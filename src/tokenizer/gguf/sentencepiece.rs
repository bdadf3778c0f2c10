//! SentencePiece's BPE (`tokenizer.ggml.model` is `llama`): Llama 1 and 2, Mistral, Mixtral, Gemma, Phi-3.
//!
//! The file has pieces with scores and no merges: any two pieces that join to a third may merge, the highest score first.
//! Merges are listed as transformers' converters list them (`generate_merges`, `LlamaConverter`, `GemmaConverter`).
//! What was published before 2024 puts the dummy `▁` before each text between special tokens, and llama.cpp does so
//! always; a GGUF cannot tell those few (Mistral 7B v0.3) that put it before the first alone.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Kind, Parts, Vocabulary, required};
use crate::weights::gguf::Gguf;

pub(super) fn parts(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Parts> {
    let scores = required(gguf.numbers("tokenizer.ggml.scores")?, "scores")?;
    let (found, wanted) = (scores.len(), vocabulary.tokens.len());
    ensure!(found == wanted, "metadata key `tokenizer.ggml.scores` has {found} entries for {wanted} tokens");
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == Kind::Unknown);
    Ok(Parts {
        adds_bos: true,
        normalizer: normalizer(prefix),
        pre_tokenizer: Value::Null,
        decoder: decoder(prefix),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &vocabulary.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocabulary.ids()?, "merges": merges(vocabulary, &scores),
        }),
    })
}

fn normalizer(prefix: bool) -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}),
        false => spaces,
    }
}

fn decoder(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// All pairs that join to a piece, in the order they are tried: what a user defined first, which SentencePiece takes
/// whole, then by falling score; of one piece's the longer beginning first.
fn merges<'a>(vocabulary: &'a Vocabulary, scores: &[f64]) -> Vec<[&'a str; 2]> {
    let is_piece = |id: &usize| matches!(vocabulary.kinds[*id], Kind::Normal | Kind::UserDefined);
    let mut pieces: Vec<usize> = (0..vocabulary.tokens.len()).filter(is_piece).collect();
    let ids: HashMap<&str, usize> = pieces.iter().map(|&id| (vocabulary.tokens[id].as_str(), id)).collect();
    let rank = |id: usize| if vocabulary.kinds[id] == Kind::UserDefined { f64::INFINITY } else { scores[id] };
    pieces.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
    let mut merges = Vec::new();
    for id in pieces {
        let token = vocabulary.tokens[id].as_str();
        let cuts = token.char_indices().rev().map(|(cut, _)| token.split_at(cut));
        let known = cuts.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right));
        merges.extend(known.map(|(left, right)| [left, right]));
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_found_by_hand() {
        // "cab" is worth more than "ab"; the user's "ba" comes before both, and "<s>" is no piece.
        let pieces = [
            ("<s>", Kind::Control),
            ("a", Kind::Normal),
            ("b", Kind::Normal),
            ("c", Kind::Normal),
            ("ab", Kind::Normal),
            ("cab", Kind::Normal),
            ("ca", Kind::Normal),
            ("ba", Kind::UserDefined),
        ];
        let vocabulary = Vocabulary {
            tokens: pieces.iter().map(|(text, _)| (*text).to_owned()).collect(),
            kinds: pieces.iter().map(|(_, kind)| *kind).collect(),
        };
        let scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -1000.0];
        assert_eq!(merges(&vocabulary, &scores), [["b", "a"], ["ca", "b"], ["c", "ab"], ["a", "b"], ["c", "a"]]);
    }
}
