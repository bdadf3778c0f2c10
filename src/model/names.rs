//! Names of modules and tensors as the hub's checkpoints spell them, spelled once.
//!
//! A module is a linear's path without `.weight` (what an adapter names); a tensor is a name in the checkpoint.

use anyhow::{Result, bail};

use crate::model::config::ModelConfig;
use crate::weights::Checkpoint;

pub const EMBEDDING: &str = "model.embed_tokens.weight"; // (vocabulary, hidden)
pub const NORM: &str = "model.norm.weight"; // (hidden)
pub const HEAD: &str = "lm_head.weight"; // (vocabulary, hidden); absent where the embedding is the head

/// The linears of an expert: `w2(silu(w1 x) * w3 x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertPart {
    W1,
    W2,
    W3,
}

impl ExpertPart {
    pub const ALL: [ExpertPart; 3] = [ExpertPart::W1, ExpertPart::W2, ExpertPart::W3];

    pub fn name(self) -> &'static str {
        match self {
            ExpertPart::W1 => "w1",
            ExpertPart::W2 => "w2",
            ExpertPart::W3 => "w3",
        }
    }
}

/// The tensor of a module.
pub fn weight(module: &str) -> String {
    format!("{module}.weight")
}

pub fn q_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.q_proj")
}

pub fn k_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.k_proj")
}

pub fn v_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.v_proj")
}

pub fn o_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.o_proj")
}

/// A dense layer's counterpart of [`ExpertPart::W1`].
pub fn gate_proj(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate_proj")
}

/// A dense layer's counterpart of [`ExpertPart::W3`].
pub fn up_proj(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.up_proj")
}

/// A dense layer's counterpart of [`ExpertPart::W2`].
pub fn down_proj(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.down_proj")
}

/// The router of a mixture.
pub fn router(layer: usize) -> String {
    format!("model.layers.{layer}.block_sparse_moe.gate")
}

pub fn expert(layer: usize, expert: usize, part: ExpertPart) -> String {
    format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{}", part.name())
}

/// The tensor of the norm before attention, (hidden).
pub fn input_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

/// The tensor of the norm before the feed-forward, (hidden).
pub fn post_attention_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// A linear module of a layer, with its weight's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    pub module: String,
    pub outputs: usize,
    pub inputs: usize,
}

/// All linears of a layer: q, k, v, o, then the feed-forward's (dense: gate, up, down; a mixture: the router, then
/// w1, w2, w3 of each expert).
pub fn linears(config: &ModelConfig, layer: usize) -> Vec<Linear> {
    let hidden = config.hidden_size;
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let linear = |module, outputs, inputs| Linear { module, outputs, inputs };
    let mut linears = vec![
        linear(q_proj(layer), queries, hidden),
        linear(k_proj(layer), keys, hidden),
        linear(v_proj(layer), keys, hidden),
        linear(o_proj(layer), hidden, queries),
    ];
    let width = config.intermediate_size;
    match config.mixture {
        None => linears.extend([
            linear(gate_proj(layer), width, hidden),
            linear(up_proj(layer), width, hidden),
            linear(down_proj(layer), hidden, width),
        ]),
        Some(mixture) => {
            linears.push(linear(router(layer), mixture.experts, hidden));
            for index in 0..mixture.experts {
                linears.push(linear(expert(layer, index, ExpertPart::W1), width, hidden));
                linears.push(linear(expert(layer, index, ExpertPart::W2), hidden, width));
                linears.push(linear(expert(layer, index, ExpertPart::W3), width, hidden));
            }
        }
    }
    linears
}

/// Every tensor the configuration expects, with its shape, in the order a decoder walks them.
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![(EMBEDDING.to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        tensors.push((input_norm(layer), vec![hidden]));
        tensors.push((post_attention_norm(layer), vec![hidden]));
        let linears = linears(config, layer).into_iter();
        tensors.extend(linears.map(|linear| (weight(&linear.module), vec![linear.outputs, linear.inputs])));
    }
    tensors.push((NORM.to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push((HEAD.to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// Checks that `checkpoint` holds every expected tensor in its shape, and none that would be left unused silently.
pub fn check(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    let mut expected = std::collections::HashSet::new();
    for (name, shape) in tensors(config) {
        checkpoint.tensor(&name, &shape)?;
        expected.insert(name);
    }
    for name in checkpoint.names() {
        if !expected.contains(name) && !may_be_left_unused(name, config) {
            bail!(
                "{}: tensor `{name}` has no place in the model that {} describes; the two do not belong together, or \
                 the model is of a kind that does not open",
                checkpoint.files()[0].display(),
                checkpoint.config_place()
            );
        }
    }
    Ok(())
}

/// Tables that early conversions kept and every decoder makes itself, and a tied head that was stored all the same.
fn may_be_left_unused(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (name == HEAD && config.tie_word_embeddings)
}
