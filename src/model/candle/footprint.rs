//! What training and scoring on candle's tensors take: on a card, and on the CPU.

use super::head::CHUNK;
use crate::model::config::ModelConfig;
use crate::model::names;

/// Numbers that autograd keeps for each that a layer computes: it holds the temporaries of norms, softmax and silu (measured
/// on the rehearsal without recomputation: 2.8).
const GRAPH: u64 = 3;
/// Rows of logits held at once: they and their gradient.
const HEAD_ROWS: u64 = 2 * CHUNK as u64;

/// Numbers of a token of a wave: those of the widest layer's products, each a tensor of its own.
pub fn token_numbers(config: &ModelConfig) -> usize {
    8 * config.hidden_size
        + 4 * config.num_attention_heads * config.head_dim
        + 4 * config.widest_feed_forward()
        + 256 * config.num_attention_heads
}

/// Bytes of a wave of `tokens`, of a decoded matrix and of some rows of logits. Numbers are f32.
pub fn wave_bytes(config: &ModelConfig, tokens: u64) -> u64 {
    4 * tokens * token_numbers(config) as u64 + decoded_bytes(config) + HEAD_ROWS * 4 * config.vocab_size as u64
}

/// Bytes of the largest matrix of any layer.
fn decoded_bytes(config: &ModelConfig) -> u64 {
    let linears = (0..config.num_hidden_layers).flat_map(|layer| names::linears(config, layer));
    4 * linears.map(|linear| (linear.inputs * linear.outputs) as u64).max().unwrap_or(0)
}

/// Bytes of one micro-batch of `tokens` in dialogues of at most `longest`: layer inputs (all activations where nothing is
/// recomputed), one layer's graph, a decoded matrix, some rows of logits. Numbers are f32.
pub fn batch_bytes(config: &ModelConfig, tokens: u64, longest: u64, recompute: bool) -> u64 {
    let activations = 4 * tokens * layer_activations(config, longest);
    let kept = kept_bytes(config, tokens, longest, recompute);
    kept + (GRAPH + 1) * activations + decoded_bytes(config) + HEAD_ROWS * 4 * config.vocab_size as u64
}

/// What of that every layer leaves for the way back.
pub fn kept_bytes(config: &ModelConfig, tokens: u64, longest: u64, recompute: bool) -> u64 {
    let a_layer = match recompute {
        true => 4 * tokens * config.hidden_size as u64,
        false => GRAPH * 4 * tokens * layer_activations(config, longest),
    };
    config.num_hidden_layers as u64 * a_layer
}

/// Numbers that one layer computes for a token of a dialogue of `length` tokens.
fn layer_activations(config: &ModelConfig, length: u64) -> u64 {
    let (hidden, heads) = (config.hidden_size as u64, config.num_attention_heads as u64);
    let queries = heads * config.head_dim as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    // Queries and keys before and after rotation, values; scores before and after softmax; what they gather.
    let attention = 3 * queries + 3 * keys + 2 * heads * length;
    // Gate, its silu, up, their product; input and output of each expert, in the layer that has most.
    let feed_forward = |layer| {
        let experts = config.mixture_of(layer).map_or(1, |mixture| mixture.top_k) as u64;
        experts * (4 * config.feed_forward_width(layer) as u64 + 2 * hidden)
    };
    let feed_forward = (0..config.num_hidden_layers).map(feed_forward).max().unwrap_or(0);
    // Two norms, two residual sums, the attention's output.
    attention + feed_forward + 5 * hidden
}
