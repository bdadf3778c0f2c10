//! The text model of a Gemma 3 that also sees pictures (all but the 270M and 1B), seen as the text-only checkpoint.
//!
//! Its `config.json` holds the text model's in `text_config`, from which what equals the defaults of transformers'
//! `Gemma3TextConfig` may be missing; its tensors are `language_model.model.…`. The vision tower and the projector have
//! no part in texts and are left out.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Entry;

const TEXT: &str = "language_model.";
const VISION: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

/// Configuration and tensors of the text model; those of other checkpoints as they are.
pub(super) fn text_only(config: Value, entries: BTreeMap<String, Entry>) -> Result<(Value, BTreeMap<String, Entry>)> {
    if config.get("model_type").and_then(Value::as_str) != Some("gemma3") {
        return Ok((config, entries));
    }
    let Some(text) = config.get("text_config").and_then(Value::as_object) else {
        bail!("config.json: a model of type gemma3 has a `text_config`, which is missing; fetch the file again")
    };
    let mut text = text.clone();
    for (key, default) in [("vocab_size", json!(262_208)), ("num_attention_heads", json!(8))] {
        text.entry(key).or_insert(default);
    }
    text.insert("model_type".to_owned(), json!("gemma3_text"));
    text.insert("architectures".to_owned(), json!(["Gemma3ForCausalLM"]));
    for key in ["torch_dtype", "dtype", "eos_token_id", "bos_token_id", "quantization_config"] {
        if let (Some(stated), false) = (config.get(key), text.contains_key(key)) {
            text.insert(key.to_owned(), stated.clone());
        }
    }
    let seen = |name: &String| !VISION.iter().any(|prefix| name.starts_with(prefix));
    let entries = entries.into_iter().filter(|(name, _)| seen(name)).map(|(name, entry)| {
        let usual = name.strip_prefix(TEXT).map(str::to_owned);
        (usual.unwrap_or(name), entry)
    });
    Ok((Value::Object(text), entries.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Conversion, Format};

    #[test]
    fn the_text_model_stands_alone() {
        let entry = |start| Entry {
            file: 0,
            format: Ok(Format::F32),
            shape: vec![1],
            start,
            end: start + 4,
            conversion: Conversion::None,
            absmax: None,
        };
        let names = ["language_model.model.norm.weight", "vision_tower.x.weight", "multi_modal_projector.y"];
        let entries: BTreeMap<String, Entry> = names.iter().map(|name| (name.to_string(), entry(8))).collect();
        let config = json!({"model_type": "gemma3", "torch_dtype": "bfloat16",
                            "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}});
        let (text, kept) = text_only(config, entries.clone()).unwrap();
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["model.norm.weight"]);
        assert_eq!(text["model_type"], "gemma3_text");
        assert_eq!((&text["vocab_size"], &text["hidden_size"]), (&json!(262_208), &json!(2560)));
        assert_eq!(text["torch_dtype"], "bfloat16");
        assert!(text_only(json!({"model_type": "gemma3"}), entries).unwrap_err().to_string().contains("`text_config`"));
    }
}
