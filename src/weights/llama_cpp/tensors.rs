//! What each tensor of a GGUF is in the hub's checkpoint.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::{Family, Metadata};
use crate::weights::gguf::Place;
use crate::weights::{Conversion, Entry, Format, fused};

pub(super) fn entries(metadata: &Metadata, config: &Value) -> Result<BTreeMap<String, Entry>> {
    let family = metadata.family;
    let mut entries = BTreeMap::new();
    for (name, place) in &metadata.gguf.tensors {
        let target = target(name, family).ok_or_else(|| {
            anyhow!("tensor `{name}` belongs to no {} model that opens here; take a plain one", family.name())
        })?;
        for (name, entry) in target.entries(place, config).with_context(|| format!("tensor `{name}`"))? {
            if entries.insert(name.clone(), entry).is_some() {
                bail!("two tensors stand for `{name}`");
            }
        }
    }
    Ok(entries)
}

#[derive(Debug, PartialEq)]
enum Target {
    Same(String),
    /// Query or key rows; the configuration key that holds the number of heads.
    Interleaved(String, &'static str),
    /// A norm's weights with one added.
    OneAdded(String),
    /// Several of the hub's in one, by the name Phi-3 gives it.
    Fused(String),
    /// One tensor for all experts: what stands before and after the expert's number.
    Stacked(String, &'static str),
    /// Read elsewhere.
    Consumed,
}

fn target(name: &str, family: Family) -> Option<Target> {
    match name {
        "token_embd.weight" => return Some(Target::Same("model.embed_tokens.weight".to_owned())),
        "output_norm.weight" => return Some(norm("model.norm.weight".to_owned(), family)),
        "output.weight" => return Some(Target::Same("lm_head.weight".to_owned())),
        "rope_freqs.weight" => return Some(Target::Consumed),
        "rope_factors_short.weight" | "rope_factors_long.weight" if family == Family::Phi3 => {
            return Some(Target::Consumed);
        }
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let place = |part: &str| format!("model.layers.{layer}.{part}");
    if let Some(name) = norm_name(part, family) {
        return Some(norm(place(name), family));
    }
    if let Some(target) = expert(part, &format!("model.layers.{layer}"), family) {
        return Some(target);
    }
    let rows = |part: &str, heads| match family {
        Family::Llama => Target::Interleaved(place(part), heads),
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::Gemma2 | Family::Gemma3 | Family::Phi3 => {
            Target::Same(place(part))
        }
    };
    match part {
        "attn_q.weight" => Some(rows("self_attn.q_proj.weight", "num_attention_heads")),
        "attn_k.weight" => Some(rows("self_attn.k_proj.weight", "num_key_value_heads")),
        "attn_q.bias" => Some(rows("self_attn.q_proj.bias", "num_attention_heads")),
        "attn_k.bias" => Some(rows("self_attn.k_proj.bias", "num_key_value_heads")),
        "attn_v.weight" => Some(Target::Same(place("self_attn.v_proj.weight"))),
        "attn_v.bias" => Some(Target::Same(place("self_attn.v_proj.bias"))),
        "attn_output.weight" => Some(Target::Same(place("self_attn.o_proj.weight"))),
        "attn_output.bias" => Some(Target::Same(place("self_attn.o_proj.bias"))),
        "attn_qkv.weight" if family == Family::Phi3 => Some(Target::Fused(place("self_attn.qkv_proj.weight"))),
        "ffn_up.weight" if family == Family::Phi3 => Some(Target::Fused(place("mlp.gate_up_proj.weight"))),
        "ffn_gate.weight" => Some(Target::Same(place("mlp.gate_proj.weight"))),
        "ffn_up.weight" => Some(Target::Same(place("mlp.up_proj.weight"))),
        "ffn_down.weight" => Some(Target::Same(place("mlp.down_proj.weight"))),
        _ => None,
    }
}

fn norm(name: String, family: Family) -> Target {
    if family.is_gemma() { Target::OneAdded(name) } else { Target::Same(name) }
}

/// Norms of a layer. The hub's `post_attention_layernorm` is Gemma's norm of attention's output, and others' norm of the
/// feed-forward's input.
fn norm_name(part: &str, family: Family) -> Option<&'static str> {
    match (part, family.is_gemma()) {
        ("attn_norm.weight", _) => Some("input_layernorm.weight"),
        ("ffn_norm.weight", false) | ("post_attention_norm.weight", true) => Some("post_attention_layernorm.weight"),
        ("ffn_norm.weight", true) => Some("pre_feedforward_layernorm.weight"),
        ("post_ffw_norm.weight", true) => Some("post_feedforward_layernorm.weight"),
        ("attn_q_norm.weight", _) => Some("self_attn.q_norm.weight"),
        ("attn_k_norm.weight", _) => Some("self_attn.k_norm.weight"),
        _ => None,
    }
}

/// Router and experts of a mixture, as the families that have one spell them.
fn expert(part: &str, layer: &str, family: Family) -> Option<Target> {
    let (block, gate, down, up) = match family {
        Family::Llama => ("block_sparse_moe", "w1.weight", "w2.weight", "w3.weight"),
        Family::Qwen3Moe => ("mlp", "gate_proj.weight", "down_proj.weight", "up_proj.weight"),
        Family::Qwen2 | Family::Qwen3 | Family::Gemma2 | Family::Gemma3 | Family::Phi3 => return None,
    };
    if part == "ffn_gate_inp.weight" {
        return Some(Target::Same(format!("{layer}.{block}.gate.weight")));
    }
    let experts = format!("{layer}.{block}.experts.");
    let linear = |kind: &str| match kind {
        "ffn_gate" | "ffn_gate_exps" => Some(gate),
        "ffn_down" | "ffn_down_exps" => Some(down),
        "ffn_up" | "ffn_up_exps" => Some(up),
        _ => None,
    };
    let module = part.strip_suffix(".weight")?;
    match module.split_once('.') {
        None if module.ends_with("_exps") => Some(Target::Stacked(experts, linear(module)?)),
        None => None,
        // `ffn_gate.3.weight`, as converters of 2023 wrote one tensor an expert.
        Some((kind, expert)) => {
            let expert: usize = expert.parse().ok()?;
            Some(Target::Same(format!("{experts}{expert}.{}", linear(kind)?)))
        }
    }
}

impl Target {
    fn entries(self, place: &Place, config: &Value) -> Result<Vec<(String, Entry)>> {
        let whole = |conversion| Entry {
            file: 0,
            format: Ok(place.format),
            shape: place.shape.clone(),
            start: place.start,
            end: place.end,
            conversion,
            absmax: None,
        };
        match self {
            Target::Same(name) => Ok(vec![(name, whole(Conversion::None))]),
            Target::Interleaved(name, key) => {
                let heads = config[key].as_u64().unwrap_or(0) as usize;
                let rows = place.shape[0];
                ensure!(
                    heads > 0 && rows.is_multiple_of(2 * heads),
                    "{rows} rows do not divide into halves of {heads} heads"
                );
                Ok(vec![(name, whole(Conversion::Interleaved { heads }))])
            }
            Target::OneAdded(name) => {
                ensure!(place.format == Format::F32, "a norm stored as {:?}; f32 is read", place.format);
                Ok(vec![(name, whole(Conversion::OneAdded))])
            }
            Target::Fused(name) => {
                let parts = fused::parts(&name, &whole(Conversion::None), config)?;
                parts.ok_or_else(|| anyhow!("`{name}` is not one of Phi-3's fused tensors"))
            }
            Target::Stacked(prefix, part) => stacked(&prefix, part, place, &whole(Conversion::None)),
            Target::Consumed => Ok(Vec::new()),
        }
    }
}

fn stacked(prefix: &str, part: &str, place: &Place, whole: &Entry) -> Result<Vec<(String, Entry)>> {
    ensure!(place.shape.len() == 3, "shape {:?}, but experts are stacked in three dimensions", place.shape);
    let bytes = (place.end - place.start) / place.shape[0];
    let expert = |expert: usize| {
        let start = place.start + expert * bytes;
        let entry = Entry { shape: place.shape[1..].to_vec(), start, end: start + bytes, ..whole.clone() };
        (format!("{prefix}{expert}.{part}"), entry)
    };
    Ok((0..place.shape[0]).map(expert).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_hubs() {
        let same = |name: &str| Some(Target::Same(name.to_owned()));
        let llama = |name: &str| target(name, Family::Llama);
        assert_eq!(llama("blk.7.ffn_down.weight"), same("model.layers.7.mlp.down_proj.weight"));
        assert_eq!(llama("blk.0.ffn_up.3.weight"), same("model.layers.0.block_sparse_moe.experts.3.w3.weight"));
        assert_eq!(llama("blk.0.ffn_gate_inp.weight"), same("model.layers.0.block_sparse_moe.gate.weight"));
        assert_eq!(llama("blk.x.ffn_up.weight"), None);
        assert_eq!(llama("blk.0.ssm_a"), None);
        assert_eq!(llama("blk.0.post_ffw_norm.weight"), None);
        assert_eq!(llama("rope_factors_long.weight"), None);
        let gate = target("blk.2.ffn_gate_inp.weight", Family::Qwen3Moe);
        assert_eq!(gate, same("model.layers.2.mlp.gate.weight"));
    }

    #[test]
    fn a_norm_is_known_by_its_family() {
        let name = "model.layers.0.post_attention_layernorm.weight".to_owned();
        assert_eq!(target("blk.0.ffn_norm.weight", Family::Qwen3), Some(Target::Same(name.clone())));
        assert_eq!(target("blk.0.post_attention_norm.weight", Family::Gemma2), Some(Target::OneAdded(name)));
        assert_eq!(target("blk.0.post_attention_norm.weight", Family::Qwen3), None);
    }
}
