//! Buffers that every layer uses again: nothing is allocated while tokens walk.

use super::routing::Routed;
use crate::kernel::Lines;

/// Rows that a thread takes at a time where a row is little work.
pub const ROWS_A_TASK: usize = 16;

/// Buffers grow to the largest use and stay.
#[derive(Default)]
pub struct Workspace<E> {
    /// Keys and values of the whole wave in one layer, head by head: (kv_heads, tokens, head_dim).
    pub keys: Lines<E>,
    pub values: Lines<E>,

    // Of the tokens in hand:
    pub normed: Lines<E>,       // (rows, hidden)
    pub normed_f32: Lines<f32>, // (rows, hidden), what a router reads
    pub queries: Lines<E>,      // (kv_heads, rows, group, head_dim)
    pub mixed: Lines<E>,        // (rows, heads, head_dim)
    pub gathered: Lines<E>,     // (rows of an expert, hidden)
    pub few: Lines<f32>,        // (rows that are read after the last layer, hidden)
    pub gated: Lines<E>,        // (rows, intermediate)
    pub low: Low<E>,            // of an adapter's pairs
    pub low_f32: Low<f32>,      // the same for a router
    pub logits: Lines<f32>,     // (rows, experts)
    pub update: Lines<f32>,     // (rows, hidden), where it is normed before it is added

    /// By expert, a dense feed-forward being one: what its gate and its up return, where a training step keeps them.
    pub inner: Option<Vec<GateUp>>,

    /// By chunk of the wave, where a layer's experts are in several groups.
    inputs: Vec<ExpertInput<E>>,
}

/// What gate and up return for an expert's rows, (rows, intermediate) each.
pub type GateUp = [Lines<f32>; 2];

/// What a feed-forward reads of the rows in hand.
#[derive(Default)]
pub struct ExpertInput<E> {
    pub normed: Lines<E>, // (rows, hidden)
    /// By expert; empty where there are none.
    pub routed: Vec<Routed>,
}

impl<E: Default> Workspace<E> {
    /// The input of a chunk as it was kept; of none, a buffer for it.
    pub fn take_input(&mut self, chunk: Option<usize>) -> ExpertInput<E> {
        let Some(chunk) = chunk else {
            return ExpertInput { normed: std::mem::take(&mut self.normed), routed: Vec::new() };
        };
        if self.inputs.len() <= chunk {
            self.inputs.resize_with(chunk + 1, ExpertInput::default);
        }
        std::mem::take(&mut self.inputs[chunk])
    }

    /// Keeps it for the experts of the next group; of no chunk, only the buffer.
    pub fn keep_input(&mut self, chunk: Option<usize>, input: ExpertInput<E>) {
        match chunk {
            Some(chunk) => self.inputs[chunk] = input,
            None => self.normed = input.normed,
        }
    }
}

/// What LoRA pairs make of their input.
#[derive(Default)]
pub struct Low<E> {
    pub u: Lines<E>,       // (rows, ranks)
    pub dropped: Lines<E>, // (rows, inputs)
}
