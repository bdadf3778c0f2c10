//! Names of modules and tensors as the hub's checkpoints spell them, spelled once.
//!
//! A module is a linear's path without `.weight` (what an adapter names); a tensor is a name in the checkpoint.

use anyhow::{Result, bail};

use crate::model::config::{Architecture, ModelConfig};
use crate::weights::Checkpoint;

pub const EMBEDDING: &str = "model.embed_tokens.weight"; // (vocabulary, hidden)
pub const NORM: &str = "model.norm.weight"; // (hidden)
pub const HEAD: &str = "lm_head.weight"; // (vocabulary, hidden); absent where the embedding is the head

/// The linears of an expert: `w2(silu(w1 x) * w3 x)`, by the names Mixtral gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertPart {
    W1,
    W2,
    W3,
}

impl ExpertPart {
    pub const ALL: [ExpertPart; 3] = [ExpertPart::W1, ExpertPart::W2, ExpertPart::W3];

    /// What a dense feed-forward calls it, and experts other than Mixtral's.
    fn dense(self) -> &'static str {
        match self {
            ExpertPart::W1 => "gate_proj",
            ExpertPart::W2 => "down_proj",
            ExpertPart::W3 => "up_proj",
        }
    }

    fn mixtral(self) -> &'static str {
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

/// The tensor of a module's bias, (outputs).
pub fn bias(module: &str) -> String {
    format!("{module}.bias")
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
pub fn router(config: &ModelConfig, layer: usize) -> String {
    format!("{}.gate", mixture(config, layer))
}

pub fn expert(config: &ModelConfig, layer: usize, expert: usize, part: ExpertPart) -> String {
    let part = if calls_experts_as_mixtral(config) { part.mixtral() } else { part.dense() };
    format!("{}.experts.{expert}.{part}", mixture(config, layer))
}

fn mixture(config: &ModelConfig, layer: usize) -> String {
    let block = if calls_experts_as_mixtral(config) { "block_sparse_moe" } else { "mlp" };
    format!("model.layers.{layer}.{block}")
}

fn calls_experts_as_mixtral(config: &ModelConfig) -> bool {
    match config.architecture {
        Architecture::Mixtral => true,
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Qwen3Moe
        | Architecture::Gemma2
        | Architecture::Gemma3
        | Architecture::Phi3 => false,
    }
}

/// The tensor of the norm before attention, (hidden).
pub fn input_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

/// The tensor of the norm before the feed-forward, (hidden). Gemma means another by the name others give it
/// ([`attention_output_norm`]).
pub fn feed_forward_norm(config: &ModelConfig, layer: usize) -> String {
    let name = if config.sandwich_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    format!("model.layers.{layer}.{name}.weight")
}

/// With sandwich norms: the tensor of the norm of attention's output, (hidden).
pub fn attention_output_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

/// With sandwich norms: the tensor of the norm of the feed-forward's output, (hidden).
pub fn feed_forward_output_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_feedforward_layernorm.weight")
}

/// With head norms: the tensor of the norm of each query head, (head_dim).
pub fn query_norm(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.q_norm.weight")
}

/// With head norms: the tensor of the norm of each key head, (head_dim).
pub fn key_norm(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.k_norm.weight")
}

/// A linear module of a layer, with its weight's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    pub module: String,
    pub outputs: usize,
    pub inputs: usize,
}

/// The first linears of a layer are attention's: q, k, v, o.
pub const ATTENTION_LINEARS: usize = 4;
/// Linears of an expert, or of a dense feed-forward.
pub const EXPERT_LINEARS: usize = 3;

/// All linears of a layer: q, k, v, o, then the feed-forward's (dense: gate, up, down; a mixture: the router, then
/// w1, w2, w3 of each expert). Biases are not linears: an adapter has none.
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
    let width = config.feed_forward_width(layer);
    match config.mixture_of(layer) {
        None => linears.extend([
            linear(gate_proj(layer), width, hidden),
            linear(up_proj(layer), width, hidden),
            linear(down_proj(layer), hidden, width),
        ]),
        Some(mixture) => {
            linears.push(linear(router(config, layer), mixture.experts, hidden));
            for index in 0..mixture.experts {
                linears.push(linear(expert(config, layer, index, ExpertPart::W1), width, hidden));
                linears.push(linear(expert(config, layer, index, ExpertPart::W2), hidden, width));
                linears.push(linear(expert(config, layer, index, ExpertPart::W3), width, hidden));
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
        tensors.extend(vectors(config, layer));
        let linears = linears(config, layer).into_iter();
        tensors.extend(linears.map(|linear| (weight(&linear.module), vec![linear.outputs, linear.inputs])));
    }
    tensors.push((NORM.to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push((HEAD.to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// How many weights a model has, and how many of them a token goes through: of a mixture's experts those that the router
/// takes, all of the rest. Embedding and head are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub all: u64,
    pub active: u64,
}

/// Counted from the shapes that the configuration expects.
pub fn parameters(config: &ModelConfig) -> Parameters {
    let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let [mut shared, mut experts] = [0; 2];
    for (name, shape) in tensors(config) {
        *if name.contains(".experts.") { &mut experts } else { &mut shared } += size(&shape);
    }
    let used = config.mixture.map_or(experts, |mixture| experts / mixture.experts as u64 * mixture.top_k as u64);
    Parameters { all: shared + experts, active: shared + used }
}

/// The norms and biases of a layer.
pub fn vectors(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let mut vectors = vec![(input_norm(layer), vec![hidden]), (feed_forward_norm(config, layer), vec![hidden])];
    if config.sandwich_norms {
        vectors.push((attention_output_norm(layer), vec![hidden]));
        vectors.push((feed_forward_output_norm(layer), vec![hidden]));
    }
    if config.head_norms {
        vectors.push((query_norm(layer), vec![head_dim]));
        vectors.push((key_norm(layer), vec![head_dim]));
    }
    if config.attention_bias {
        let keys = config.num_key_value_heads * head_dim;
        vectors.push((bias(&q_proj(layer)), vec![config.num_attention_heads * head_dim]));
        vectors.push((bias(&k_proj(layer)), vec![keys]));
        vectors.push((bias(&v_proj(layer)), vec![keys]));
    }
    vectors
}

/// Checks that `checkpoint` holds every expected tensor in its shape, and none that would be left unused silently.
pub fn check(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    let mut expected = std::collections::HashSet::new();
    for (name, shape) in tensors(config) {
        checkpoint.check(&name, &shape)?;
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
