//! Buffers that every layer uses again: nothing is allocated while tokens walk.

use super::routing::Routed;

/// Rows that a thread takes at a time where a row is little work.
pub const ROWS_A_TASK: usize = 16;

/// Buffers grow to the largest use and stay.
#[derive(Default)]
pub struct Workspace<E> {
    /// Keys and values of the whole wave in one layer, head by head: (kv_heads, tokens, head_dim).
    pub keys: Vec<E>,
    pub values: Vec<E>,

    // Of the tokens in hand:
    pub normed: Vec<E>,       // (rows, hidden)
    pub normed_f32: Vec<f32>, // (rows, hidden), what a router reads
    pub queries: Vec<E>,      // (kv_heads, rows, group, head_dim)
    pub mixed: Vec<E>,        // (rows, heads, head_dim)
    pub gathered: Vec<E>,     // (rows of an expert, hidden)
    pub gated: Vec<E>,        // (rows, intermediate)
    pub low: Low<E>,          // of an adapter's pairs
    pub low_f32: Low<f32>,    // the same for a router
    pub logits: Vec<f32>,     // (rows, experts)
    pub update: Vec<f32>,     // (rows, hidden), where it is normed before it is added

    /// By expert, a dense feed-forward being one: what its gate and its up return, where a training step keeps them.
    pub inner: Option<Vec<GateUp>>,

    /// By chunk of the wave, where a layer's experts are in several groups.
    inputs: Vec<ExpertInput<E>>,
}

/// What gate and up return for an expert's rows, (rows, intermediate) each.
pub type GateUp = [Vec<f32>; 2];

/// What a feed-forward reads of the rows in hand.
#[derive(Default)]
pub struct ExpertInput<E> {
    pub normed: Vec<E>, // (rows, hidden)
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
    pub u: Vec<E>,       // (rows, ranks)
    pub dropped: Vec<E>, // (rows, inputs)
}

/// The first `count` numbers of a buffer, which grows if it must. What they hold is of an earlier use.
pub fn take<T: Copy + Default>(buffer: &mut Vec<T>, count: usize) -> &mut [T] {
    if buffer.len() < count {
        // Of plain zeros, whose pages are made by the threads that write them.
        *buffer = vec![T::default(); count];
    }
    &mut buffer[..count]
}
