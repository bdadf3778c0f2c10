//! What the files of a tokenizer say, brought into one place: the final `tokenizer.json`, special tokens, template.
//!
//! transformers changes a fast tokenizer while loading it, and what it changes decides token ids: Llama's class
//! rebuilds the post-processor from `add_bos_token` and `add_eos_token`, which other classes read over, and tokens that
//! only `tokenizer_config.json` lists are added. The same is done here, on the JSON.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::generation::Generation;
use super::{CleanUp, Files};

/// All that [`super::Tokenizer`] is made of.
pub(super) struct Settings {
    /// `tokenizer.json` after the changes.
    pub tokenizer: Value,
    pub bos_text: Option<String>,
    /// Where no text is stated.
    pub bos_id: Option<u32>,
    pub eos_text: Option<String>,
    /// Of the generation config or the config; empty where neither states them.
    pub eos_ids: Vec<u32>,
    pub chat_template: Option<String>,
    pub generation: Generation,
    pub clean_up: CleanUp,
}

impl Settings {
    /// `config`: the model's `config.json`, or null.
    pub fn read(files: &Files, config: &Value, place: &str) -> Result<Settings> {
        Settings::read_json(files, config).with_context(|| place.to_owned())
    }

    fn read_json(files: &Files, config: &Value) -> Result<Settings> {
        let stated = json_file(files, "tokenizer_config.json")?;
        let special = json_file(files, "special_tokens_map.json")?;
        let generation = json_file(files, "generation_config.json")?;
        let text = |key: &str| special_text(&stated, key).or_else(|| special_text(&special, key));
        let mut settings = Settings {
            tokenizer: json_file(files, "tokenizer.json")?,
            bos_text: text("bos_token"),
            bos_id: bos_id(&stated, &[&generation, config])?,
            eos_text: text("eos_token"),
            eos_ids: first_ids(&[&generation, config], "eos_token_id")?,
            chat_template: chat_template(files, &stated)?,
            generation: Generation::read(&generation, config)?,
            clean_up: CleanUp::Never,
        };
        ensure!(settings.tokenizer["model"].is_object(), "tokenizer.json has no `model`");
        settings.clean_up = clean_up(&stated, &settings.tokenizer["model"]);
        // A saved length limit or padding is for somebody's batches; here every text is encoded whole.
        settings.tokenizer["truncation"] = Value::Null;
        settings.tokenizer["padding"] = Value::Null;
        settings.add_listed_tokens(&stated)?;
        settings.rebuild_post_processor(&stated)?;
        Ok(settings)
    }

    /// Tokens of `added_tokens_decoder` that `tokenizer.json` does not list.
    fn add_listed_tokens(&mut self, stated: &Value) -> Result<()> {
        let Some(listed) = stated["added_tokens_decoder"].as_object() else { return Ok(()) };
        let mut tokens = self.tokenizer["added_tokens"].as_array().cloned().unwrap_or_default();
        let mut missing = Vec::new();
        for (id, token) in listed {
            let id: u32 = id.parse().map_err(|_| anyhow!("tokenizer_config.json: token id `{id}` is not a number"))?;
            if !tokens.iter().any(|token| token["id"] == id) {
                missing.push((id, token));
            }
        }
        missing.sort_by_key(|(id, _)| *id);
        for (id, token) in missing {
            let flag = |key: &str| token[key].as_bool().unwrap_or(false);
            tokens.push(json!({
                "id": id, "content": token["content"], "single_word": flag("single_word"), "lstrip": flag("lstrip"),
                "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
            }));
        }
        self.tokenizer["added_tokens"] = Value::Array(tokens);
        Ok(())
    }

    fn rebuild_post_processor(&mut self, stated: &Value) -> Result<()> {
        let class = stated["tokenizer_class"].as_str().unwrap_or("");
        if !matches!(class.trim_end_matches("Fast"), "LlamaTokenizer" | "CodeLlamaTokenizer") {
            return Ok(());
        }
        let flag = |key: &str, default: bool| stated[key].as_bool().unwrap_or(default);
        let bos = if flag("add_bos_token", true) { self.id_of(&self.bos_text)? } else { None };
        let eos = if flag("add_eos_token", false) { self.id_of(&self.eos_text)? } else { None };
        self.tokenizer["post_processor"] = template(bos, eos);
        Ok(())
    }

