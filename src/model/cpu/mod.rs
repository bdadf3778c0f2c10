//! The decoder on our own kernels: the home for processors.
//!
//! A layer takes a wave's tokens some thousand at a time: their keys and values join the wave's, their queries see what
//! stands before them (a trie is laid out ancestors first), the feed-forward follows at once. So the only things that
//! grow with a wave are hidden states and one layer's keys and values. Weights are read where they lie, decoded into
//! panels as they are used, and never held twice.
//!
//! `E` is what products are made of: bf16 (with f32 sums and an f32 residual), or f32 for parity and for f16 weights.
//! A token's numbers have the same bits whatever the other tokens, threads, waves or budget (`tests/cpu.rs`).

mod attention;
mod backward;
mod decoder;
mod feed_forward;
mod groups;
mod head;
mod layer;
mod linear;
mod load;
mod past;
mod rotary;
mod routing;
mod weights;
mod workspace;

use std::path::PathBuf;

pub use backward::{input_bytes, left_bytes, walk_bytes};
pub use load::LoadOptions;
pub use past::Past;

use crate::kernel::product::Kernels;
use crate::kernel::{Element, Pool};
use crate::model::config::ModelConfig;
use attention::Path;
use layer::Layer;
use rotary::Rotary;
use weights::Weights;
use workspace::Workspace;

/// A loaded model.
pub struct CpuDecoder<E: Element> {
    config: ModelConfig,
    kernels: Kernels<E>,
    /// For routers, which are computed in f32 whatever the rest is.
    f32_kernels: Kernels<f32>,
    weights: Weights,
    /// Of the layers' matrices as they are stored.
    layers_bytes: usize,
    layers: Vec<Layer>,
    /// Which pair of the adapter sits on each linear, by layer and place.
    adapted: Vec<Vec<Option<usize>>>,
    norm: Vec<f32>, // (hidden)
    rotary: Rotary,
    /// Tokens that a layer takes at a time.
    chunk: usize,
    paths: Pool<Path<E>>,
    workspaces: Pool<Workspace<E>>,
    /// The folder for layers' inputs that training spills.
    spill: Option<PathBuf>,
}

/// Hidden states of a wave.
pub struct Hidden {
    states: Vec<f32>, // (tokens, hidden)
}

impl<E: Element> CpuDecoder<E> {
    /// Whether layers are read when they are visited, because they do not fit into memory.
    pub fn is_streamed(&self) -> bool {
        self.weights.are_streamed()
    }

    /// Groups that a layer is taken in, one after the other: more than one where two layers at once do not fit into memory.
    pub fn groups_of_a_layer(&self) -> usize {
        self.weights.groups().most()
    }
}
