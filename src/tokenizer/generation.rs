//! What a model's own generation config makes of greedy text.
//!
//! Both harnesses call transformers' `generate(do_sample=False)`, which takes the likeliest token, but of logits that were
//! changed first as `generation_config.json` says (`generation/utils.py`, `_get_logits_processor`). The repetition penalty
//! and the limit of new tokens are followed here; other keys that change the text are refused by name, and those that only
//! draws look at are read over.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::protocol::Protocol;

/// Keys that are not followed, each with the number that changes nothing.
const NUMBERS: [(&str, f64); 8] = [
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
];

/// Keys that are not followed and change the text wherever they are given.
const OTHERS: [&str; 13] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "constraints",
    "dola_layers",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "token_healing",
    "watermarking_config",
];

/// How a model's text is generated, besides where it ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Generation {
    /// Makes tokens less likely that stand in the text already; none where it changes nothing.
    pub repetition_penalty: Option<f32>,
    /// The first key that is not followed, with its value.
    refused: Option<(&'static str, Value)>,
    max_new_tokens: Option<usize>,
    /// The file it is from.
    file: &'static str,
}

impl Generation {
    /// Of `generation_config.json`, or where there is none of `config.json`, where it was kept once.
    pub fn read(generation: &Value, config: &Value) -> Result<Generation> {
        let (stated, file) = match generation {
            Value::Null => (config, "config.json"),
            stated => (stated, "generation_config.json"),
        };
        Ok(Generation {
            repetition_penalty: penalty(&stated["repetition_penalty"])?,
            refused: refused(stated),
            max_new_tokens: limit(&stated["max_new_tokens"])?,
            file,
        })
    }

    /// How many new tokens a text may have of which `asked` were asked for.
    pub fn limit(&self, protocol: Option<Protocol>, asked: usize) -> usize {
        match protocol {
            // lm-eval gives its limit as `max_length`, and transformers puts the model's `max_new_tokens` before that.
            Some(Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) => self.max_new_tokens.unwrap_or(asked),
            Some(Protocol::LeaderboardV1) | None => asked,
        }
    }

    /// An error if the model asks for what is not followed here.
    pub fn check(&self) -> Result<()> {
        let Some((key, value)) = &self.refused else { return Ok(()) };
        bail!(
            "{}: `{key}` is {value}, which changes the text that is generated and is not followed here; leave tasks out that \
             generate, or take the key out of a copy of the model",
            self.file
        )
    }
}

fn penalty(stated: &Value) -> Result<Option<f32>> {
    match stated.as_f64() {
        Some(penalty) if penalty > 0.0 => Ok(Some(penalty as f32).filter(|&penalty| penalty != 1.0)),
        None if stated.is_null() => Ok(None),
        Some(_) | None => bail!("key `repetition_penalty` is {stated}; expected a number above 0"),
    }
}

fn limit(stated: &Value) -> Result<Option<usize>> {
    if stated.is_null() {
        return Ok(None);
    }
    let limit = stated.as_u64().filter(|&limit| limit > 0).map(|limit| limit as usize);
    limit.map(Some).with_context(|| format!("key `max_new_tokens` is {stated}; expected a whole number above 0"))
}

fn refused(stated: &Value) -> Option<(&'static str, Value)> {
    let number = NUMBERS.iter().filter(|(key, neutral)| stated[*key].as_f64() != Some(*neutral)).map(|(key, _)| *key);
    number.chain(OTHERS).find_map(|key| Some((key, given(&stated[key])?)))
}

/// A value that says something.
fn given(value: &Value) -> Option<Value> {
    let is_empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    };
    (!is_empty).then(|| value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(generation: Value) -> Generation {
        Generation::read(&generation, &json!({"repetition_penalty": 9.0, "num_beams": 9})).unwrap()
    }

    fn refusal(generation: Value) -> String {
        of(generation).check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_penalty_is_the_file_s_own() {
        assert_eq!(of(json!({"repetition_penalty": 1.1})).repetition_penalty, Some(1.1));
        for neutral in [json!({}), json!({"repetition_penalty": null}), json!({"repetition_penalty": 1.0})] {
            assert_eq!(of(neutral).repetition_penalty, None);
        }
        assert_eq!(of(Value::Null).repetition_penalty, Some(9.0), "an older model's config");
        for wrong in [json!(0.0), json!("1.1")] {
            let error = Generation::read(&json!({"repetition_penalty": wrong}), &Value::Null).unwrap_err().to_string();
            assert!(error.contains("`repetition_penalty` is") && error.contains("above 0"), "{error}");
        }
    }

    #[test]
    fn what_is_not_followed_is_refused_by_name() {
        let drawn = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_length": 4096});
        let neutral = json!({"num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "suppress_tokens": [],
            "sequence_bias": null, "token_healing": false, "encoder_repetition_penalty": 1.0});
        for accepted in [drawn, neutral, json!({})] {
            assert_eq!(refusal(accepted), "");
        }
        let error = refusal(json!({"no_repeat_ngram_size": 3}));
        assert!(
            error.contains("generation_config.json: `no_repeat_ngram_size` is 3") && error.contains("copy"),
            "{error}"
        );
        assert!(refusal(Value::Null).starts_with("config.json: `num_beams` is 9"));
        assert!(refusal(json!({"forced_eos_token_id": 0})).contains("`forced_eos_token_id` is 0"));
        assert!(refusal(json!({"suppress_tokens": [7]})).contains("`suppress_tokens` is [7]"));
    }

    #[test]
    fn a_limit_of_its_own_counts_where_transformers_puts_it_first() {
        let (own, none) = (of(json!({"max_new_tokens": 2048})), of(json!({})));
        for protocol in [Protocol::LmEvalLatest, Protocol::LmEvalLatestOpenllm] {
            assert_eq!((own.limit(Some(protocol), 256), none.limit(Some(protocol), 256)), (2048, 256));
        }
        assert_eq!((own.limit(Some(Protocol::LeaderboardV1), 256), own.limit(None, 9)), (256, 9));
        let error = Generation::read(&json!({"max_new_tokens": 0}), &Value::Null).unwrap_err().to_string();
        assert!(error.contains("`max_new_tokens` is 0"), "{error}");
    }
}
