//! `config.json` as the hub would have it, made up from a GGUF's metadata.
//!
//! What llama.cpp knows without a key (Gemma's period of global layers, its attention scale, that Qwen3's mixture is
//! normalised) is stated here as its `src/models/*.cpp` have it.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::{Family, Metadata, required, rope};

/// Keys that would change the numbers of a family that does not normally have them.
const NOT_COMPUTED: [&str; 8] = [
    "attention.scale",
    "attention.key_length_swa",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "expert_shared_count",
    "expert_weights_scale",
    "leading_dense_block_count",
];

/// More are a damaged file, not a model.
const MOST_LAYERS: usize = 4096;

pub(super) fn config(metadata: &Metadata) -> Result<Value> {
    for key in NOT_COMPUTED {
        let stated = metadata.number(key)?.unwrap_or(0.0);
        ensure!(stated == 0.0, "`{}` is {stated}; a model with it does not open", metadata.key(key));
    }
    let mut config = of_every_family(metadata)?;
    let more = match metadata.family {
        Family::Llama => llama(metadata)?,
        Family::Qwen2 => json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
        Family::Qwen3 => json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}),
        Family::Qwen3Moe => qwen3_moe(metadata)?,
        Family::Gemma2 => gemma2(metadata)?,
        Family::Gemma3 => gemma3(metadata)?,
        Family::Phi3 => phi3(metadata)?,
    };
    let Value::Object(more) = more else { bail!("the configuration of a family is an object") };
    config.extend(more);
    let scaling = rope::scaling(metadata, &config)?;
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(Value::Object(config))
}

fn of_every_family(metadata: &Metadata) -> Result<Map<String, Value>> {
    let gguf = metadata.gguf;
    let heads = metadata.required_count("attention.head_count")?;
    let epsilon = "attention.layer_norm_rms_epsilon";
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set(if metadata.family.is_gemma() { "hidden_activation" } else { "hidden_act" }, activation(metadata.family));
    set("hidden_size", json!(metadata.required_count("embedding_length")?));
    set("intermediate_size", json!(metadata.required_count("feed_forward_length")?));
    set("num_hidden_layers", json!(metadata.required_count("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(metadata.count("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(head_dim(metadata, heads)?));
    set("max_position_embeddings", json!(metadata.required_count("context_length")?));
    set("rms_norm_eps", json!(required(metadata.number(epsilon)?, &metadata.key(epsilon))?));
    set("rope_theta", json!(metadata.number("rope.freq_base")?.unwrap_or(10_000.0)));
    set("vocab_size", json!(vocabulary(metadata)?));
    set("tie_word_embeddings", json!(!gguf.tensors.contains_key("output.weight")));
    set("sliding_window", Value::Null);
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = gguf.count(&format!("tokenizer.ggml.{name}_token_id"))? {
            set(key, json!(id));
        }
    }
    Ok(config)
}

fn activation(family: Family) -> Value {
    json!(if family.is_gemma() { "gelu_pytorch_tanh" } else { "silu" })
}

fn vocabulary(metadata: &Metadata) -> Result<usize> {
    let embedding = metadata.gguf.tensors.get("token_embd.weight");
    let embedding =
        embedding.ok_or_else(|| anyhow!("tensor `token_embd.weight` is missing; convert the model again"))?;
    Ok(embedding.shape[0])
}

/// The size of a head; all of it must be rotated but in Phi-3.
fn head_dim(metadata: &Metadata, heads: usize) -> Result<usize> {
    let hidden = metadata.required_count("embedding_length")?;
    let rotated = metadata.count("rope.dimension_count")?;
    let key_length = match metadata.family {
        // Its older files state a head's size by what is rotated of it.
        Family::Llama => metadata.count("attention.key_length")?.or(rotated),
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe | Family::Gemma2 | Family::Gemma3 | Family::Phi3 => {
            metadata.count("attention.key_length")?
        }
    };
    let key_length = key_length.unwrap_or(hidden / heads.max(1));
    let rotated = rotated.unwrap_or(key_length);
    let may_rotate_in_part = metadata.family == Family::Phi3;
    ensure!(
        key_length == rotated || may_rotate_in_part,
        "only {rotated} of {key_length} dimensions of a head are rotated; all must be"
    );
    Ok(key_length)
}

fn llama(metadata: &Metadata) -> Result<Value> {
    let experts = metadata.count("expert_count")?.unwrap_or(0);
    if experts == 0 {
        return Ok(json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}));
    }
    Ok(json!({
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": experts,
        "num_experts_per_tok": metadata.required_count("expert_used_count")?,
    }))
}

