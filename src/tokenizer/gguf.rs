//! The tokenizer of a GGUF file, written as the files a Hugging Face folder would have.
//!
//! A GGUF names its pre-tokenizer instead of stating it (`tokenizer.ggml.pre`); each name known here is given the
//! pre-tokenizer of the published `tokenizer.json` that llama.cpp's converter recognised by that name. An unknown name
//! is refused: a wrong split would give plausible, wrong tokens.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::Files;
use super::settings::template;
use crate::weights::gguf::Gguf;

pub(super) fn files(path: &Path) -> Result<Files> {
    let gguf = Gguf::open(path)?;
    from_metadata(&gguf).with_context(|| path.display().to_string())
}

fn from_metadata(gguf: &Gguf) -> Result<Files> {
    match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => bail!(
            "tokenizer `{other}` does not open; byte-level BPE (`gpt2`) does. Take the model as a Hugging Face folder \
             with tokenizer.json"
        ),
        None => bail!("metadata key `tokenizer.ggml.model` is missing: the file has no tokenizer"),
    }
    let split = Split::parse(gguf.text("tokenizer.ggml.pre")?)?;
    let tokens = required(gguf.texts("tokenizer.ggml.tokens")?, "tokens")?;
    let special = |name: &str| -> Result<Option<(String, u32)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = gguf.count(&key)? else { return Ok(None) };
        let text = tokens.get(id).ok_or_else(|| anyhow!("`{key}` is {id}, but there are {} tokens", tokens.len()))?;
        Ok(Some(((*text).to_owned(), id as u32)))
    };
    let (bos, eos) = (special("bos")?, special("eos")?);
    let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(split.adds_bos());
    let add_eos = gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let around = template(bos.clone().filter(|_| add_bos), eos.clone().filter(|_| add_eos));
    let tokenizer = tokenizer_json(gguf, split, &tokens, around)?;

    let text = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(&bos),
        "eos_token": text(&eos),
        "unk_token": text(&special("unknown")?),
        "pad_token": text(&special("padding")?),
        "clean_up_tokenization_spaces": false,
        "model_max_length": gguf.count("llama.context_length")?,
        "chat_template": gguf.text("tokenizer.chat_template")?,
    });
    let mut ends: Vec<u32> = [&eos, &special("eot")?].into_iter().flatten().map(|(_, id)| *id).collect();
    ends.dedup();
    let mut generation = Map::new();
    if let Some((_, id)) = bos {
        generation.insert("bos_token_id".to_owned(), json!(id));
    }
    if !ends.is_empty() {
        generation.insert("eos_token_id".to_owned(), if let [one] = ends[..] { json!(one) } else { json!(ends) });
    }
    Ok(Files::from([
        ("tokenizer.json", serde_json::to_vec(&tokenizer)?),
        ("tokenizer_config.json", serde_json::to_vec_pretty(&without_nulls(config))?),
        ("generation_config.json", serde_json::to_vec_pretty(&generation)?),
    ]))
}

fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| anyhow!("metadata key `tokenizer.ggml.{key}` is missing; convert the model again"))
}

fn without_nulls(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    fields.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn tokenizer_json(gguf: &Gguf, split: Split, tokens: &[&str], post_processor: Value) -> Result<Value> {
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), json!(id)).is_some() {
            bail!("metadata key `tokenizer.ggml.tokens`: token `{token}` is listed twice");
        }
    }
    let merges = required(gguf.texts("tokenizer.ggml.merges")?, "merges")?;
    let merges = merges.iter().map(|merge| {
        let pair = merge.split_once(' ');
        pair.map(|(left, right)| json!([left, right]))
            .ok_or_else(|| anyhow!("metadata key `tokenizer.ggml.merges`: `{merge}` is not two parts"))
    });
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(gguf, tokens)?,
        "normalizer": split.normalizer(),
        "pre_tokenizer": split.pre_tokenizer(prefix),
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignores_merges(),
            "vocab": vocabulary, "merges": merges.collect::<Result<Vec<Value>>>()?,
        },
    }))
}

/// Control tokens are special (never part of a decoded text); what a user defined is whole, but text.
fn added_tokens(gguf: &Gguf, tokens: &[&str]) -> Result<Vec<Value>> {
    const UNKNOWN: i128 = 2;
    const CONTROL: i128 = 3;
    const USER_DEFINED: i128 = 4;
    let kinds = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    ensure!(
        kinds.is_empty() || kinds.len() == tokens.len(),
        "metadata key `tokenizer.ggml.token_type` has {} entries for {} tokens",
        kinds.len(),
        tokens.len()
    );
    let mut named = HashSet::new();
    for name in ["bos", "eos", "eot"] {
        named.extend(gguf.count(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(1);
        let special = named.contains(&id) || kind == CONTROL || kind == UNKNOWN;
        if special || kind == USER_DEFINED {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }));
        }
    }
    Ok(added)
}

/// How a text is cut before byte pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    Gpt2,
    Llama3,
    /// Digits one by one, then as GPT-2.
    SmolLm,
    Qwen2,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    fn parse(name: Option<&str>) -> Result<Split> {
        match name {
            None | Some("default" | "gpt-2") => Ok(Split::Gpt2),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Split::Llama3),
            Some("smollm") => Ok(Split::SmolLm),
            Some("qwen2") => Ok(Split::Qwen2),
            Some(other) => bail!(
                "pre-tokenizer `{other}` is not known (gpt-2, llama-bpe, smollm and qwen2 are); take the model as a \
                 Hugging Face folder with tokenizer.json"
            ),
        }
    }

    fn adds_bos(self) -> bool {
        match self {
            Split::Llama3 => true,
            Split::Gpt2 | Split::SmolLm | Split::Qwen2 => false,
        }
    }

    /// Whether a piece that is a token is taken whole.
    fn ignores_merges(self) -> bool {
        self.adds_bos()
    }

    fn normalizer(self) -> Value {
        match self {
            Split::Qwen2 => json!({"type": "NFC"}),
            Split::Gpt2 | Split::Llama3 | Split::SmolLm => Value::Null,
        }
    }

    fn pre_tokenizer(self, prefix: bool) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex});
        let pattern = |regex: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        match self {
            Split::Gpt2 => bytes(true),
            Split::SmolLm => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
            }
            Split::Llama3 => pattern(LLAMA3),
            Split::Qwen2 => pattern(QWEN2),
        }
    }
}
