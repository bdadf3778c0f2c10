//! GGUF files of the llama architecture, seen as the hub's checkpoint.
//!
//! Source: llama.cpp's `convert_hf_to_gguf.py` (class LlamaModel), undone here: names, the order of query and key rows
//! (which it interleaves for its rotary embedding), experts stacked in one tensor, Llama 3's rotary factors stored as a
//! tensor. A GGUF cannot tell Mistral from Llama; without a sliding window the two are the same decoder, so `llama`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::gguf::{Gguf, Place};
use super::{Checkpoint, Entry, RowOrder, decode};

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let gguf = Gguf::open(path)?;
    let parts = gguf.count("split.count")?.unwrap_or(1);
    ensure!(parts <= 1, "{}: one of {parts} parts; join them with llama.cpp's `gguf-split --merge`", path.display());
    let config = config(&gguf).with_context(|| path.display().to_string())?;
    let entries = entries(&gguf, &config).with_context(|| path.display().to_string())?;
    let place = format!("{} (metadata)", path.display());
    Ok(Checkpoint { config, config_place: place, files: vec![gguf.mapped], entries })
}

fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value.ok_or_else(|| anyhow!("metadata key `{key}` is missing; convert the model again"))
}

fn count(gguf: &Gguf, key: &str) -> Result<usize> {
    required(gguf.count(key)?, key)
}

/// `config.json` as the hub would have it.
fn config(gguf: &Gguf) -> Result<Value> {
    let architecture = required(gguf.text("general.architecture")?, "general.architecture")?;
    ensure!(architecture == "llama", "architecture `{architecture}` does not open; `llama` does");
    let experts = gguf.count("llama.expert_count")?.unwrap_or(0);
    let heads = count(gguf, "llama.attention.head_count")?;
    let key_value_heads = gguf.count("llama.attention.head_count_kv")?.unwrap_or(heads);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("architectures", json!([if experts > 0 { "MixtralForCausalLM" } else { "LlamaForCausalLM" }]));
    set("model_type", json!(if experts > 0 { "mixtral" } else { "llama" }));
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(count(gguf, "llama.embedding_length")?));
    set("intermediate_size", json!(count(gguf, "llama.feed_forward_length")?));
    set("num_hidden_layers", json!(count(gguf, "llama.block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(key_value_heads));
    set("max_position_embeddings", json!(count(gguf, "llama.context_length")?));
    set("rms_norm_eps", json!(epsilon(gguf)?));
    set("rope_theta", json!(gguf.number("llama.rope.freq_base")?.unwrap_or(10_000.0)));
    set("vocab_size", json!(vocabulary(gguf)?));
    set("tie_word_embeddings", json!(!gguf.tensors.contains_key("output.weight")));
    set("sliding_window", Value::Null);
    if let Some(head_dim) = head_dim(gguf)? {
        set("head_dim", json!(head_dim));
    }
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = gguf.count(&format!("tokenizer.ggml.{name}_token_id"))? {
            set(key, json!(id));
        }
    }
    if experts > 0 {
        set("num_local_experts", json!(experts));
        set("num_experts_per_tok", json!(count(gguf, "llama.expert_used_count")?));
    }
    let scaling = rope_scaling(gguf, &config)?;
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(Value::Object(config))
}

fn epsilon(gguf: &Gguf) -> Result<f64> {
    let key = "llama.attention.layer_norm_rms_epsilon";
    required(gguf.number(key)?, key)
}

fn vocabulary(gguf: &Gguf) -> Result<usize> {
    let embedding = gguf.tensors.get("token_embd.weight");
    let embedding =
        embedding.ok_or_else(|| anyhow!("tensor `token_embd.weight` is missing; convert the model again"))?;
    Ok(embedding.shape[0])
}

/// The size of a head where the file states it.
fn head_dim(gguf: &Gguf) -> Result<Option<usize>> {
    let key_length = gguf.count("llama.attention.key_length")?;
    let rotated = gguf.count("llama.rope.dimension_count")?;
    if let (Some(key_length), Some(rotated)) = (key_length, rotated) {
        ensure!(key_length == rotated, "only {rotated} of {key_length} dimensions of a head are rotated; all must be");
    }
    Ok(key_length.or(rotated))
}

fn rope_scaling(gguf: &Gguf, config: &Map<String, Value>) -> Result<Value> {
    if let Some(place) = gguf.tensors.get("rope_freqs.weight") {
        return llama3_scaling(gguf, config, place).context("tensor `rope_freqs.weight`");
    }
    let factor = match gguf.number("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => gguf.number("llama.rope.scale_linear")?, // its older name
    };
    match (gguf.text("llama.rope.scaling.type")?, factor) {
        (None | Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (None | Some("none"), _) => Ok(Value::Null),
        (Some("linear"), None) => bail!("`llama.rope.scaling.type` is linear, but its factor is missing"),
        (Some(other), _) => bail!("rope scaling `{other}` does not open; `linear` and Llama 3's do"),
    }
}

/// Llama 3's parameters found again from the factor of each frequency. Every published model of that kind has
/// low_freq_factor 1, high_freq_factor 4 and 8192 original positions; the factors must come out of these.
fn llama3_scaling(gguf: &Gguf, config: &Map<String, Value>, place: &Place) -> Result<Value> {
    let stored = decode::to_f32(place.format, &place.shape, &gguf.mapped.map[place.start..place.end])?;
    if stored.iter().all(|factor| *factor == 1.0) {
        return Ok(Value::Null);
    }
    let original = gguf.count("llama.rope.scaling.original_context_length")?.unwrap_or(8192);
    let largest = stored.iter().copied().fold(0.0, f32::max);
    let theta = config["rope_theta"].as_f64().expect("set from a finite number");
    let head_dim = 2 * stored.len();
    let agrees = stored.iter().enumerate().all(|(index, factor)| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * index as f64 / head_dim as f64);
        let expected = llama3_factor(wavelength, largest.into(), original as f64);
        (f64::from(*factor) / expected - 1.0).abs() < 1e-3
    });
    ensure!(
        agrees,
        "these factors are not Llama 3's (low 1, high 4, {original} positions); such scaling does not open"
    );
    Ok(json!({
        "rope_type": "llama3",
        "factor": f64::from(largest),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }))
}