fn qwen3_moe(metadata: &Metadata) -> Result<Value> {
    Ok(json!({
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": metadata.required_count("expert_count")?,
        "num_experts_per_tok": metadata.required_count("expert_used_count")?,
        "moe_intermediate_size": metadata.required_count("expert_feed_forward_length")?,
        "norm_topk_prob": metadata.gguf.flag(&metadata.key("expert_weights_norm"))?.unwrap_or(true),
    }))
}

fn gemma2(metadata: &Metadata) -> Result<Value> {
    Ok(json!({
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "sliding_window": metadata.count("attention.sliding_window")?.unwrap_or(4096),
        "layer_types": layer_types(metadata, 2)?,
        "query_pre_attn_scalar": query_scalar(metadata, 46)?,
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping")?.unwrap_or(50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping")?.unwrap_or(30.0),
    }))
}

fn gemma3(metadata: &Metadata) -> Result<Value> {
    Ok(json!({
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": metadata.count("attention.sliding_window")?,
        "layer_types": layer_types(metadata, 6)?,
        "query_pre_attn_scalar": query_scalar(metadata, 62)?,
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping")?,
        "final_logit_softcapping": metadata.number("final_logit_softcapping")?,
        "rope_local_base_freq": metadata.number("rope.freq_base_swa")?.unwrap_or(10_000.0),
    }))
}

/// Every how many layers one sees everything, or for each layer whether it does not.
fn layer_types(metadata: &Metadata, period: usize) -> Result<Vec<&'static str>> {
    let key = metadata.key("attention.sliding_window_pattern");
    let layers = metadata.required_count("block_count")?;
    ensure!(layers <= MOST_LAYERS, "`{}` is {layers}, more than any model has", metadata.key("block_count"));
    let kind = |is_local: bool| if is_local { "sliding_attention" } else { "full_attention" };
    if let Ok(Some(flags)) = metadata.gguf.flags(&key) {
        return Ok(flags.into_iter().map(kind).collect());
    }
    let period = metadata.gguf.count(&key)?.unwrap_or(period);
    ensure!(period > 0, "metadata key `{key}` is 0");
    Ok((1..=layers).map(|layer| kind(layer % period != 0)).collect())
}

/// No key states it: the largest Gemma, known by its layers, has another than its head's size.
fn query_scalar(metadata: &Metadata, layers_of_the_largest: usize) -> Result<usize> {
    let heads = metadata.required_count("attention.head_count")?;
    match metadata.required_count("block_count")? == layers_of_the_largest {
        true => Ok(metadata.required_count("embedding_length")? / heads.max(1)),
        false => head_dim(metadata, heads),
    }
}

fn phi3(metadata: &Metadata) -> Result<Value> {
    let window = metadata.count("attention.sliding_window")?.filter(|&window| window > 0);
    let head_dim = head_dim(metadata, metadata.required_count("attention.head_count")?)?;
    let rotated = metadata.count("rope.dimension_count")?.unwrap_or(head_dim);
    Ok(json!({
        "partial_rotary_factor": rotated as f64 / head_dim as f64,
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "sliding_window": window,
        "original_max_position_embeddings": metadata.count("rope.scaling.original_context_length")?,
    }))
}
