//! Buffers that every layer uses again: nothing is allocated while tokens walk.

/// Buffers grow to the largest use and stay.
#[derive(Default)]
pub struct Workspace<E> {
    /// Keys and values of the whole wave in one layer, head by head: (kv_heads, tokens, head_dim).
    pub keys: Vec<E>,
    pub values: Vec<E>,

    // Of the tokens in hand:
    pub normed: Vec<E>,       // (rows, hidden)
    pub normed_f32: Vec<f32>, // (rows, hidden), what a router reads
    pub projected: Vec<f32>,  // (rows, heads + 2 kv_heads, head_dim)
    pub queries: Vec<E>,      // (kv_heads, rows, group, head_dim)
    pub mixed: Vec<E>,        // (rows, heads, head_dim)
    pub gathered: Vec<E>,     // (rows of an expert, hidden)
    pub gated: Vec<E>,        // (rows, intermediate)
    pub low: Vec<E>,          // (rows, ranks of an adapter)
    pub low_f32: Vec<f32>,    // the same for a router
    pub logits: Vec<f32>,     // (rows, experts)
    pub update: Vec<f32>,     // (rows, hidden), where it is normed before it is added
}

/// The first `count` numbers of a buffer, which grows if it must. What they hold is of an earlier use.
pub fn take<T: Copy + Default>(buffer: &mut Vec<T>, count: usize) -> &mut [T] {
    if buffer.len() < count {
        buffer.resize(count, T::default());
    }
    &mut buffer[..count]
}