    /// The token with its id, from the added tokens or the vocabulary.
    fn id_of(&self, text: &Option<String>) -> Result<Option<(String, u32)>> {
        let Some(text) = text else { return Ok(None) };
        let added = self.tokenizer["added_tokens"].as_array();
        let added = added.and_then(|tokens| tokens.iter().find(|token| token["content"] == text.as_str()));
        let id = added.map_or(&self.tokenizer["model"]["vocab"][text], |token| &token["id"]);
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| anyhow!("tokenizer_config.json: token `{text}` is not in tokenizer.json"))?;
        Ok(Some((text.clone(), id)))
    }
}

fn json_file(files: &Files, name: &str) -> Result<Value> {
    let Some(text) = files.get(name) else { return Ok(Value::Null) };
    let value: Value = serde_json::from_slice(text).map_err(|error| anyhow!("{name}: not valid JSON: {error}"))?;
    ensure!(value.is_object(), "{name}: not a JSON object");
    Ok(value)
}

/// A special token, written as text or as `{"content": text, ...}`.
fn special_text(json: &Value, key: &str) -> Option<String> {
    let value = &json[key];
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// The id of the first source that states any, unless the tokenizer says what its BOS is: a null there means none, whatever
/// the model's config has (Qwen2).
fn bos_id(stated: &Value, sources: &[&Value]) -> Result<Option<u32>> {
    match stated.get("bos_token") {
        Some(_) => Ok(None),
        None => Ok(first_ids(sources, "bos_token_id")?.first().copied()),
    }
}

/// The ids (one or a list) of the first source that states any.
fn first_ids(sources: &[&Value], key: &str) -> Result<Vec<u32>> {
    for source in sources {
        let value = &source[key];
        let ids = match value {
            Value::Null => continue,
            Value::Array(ids) => ids.clone(),
            one => vec![one.clone()],
        };
        let ids = ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        let ids: Option<Vec<u32>> = ids.collect();
        return ids.ok_or_else(|| anyhow!("key `{key}` is {value}; expected a token id or a list of them"));
    }
    Ok(Vec::new())
}

/// `chat_template.jinja` before the config's; of several named ones the default.
fn chat_template(files: &Files, stated: &Value) -> Result<Option<String>> {
    if let Some(text) = files.get("chat_template.jinja") {
        let text = String::from_utf8(text.clone()).map_err(|_| anyhow!("chat_template.jinja: not UTF-8"))?;
        return Ok(Some(text));
    }
    match &stated["chat_template"] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default");
            Ok(default.and_then(|template| template["template"].as_str()).map(str::to_owned))
        }
        other => bail!("tokenizer_config.json: key `chat_template` is {other}; expected text or a list of templates"),
    }
}

/// transformers 5 leaves byte-pair encodings' text alone (`tokenization_utils_tokenizers.py`, `_decode`), whose spaces were
/// in what was encoded.
fn clean_up(stated: &Value, model: &Value) -> CleanUp {
    let is_bpe = model["type"] == "BPE" || model["merges"].is_array();
    let is_forced = stated["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] == true;
    match stated["clean_up_tokenization_spaces"] == true {
        false => CleanUp::Never,
        true if is_bpe && !is_forced => CleanUp::Transformers4,
        true => CleanUp::Always,
    }
}

/// A post-processor that puts these tokens around every text (none: one that adds nothing).
pub(super) fn template(bos: Option<(String, u32)>, eos: Option<(String, u32)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: &Option<(String, u32)>, side: u8| {
        token.iter().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": side}})).collect::<Vec<_>>()
    };
    let sequence = |name: &str, side: u8| vec![json!({"Sequence": {"id": name, "type_id": side}})];
    let single = [special(&bos, 0), sequence("A", 0), special(&eos, 0)].concat();
    let pair = [single.clone(), special(&bos, 1), sequence("B", 1), special(&eos, 1)].concat();
    let tokens: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