/// What a frequency of that wavelength is divided by (transformers' `_compute_llama3_parameters`).
fn llama3_factor(wavelength: f64, factor: f64, original: f64) -> f64 {
    let (low, high) = (1.0, 4.0);
    let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

fn entries(gguf: &Gguf, config: &Value) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    for (name, place) in &gguf.tensors {
        let target = target(name).ok_or_else(|| {
            anyhow!("tensor `{name}` belongs to no llama model that opens here; take a plain Llama, Mistral or Mixtral")
        })?;
        for (name, entry) in target.entries(place, config).with_context(|| format!("tensor `{name}`"))? {
            if entries.insert(name.clone(), entry).is_some() {
                bail!("two tensors stand for `{name}`");
            }
        }
    }
    Ok(entries)
}

/// What a GGUF tensor is in the hub's checkpoint.
#[derive(Debug, PartialEq)]
enum Target {
    Same(String),
    /// Query or key rows; the configuration key that holds the number of heads.
    Interleaved(String, &'static str),
    /// One tensor for all experts: what stands before and after the expert's number.
    Stacked(String, &'static str),
    /// Read elsewhere.
    Consumed,
}

fn target(name: &str) -> Option<Target> {
    match name {
        "token_embd.weight" => return Some(Target::Same("model.embed_tokens.weight".to_owned())),
        "output_norm.weight" => return Some(Target::Same("model.norm.weight".to_owned())),
        "output.weight" => return Some(Target::Same("lm_head.weight".to_owned())),
        "rope_freqs.weight" => return Some(Target::Consumed),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let same = |part: &str| Some(Target::Same(format!("model.layers.{layer}.{part}")));
    let rows = |part: &str, heads| Some(Target::Interleaved(format!("model.layers.{layer}.{part}"), heads));
    let experts = format!("model.layers.{layer}.block_sparse_moe.experts.");
    match part {
        "attn_norm.weight" => same("input_layernorm.weight"),
        "ffn_norm.weight" => same("post_attention_layernorm.weight"),
        "attn_q.weight" => rows("self_attn.q_proj.weight", "num_attention_heads"),
        "attn_k.weight" => rows("self_attn.k_proj.weight", "num_key_value_heads"),
        "attn_q.bias" => rows("self_attn.q_proj.bias", "num_attention_heads"),
        "attn_k.bias" => rows("self_attn.k_proj.bias", "num_key_value_heads"),
        "attn_v.weight" => same("self_attn.v_proj.weight"),
        "attn_v.bias" => same("self_attn.v_proj.bias"),
        "attn_output.weight" => same("self_attn.o_proj.weight"),
        "attn_output.bias" => same("self_attn.o_proj.bias"),
        "ffn_gate.weight" => same("mlp.gate_proj.weight"),
        "ffn_up.weight" => same("mlp.up_proj.weight"),
        "ffn_down.weight" => same("mlp.down_proj.weight"),
        "ffn_gate_inp.weight" => same("block_sparse_moe.gate.weight"),
        "ffn_gate_exps.weight" => Some(Target::Stacked(experts, "w1.weight")),
        "ffn_down_exps.weight" => Some(Target::Stacked(experts, "w2.weight")),
        "ffn_up_exps.weight" => Some(Target::Stacked(experts, "w3.weight")),
        other => older_expert(other).map(|(expert, part)| Target::Same(format!("{experts}{expert}.{part}"))),
    }
}

/// `ffn_gate.3.weight`, as converters of 2023 wrote one tensor an expert.
fn older_expert(part: &str) -> Option<(usize, &'static str)> {
    let (kind, expert) = part.strip_suffix(".weight")?.split_once('.')?;
    let part = match kind {
        "ffn_gate" => "w1.weight",
        "ffn_down" => "w2.weight",
        "ffn_up" => "w3.weight",
        _ => return None,
    };
    Some((expert.parse().ok()?, part))
}

impl Target {
    fn entries(self, place: &Place, config: &Value) -> Result<Vec<(String, Entry)>> {
        let whole = |rows| Entry {
            file: 0,
            format: Ok(place.format),
            shape: place.shape.clone(),
            start: place.start,
            end: place.end,
            rows,
            absmax: None,
        };
        match self {
            Target::Same(name) => Ok(vec![(name, whole(RowOrder::Same))]),
            Target::Interleaved(name, key) => {
                let heads = config[key].as_u64().unwrap_or(0) as usize;
                let rows = place.shape[0];
                ensure!(
                    heads > 0 && rows.is_multiple_of(2 * heads),
                    "{rows} rows do not divide into halves of {heads} heads"
                );
                Ok(vec![(name, whole(RowOrder::Interleaved { heads }))])
            }
            Target::Stacked(prefix, part) => {
                ensure!(place.shape.len() == 3, "shape {:?}, but experts are stacked in three dimensions", place.shape);
                let bytes = (place.end - place.start) / place.shape[0];
                Ok((0..place.shape[0])
                    .map(|expert| {
                        let start = place.start + expert * bytes;
                        let shape = place.shape[1..].to_vec();
                        let entry = Entry { shape, start, end: start + bytes, ..whole(RowOrder::Same) };
                        (format!("{prefix}{expert}.{part}"), entry)
                    })
                    .collect())
            }
            Target::Consumed => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_hubs() {
        let same = |name: &str| Some(Target::Same(name.to_owned()));
        assert_eq!(target("blk.7.ffn_down.weight"), same("model.layers.7.mlp.down_proj.weight"));
        assert_eq!(target("blk.0.ffn_up.3.weight"), same("model.layers.0.block_sparse_moe.experts.3.w3.weight"));
        assert_eq!(target("blk.0.ffn_gate_inp.weight"), same("model.layers.0.block_sparse_moe.gate.weight"));
        assert_eq!(target("blk.x.ffn_up.weight"), None);
        assert_eq!(target("blk.0.ssm_a"), None);
    }

    #[test]
    fn llama3_factors_by_hand() {
        // Short waves stay, long ones are stretched 8 times, and halfway (8192 / 2.5 positions) smooth is 0.5.
        assert_eq!(llama3_factor(100.0, 8.0, 8192.0), 1.0);
        assert_eq!(llama3_factor(9000.0, 8.0, 8192.0), 8.0);
        let halfway = llama3_factor(8192.0 / 2.5, 8.0, 8192.0);
        assert!((halfway - 1.0 / (0.5 / 8.0 + 0.5)).abs() < 1e-12);
    }
}
