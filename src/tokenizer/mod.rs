//! Text to tokens and back [tokenizers], for Hugging Face folders and GGUF files.
//!
//! Both sources become the same set of small files (`tokenizer.json`, `tokenizer_config.json`, ...): a folder has them,
//! and for a GGUF they are written from its metadata ([`gguf`]). One reader makes the tokenizer out of them
//! ([`settings`]), and saving a tokenizer writes exactly these files.

mod generation;
mod gguf;
mod settings;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use self::generation::Generation;
use crate::digest::sha256_hex;
use crate::protocol::Protocol;

/// The files that belong to a tokenizer, and so are kept when a model is saved.
const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
];

/// A model's tokenizer with its special tokens and chat template.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

/// How tokens become text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoding {
    /// Special tokens are text, too.
    pub special_tokens: bool,
    /// Spaces before punctuation are dropped where transformers 4 drops them, instead of where 5 does.
    pub as_transformers_4: bool,
}

struct Shared {
    place: String,
    inner: tokenizers::Tokenizer,
    bos: Option<(u32, String)>,
    /// The token of `eos_text`.
    eos_token: Option<u32>,
    eos: Vec<u32>,
    eos_text: Option<String>,
    chat_template: Option<String>,
    generation: Generation,
    clean_up: CleanUp,
    digest: String,
    files: Files,
}

/// Whose `clean_up_tokenization_spaces` drops the spaces before punctuation when decoding.
#[derive(Clone, Copy, Debug)]
enum CleanUp {
    Never,
    Transformers4,
    /// That of transformers 5, too.
    Always,
}

/// The contents of the files of [`FILES`] that are there.
type Files = BTreeMap<&'static str, Vec<u8>>;

