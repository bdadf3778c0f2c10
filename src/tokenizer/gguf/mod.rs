//! The tokenizer of a GGUF file, written as the files a Hugging Face folder would have.
//!
//! Two kinds open: byte-level BPE ([`byte_level`]) and SentencePiece's ([`sentencepiece`]). Special tokens, and what is
//! put around a text, are stated alike for both.

mod byte_level;
mod sentencepiece;

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

/// `tokenizer.ggml.token_type`, as llama.cpp numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokens in the order of their ids.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<Kind>,
}

/// What the two kinds of tokenizers differ in, as `tokenizer.json` has it.
struct Parts {
    /// Where the file does not say.
    adds_bos: bool,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

/// A special token's text and id.
type Special = Option<(String, u32)>;

fn from_metadata(gguf: &Gguf) -> Result<Files> {
    let (vocabulary, parts) = match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {
            let vocabulary = Vocabulary::read(gguf)?;
            let parts = byte_level::parts(gguf, &vocabulary)?;
            (vocabulary, parts)
        }
        Some("llama") => {
            let vocabulary = Vocabulary::read(gguf)?.with_visible_spaces();
            let parts = sentencepiece::parts(gguf, &vocabulary)?;
            (vocabulary, parts)
        }
        Some(other) => bail!(
            "tokenizer `{other}` does not open; byte-level BPE (`gpt2`) and SentencePiece (`llama`) do. Take the model \
             as a Hugging Face folder with tokenizer.json"
        ),
        None => bail!("metadata key `tokenizer.ggml.model` is missing: the file has no tokenizer"),
    };
    let special = |name: &str| vocabulary.special(gguf, name);
    let (bos, eos, eot) = (special("bos")?, special("eos")?, special("eot")?);
    let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.adds_bos);
    let add_eos = gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(gguf, [&bos, &eos, &eot])?,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": template(bos.clone().filter(|_| add_bos), eos.clone().filter(|_| add_eos)),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let text = |token: &Special| token.as_ref().map(|(text, _)| text.clone());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(&bos),
        "eos_token": text(&eos),
        "unk_token": text(&special("unknown")?),
        "pad_token": text(&special("padding")?),
        "clean_up_tokenization_spaces": false,
        "model_max_length": context_length(gguf)?,
        "chat_template": gguf.text("tokenizer.chat_template")?,
    });
    Ok(Files::from([
        ("tokenizer.json", serde_json::to_vec(&tokenizer)?),
        ("tokenizer_config.json", serde_json::to_vec_pretty(&without_nulls(config))?),
        ("generation_config.json", serde_json::to_vec_pretty(&generation(&bos, &eos, &eot))?),
    ]))
}

/// Where generation begins and ends.
fn generation(bos: &Special, eos: &Special, eot: &Special) -> Map<String, Value> {
    let mut ends: Vec<u32> = [eos, eot].into_iter().flatten().map(|(_, id)| *id).collect();
    ends.dedup();
    let mut generation = Map::new();
    if let Some((_, id)) = bos {
        generation.insert("bos_token_id".to_owned(), json!(id));
    }
    if !ends.is_empty() {
        generation.insert("eos_token_id".to_owned(), if let [one] = ends[..] { json!(one) } else { json!(ends) });
    }
    generation
}

fn context_length(gguf: &Gguf) -> Result<Option<usize>> {
    match gguf.text("general.architecture")? {
        Some(architecture) => gguf.count(&format!("{architecture}.context_length")),
        None => Ok(None),
    }
}

fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| anyhow!("metadata key `tokenizer.ggml.{key}` is missing; convert the model again"))
}

fn without_nulls(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    fields.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

impl Kind {
    fn parse(number: i128) -> Result<Kind> {
        Ok(match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            other => bail!("metadata key `tokenizer.ggml.token_type`: {other} is no kind of token (1 to 6 are)"),
        })
    }
}

impl Vocabulary {
    fn read(gguf: &Gguf) -> Result<Vocabulary> {
        let tokens = required(gguf.texts("tokenizer.ggml.tokens")?, "tokens")?;
        let kinds = match gguf.integers("tokenizer.ggml.token_type")? {
            Some(kinds) => kinds.into_iter().map(Kind::parse).collect::<Result<Vec<_>>>()?,
            None => vec![Kind::Normal; tokens.len()],
        };
        ensure!(
            kinds.len() == tokens.len(),
            "metadata key `tokenizer.ggml.token_type` has {} entries for {} tokens",
            kinds.len(),
            tokens.len()
        );
        Ok(Vocabulary { tokens: tokens.into_iter().map(str::to_owned).collect(), kinds })
    }

    /// The converter writes the spaces of what a user defined as spaces; the hub's files have them as `▁`.
    fn with_visible_spaces(mut self) -> Vocabulary {
        for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
            if *kind == Kind::UserDefined {
                *token = token.replace(' ', "▁");
            }
        }
        self
    }

    fn ids(&self) -> Result<Map<String, Value>> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if ids.insert(token.clone(), json!(id)).is_some() {
                bail!("metadata key `tokenizer.ggml.tokens`: token `{token}` is listed twice");
            }
        }
        Ok(ids)
    }

    fn special(&self, gguf: &Gguf, name: &str) -> Result<Special> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = gguf.count(&key)? else { return Ok(None) };
        let count = self.tokens.len();
        let text = self.tokens.get(id).ok_or_else(|| anyhow!("`{key}` is {id}, but there are {count} tokens"))?;
        Ok(Some((text.clone(), id as u32)))
    }

    /// Control tokens are special (never part of a decoded text); what a user defined is whole, but text.
    fn added_tokens(&self, gguf: &Gguf, named: [&Special; 3]) -> Result<Vec<Value>> {
        let named: HashSet<usize> = named.into_iter().flatten().map(|(_, id)| *id as usize).collect();
        let is_phi3 =
            gguf.text("general.architecture")? == Some("phi3") && gguf.text("tokenizer.ggml.model")? == Some("llama");
        let mut added = Vec::new();
        for (id, (token, kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let special = named.contains(&id) || matches!(kind, Kind::Control | Kind::Unknown);
            if special || *kind == Kind::UserDefined {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": is_phi3 && takes_spaces_behind_it(token), "normalized": false, "special": special,
                }));
            }
        }
        Ok(added)
    }
}

/// Of Phi-3's added tokens; a GGUF does not say so, and llama.cpp knows it by the model's name as well.
fn takes_spaces_behind_it(token: &str) -> bool {
    !matches!(token, "<unk>" | "<s>" | "<|endoftext|>")
}
