//! The decoder as an engine sees it: tokens walk through the layers, and a few numbers come out.
//!
//! Two homes implement it: [`crate::model::cpu`] on kernels of our own, and [`crate::model::candle`] on candle's tensors
//! for cards and as the second opinion. They share configuration, layout, weights and adapter; each is the other's test.

use anyhow::Result;

use super::adapter::Adapter;
use super::config::ModelConfig;
use super::packed::Packed;
use crate::memory::Memory;

/// The probability of `token` after the token at `row` is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub row: usize,
    pub token: u32,
}

/// What the head says of one wanted token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural log, softmax over the whole vocabulary in f32 with an f64 sum.
    pub log_probability: f64,
    /// The token has the largest logit (the first of equals).
    pub is_greedy: bool,
}

/// What a walk does with keys and values beyond its own rows. `P` is one sequence's past ([`Decoder::Past`]).
pub enum Pasts<'a, P> {
    /// Nothing is kept: scoring.
    None,
    /// The chain of segments that ends in `leaves[i]` is left in `pasts[i]`, which is empty: prompts being read.
    Begin { pasts: &'a mut [P], leaves: &'a [usize] },
    /// Segment i continues `pasts[i]` and is appended to it: a step of generation.
    Continue(&'a mut [P]),
}

/// Bytes a decoder needs, for planning within a memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Held as long as the decoder is: weights in memory, buffers of fixed size.
    pub fixed: usize,
    /// Per token of a wave.
    pub per_token: usize,
    /// Per token that a past has room for.
    pub per_past_token: usize,
}

/// A loaded model.
pub trait Decoder: Send + Sync {
    /// Hidden states of a wave's tokens between two layers.
    type Hidden: Send;
    /// One sequence's keys and values in all layers.
    type Past: Send;

    fn config(&self) -> &ModelConfig;

    fn footprint(&self) -> Footprint;

    /// What is taken now of the memory that tokens are in, as the system counts it; `None` where it does not.
    fn held(&self) -> Option<Memory> {
        Memory::resident()
    }

    /// Puts `adapter` beside the weights (replacing an earlier one). A pair whose module or shape the model does not
    /// have is an error that names it.
    fn set_adapter(&mut self, adapter: &Adapter) -> Result<()>;

    /// An empty past with room for `capacity` tokens.
    fn past(&self, capacity: usize) -> Result<Self::Past>;

    /// Tokens whose keys and values a past holds.
    fn past_len(&self, past: &Self::Past) -> usize;

    /// The hidden states before the first layer. A token outside the vocabulary is an error.
    fn embed(&self, packed: &Packed) -> Result<Self::Hidden>;

    /// Layer `index` over all tokens, in place. The last one may leave those as they are that nobody reads
    /// ([`Packed::read`]).
    fn layer(
        &self,
        index: usize,
        hidden: &mut Self::Hidden,
        packed: &Packed,
        pasts: &mut Pasts<Self::Past>,
    ) -> Result<()>;

    /// Scores of the wanted tokens, in their order; a row wanted for several tokens is computed once. A token outside the
    /// vocabulary is an error.
    fn score(&self, hidden: &Self::Hidden, wanted: &[Wanted]) -> Result<Vec<TokenScore>>;

    /// The most probable next token after each of `rows`, the first of equals.
    fn greedy(&self, hidden: &Self::Hidden, rows: &[usize]) -> Result<Vec<u32>>;

    /// All logits after each of `rows`, for who chooses the next token otherwise; each is as long as the vocabulary, so a
    /// few rows at a time.
    fn logits(&self, hidden: &Self::Hidden, rows: &[usize]) -> Result<Vec<Vec<f32>>>;

    /// All layers, each visited once: the hidden states after the last, before the final norm, of the rows that are read. Runs
    /// on one of rayon's threads, so that a product need not wake the first of those that share it.
    fn walk(&self, packed: &Packed, pasts: Pasts<Self::Past>) -> Result<Self::Hidden> {
        rayon::scope(|_| {
            let mut pasts = pasts;
            let mut hidden = self.embed(packed)?;
            for index in 0..self.config().num_hidden_layers {
                self.layer(index, &mut hidden, packed, &mut pasts)?;
            }
            Ok(hidden)
        })
    }
}