impl Tokenizer {
    /// From a Hugging Face folder (`tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `config.json`)
    /// or a GGUF file.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        if path.is_dir() {
            return Tokenizer::from_files(read_files(path)?, read_config(path)?, &path.display().to_string());
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => Tokenizer::from_files(gguf::files(path)?, Value::Null, &path.display().to_string()),
            Some(_) | None => bail!("{}: no tokenizer; expected a folder or a .gguf file", path.display()),
        }
    }

    fn from_files(files: Files, config: Value, place: &str) -> Result<Tokenizer> {
        let settings = settings::Settings::read(&files, &config, place)?;
        let text = serde_json::to_vec(&settings.tokenizer).context("a JSON value can be written")?;
        let inner = tokenizers::Tokenizer::from_bytes(&text)
            .map_err(|error| anyhow!("{place}: tokenizer.json does not describe a tokenizer: {error}"))?;
        let bos_text = settings.bos_text.or_else(|| inner.id_to_token(settings.bos_id?));
        let bos = bos_text.and_then(|text| inner.token_to_id(&text).map(|id| (id, text)));
        let own_eos = settings.eos_text.as_deref().and_then(|text| inner.token_to_id(text));
        let mut eos = settings.eos_ids;
        let eos_token = own_eos.or(eos.first().copied());
        if let Some(token) = own_eos.filter(|token| !eos.contains(token)) {
            eos.push(token);
        }
        let eos_text = settings.eos_text.or_else(|| inner.id_to_token(eos_token?));
        let digest = sha256_hex(&[&text, &b"\0"[..], format!("{bos:?}").as_bytes()].concat());
        let shared = Shared {
            place: place.to_owned(),
            inner,
            bos,
            eos_token,
            eos,
            eos_text,
            chat_template: settings.chat_template,
            generation: settings.generation,
            clean_up: settings.clean_up,
            digest,
            files,
        };
        Ok(Tokenizer { shared: Arc::new(shared) })
    }

    /// Token ids of `text`; `special_tokens`: with the tokenizer's own additions (BOS). If the text already begins
    /// with the BOS string no second one is added.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let has_bos = self.bos_text().is_some_and(|bos| text.starts_with(bos));
        let encoding = self.shared.inner.encode_fast(text, special_tokens && !has_bos);
        Ok(encoding.map_err(|error| self.failed("a text does not encode", &*error))?.get_ids().to_vec())
    }

    /// Token ids of `text` without additions, each with the bytes of `text` it stands for.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.shared.inner.encode(text, false);
        let encoding = encoding.map_err(|error| self.failed("a text does not encode", &*error))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// Text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, Decoding::default())
    }

    /// Text of `ids`.
    pub fn decode_as(&self, ids: &[u32], decoding: Decoding) -> Result<String> {
        let text = self.shared.inner.decode(ids, !decoding.special_tokens);
        let text = text.map_err(|error| self.failed("tokens do not decode", &*error))?;
        let is_cleaned = match self.shared.clean_up {
            CleanUp::Never => false,
            CleanUp::Transformers4 => decoding.as_transformers_4,
            CleanUp::Always => true,
        };
        Ok(if is_cleaned { clean_up_spaces(&text) } else { text })
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) -> anyhow::Error {
        anyhow!("{}: {what}: {error}", self.shared.place)
    }

    /// The string of one token as the vocabulary has it (`Ġthe`), for showing.
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// Whether decoding leaves the token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    pub fn bos(&self) -> Option<u32> {
        self.shared.bos.as_ref().map(|(id, _)| *id)
    }

    /// Tokens that end a text: those of the generation config, or where it states none of the config, and the tokenizer's
    /// own end of text.
    pub fn eos(&self) -> &[u32] {
        &self.shared.eos
    }

    /// The tokenizer's own end of text; the first that is stated elsewhere where it names none.
    pub fn eos_token(&self) -> Option<u32> {
        self.shared.eos_token
    }

    /// The end-of-text token's string, for templates (`{{ eos_token }}`).
    pub fn eos_text(&self) -> Option<&str> {
        self.shared.eos_text.as_deref()
    }

    pub fn bos_text(&self) -> Option<&str> {
        self.shared.bos.as_ref().map(|(_, text)| text.as_str())
    }

    /// The Jinja chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.shared.chat_template.as_deref()
    }

    /// What the model's generation config divides the logits of tokens by that stand in the text already (those below 0 are
    /// multiplied by it); none where that changes nothing.
    pub fn repetition_penalty(&self) -> Option<f32> {
        self.shared.generation.repetition_penalty
    }

    /// How many new tokens a text may have of which `asked` were asked for: a model's own limit may go before that.
    pub fn limit(&self, protocol: Option<Protocol>, asked: usize) -> usize {
        self.shared.generation.limit(protocol, asked)
    }

    /// An error if the model's generation config asks for more than is followed here.
    pub fn check_generation(&self) -> Result<()> {
        self.shared.generation.check().with_context(|| self.shared.place.clone())
    }

    /// sha256 over everything that decides how text becomes tokens.
    pub fn digest(&self) -> &str {
        &self.shared.digest
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into `folder` (of a folder's
    /// tokenizer: the files it has, unchanged).
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, contents) in &self.shared.files {
            let path = folder.join(name);
            std::fs::write(&path, contents).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn read_files(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for name in FILES {
        let path = folder.join(name);
        if path.exists() {
            files.insert(name, std::fs::read(&path).with_context(|| path.display().to_string())?);
        }
    }
    if !files.contains_key("tokenizer.json") {
        let hint = if files.contains_key("tokenizer.model") {
            "only tokenizer.model is there; save the tokenizer with transformers' fast class once"
        } else {
            "fetch it from where the model came from"
        };
        bail!("{}: tokenizer.json is missing: {hint}", folder.display());
    }
    Ok(files)
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).map_err(|error| anyhow!("{}: not valid JSON: {error}", path.display()))
}

/// transformers' `clean_up_tokenization`.
fn clean_up_spaces(text: &str) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
