//! What training takes beside the frozen weights, by the same shapes that the buffers have.

use super::{PORTION, head};
use crate::kernel::product::padded;
use crate::kernel::{Element, PANEL_WIDTH};
use crate::model::config::ModelConfig;
use crate::model::cpu::linear::UNIT;
use crate::model::training::Keep;

/// A thread's buffers of a product: two runs of sums, panels, rows being decoded.
const THREAD: usize = 4 << 20;
/// What a walk keeps of a token beside its states: ids, targets, where it was routed.
const TOKEN: usize = 64;

/// Bytes of a walk of so many `tokens`, `largest` in one micro-batch.
pub fn walk_bytes<E: Element>(config: &ModelConfig, tokens: usize, largest: usize, threads: usize, keep: Keep) -> u64 {
    let state = 4 * config.hidden_size;
    let portion = tokens.min(PORTION.max(largest));
    // A file's inputs are read again a portion at a time.
    let read_again = if keep == Keep::SpilledInputs { portion * state } else { 0 };
    let bytes = left_bytes::<E>(config, tokens, keep) as usize
        + read_again
        + 2 * tokens * state // the states and their gradients
        + tokens * TOKEN
        + portion * (attention::<E>(config) + feed_forward::<E>(config) + state)
        + portion.min(UNIT) * expert::<E>(config)
        + head::bytes::<E>(config, tokens)
        + threads * (THREAD + panels::<E>(config, portion.min(largest)));
    bytes as u64
}

/// Bytes of all layers' inputs.
pub fn input_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    (4 * config.hidden_size * config.num_hidden_layers * tokens) as u64
}

/// Bytes in memory of what the way forward leaves behind of `tokens`.
pub fn left_bytes<E: Element>(config: &ModelConfig, tokens: usize, keep: Keep) -> u64 {
    let activations = |layer| (tokens * activations::<E>(config, layer)) as u64;
    match keep {
        Keep::SpilledInputs => 0,
        Keep::Inputs => input_bytes(config, tokens),
        Keep::Activations => input_bytes(config, tokens) + (0..config.num_hidden_layers).map(activations).sum::<u64>(),
    }
}

/// A token's activations in a layer, see [`super::kept::Activations`].
fn activations<E: Element>(config: &ModelConfig, layer: usize) -> usize {
    let (heads, step) = (config.num_attention_heads, padded::<E>(config.head_dim));
    let attention = (heads + 2 * config.num_key_value_heads) * step + heads * config.head_dim;
    let experts = config.mixture_of(layer).map_or(1, |mixture| mixture.top_k);
    size_of::<E>() * attention + 4 * (config.hidden_size + 2 * experts * config.feed_forward_width(layer))
}

/// A token in attention, both ways.
fn attention<E: Element>(config: &ModelConfig) -> usize {
    let (width, hidden, head_dim) = (size_of::<E>(), config.hidden_size, config.head_dim);
    let (heads, all) = (config.num_attention_heads, config.num_attention_heads + 2 * config.num_key_value_heads);
    let step = padded::<E>(head_dim);
    let before = if config.head_norms { 4 * heads * head_dim } else { 0 };
    let forward = width * hidden + width * all * step + width * heads * head_dim;
    let backward =
        width * (hidden + heads * step + all * head_dim) + 4 * (2 * hidden + (heads + all) * head_dim) + before;
    forward + backward
}

/// A token around the experts, or around the dense feed-forward.
fn feed_forward<E: Element>(config: &ModelConfig) -> usize {
    let (width, hidden) = (size_of::<E>(), config.hidden_size);
    let routed = config.mixture.map_or(0, |mixture| 4 * hidden + 8 * mixture.experts + 64 * mixture.top_k);
    let sandwich = if config.sandwich_norms { 12 * hidden } else { 0 };
    let forward = width * (hidden + config.widest_expert()); // an expert takes its tokens at once, and may get them all
    routed + sandwich + forward + width * hidden + 4 * hidden
}

/// A row inside an expert on the way back.
fn expert<E: Element>(config: &ModelConfig) -> usize {
    let (width, inner) = (size_of::<E>(), config.widest_expert());
    2 * width * config.hidden_size + 2 * 4 * inner + 3 * width * inner + 4 * inner / PANEL_WIDTH
}

/// A worker's panels of one dialogue and key-value head.
fn panels<E: Element>(config: &ModelConfig, longest: usize) -> usize {
    let group = config.num_attention_heads / config.num_key_value_heads;
    let number = padded::<E>(config.head_dim) + config.head_dim.next_multiple_of(PANEL_WIDTH);
    2 * longest * (1 + group) * number * size_of::<E>()
}
