//! Byte-level BPE (`tokenizer.ggml.model` is `gpt2`): Llama 3, Qwen, SmolLM, Phi-4.
//!
//! A GGUF names its pre-tokenizer instead of stating it (`tokenizer.ggml.pre`); each name known here is given the
//! pre-tokenizer of the published `tokenizer.json` that llama.cpp's converter recognised by that name. An unknown name
//! is refused: a wrong split would give plausible, wrong tokens.

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::{Parts, Vocabulary, required};
use crate::weights::gguf::Gguf;

pub(super) fn parts(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Parts> {
    let split = Split::parse(gguf.text("tokenizer.ggml.pre")?)?;
    let merges = required(gguf.texts("tokenizer.ggml.merges")?, "merges")?;
    let merges = merges.iter().map(|merge| {
        let pair = merge.split_once(' ');
        pair.map(|(left, right)| json!([left, right]))
            .ok_or_else(|| anyhow!("metadata key `tokenizer.ggml.merges`: `{merge}` is not two parts"))
    });
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    Ok(Parts {
        adds_bos: split.adds_bos(),
        normalizer: split.normalizer(),
        pre_tokenizer: split.pre_tokenizer(prefix),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignores_merges(),
            "vocab": vocabulary.ids()?, "merges": merges.collect::<Result<Vec<Value>>>()?,
        }),
    })
}

/// How a text is cut before byte pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    Gpt2,
    Llama3,
    /// Digits one by one, then as GPT-2.
    SmolLm,
    Qwen2,
    /// Llama 3's cut without its whole tokens: Phi-4.
    Dbrx,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    fn parse(name: Option<&str>) -> Result<Split> {
        match name {
            Some("gpt-2") => Ok(Split::Gpt2),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Split::Llama3),
            Some("smollm") => Ok(Split::SmolLm),
            Some("qwen2") => Ok(Split::Qwen2),
            Some("dbrx") => Ok(Split::Dbrx),
            // A conversion that did not recognise it: any of the others.
            None | Some("default") => bail!(
                "metadata key `tokenizer.ggml.pre` does not say how text is cut before it is merged; take a newer conversion, \
                 or the model as a Hugging Face folder with tokenizer.json"
            ),
            Some(other) => bail!(
                "pre-tokenizer `{other}` is not known (gpt-2, llama-bpe, smollm, qwen2 and dbrx are); take the model as a \
                 Hugging Face folder with tokenizer.json"
            ),
        }
    }

    fn adds_bos(self) -> bool {
        match self {
            Split::Llama3 => true,
            Split::Gpt2 | Split::SmolLm | Split::Qwen2 | Split::Dbrx => false,
        }
    }

    /// Whether a piece that is a token is taken whole.
    fn ignores_merges(self) -> bool {
        self.adds_bos()
    }

    fn normalizer(self) -> Value {
        match self {
            Split::Qwen2 => json!({"type": "NFC"}),
            Split::Gpt2 | Split::Llama3 | Split::SmolLm | Split::Dbrx => Value::Null,
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
            Split::Llama3 | Split::Dbrx => pattern(LLAMA3),
            Split::Qwen2 => pattern(QWEN2),
        }
    }
}
