//! Text to tokens and back [tokenizers], for Hugging Face folders and GGUF files.

use std::path::Path;

use anyhow::Result;

/// A model's tokenizer with its special tokens and chat template.
#[derive(Clone)]
pub struct Tokenizer {}

impl Tokenizer {
    /// From a Hugging Face folder (`tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `config.json`)
    /// or a GGUF file.
    pub fn open(_path: &Path) -> Result<Tokenizer> {
        todo!()
    }

    /// Token ids of `text`; `special_tokens`: with the tokenizer's own additions (BOS). If the text already begins
    /// with the BOS string no second one is added.
    pub fn encode(&self, _text: &str, _special_tokens: bool) -> Result<Vec<u32>> {
        todo!()
    }

    /// Text of `ids`, without special tokens.
    pub fn decode(&self, _ids: &[u32]) -> Result<String> {
        todo!()
    }

    pub fn bos(&self) -> Option<u32> {
        todo!()
    }

    /// Tokens that end a text: of the generation config, the config and the tokenizer, the first that is stated.
    pub fn eos(&self) -> &[u32] {
        todo!()
    }

    /// The end-of-text token's string, for templates (`{{ eos_token }}`).
    pub fn eos_text(&self) -> Option<&str> {
        todo!()
    }

    pub fn bos_text(&self) -> Option<&str> {
        todo!()
    }

    /// The Jinja chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        todo!()
    }

    /// sha256 over everything that decides how text becomes tokens.
    pub fn digest(&self) -> &str {
        todo!()
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into `folder`.
    pub fn save(&self, _folder: &Path) -> Result<()> {
        todo!()
    }
}
