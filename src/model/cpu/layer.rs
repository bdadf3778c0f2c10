//! One layer: its small tensors and LoRA pairs, and the way a wave takes through it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use rayon::prelude::*;

use super::linear::{LowRank, Span};
use super::rotary::Angles;
use super::weights::LayerWeights;
use super::workspace::{ROWS_A_TASK, Workspace};
use super::{CpuDecoder, Hidden, Past};
use crate::kernel::{Element, Lines, rows};
use crate::model::adapter::LoraPair;
use crate::model::config::ModelConfig;
use crate::model::decoder::Pasts;
use crate::model::names::{ATTENTION_LINEARS, EXPERT_LINEARS};
use crate::model::packed::Packed;

/// What a layer holds in f32, and what an adapter puts beside its linears.
pub struct Layer {
    pub input_norm: Vec<f32>,        // (hidden)
    pub feed_forward_norm: Vec<f32>, // (hidden)
    /// Norms of what attention and the feed-forward return, before it is added.
    pub output_norms: Option<[Vec<f32>; 2]>, // (hidden) each
    /// Norms of each query's and key's heads.
    pub head_norms: Option<[Vec<f32>; 2]>, // (head_dim) each
    /// Of q, k and v.
    pub biases: Option<[Vec<f32>; 3]>,
    pub pairs: Pairs,
}

/// The LoRA pairs of a layer.
#[derive(Default)]
pub struct Pairs {
    /// Of q, k and v.
    pub inputs: LowRank,
    pub output: LowRank,
    pub router: LowRank,
    /// Of each expert's w1 and w3, and of its w2; a dense feed-forward is one expert.
    pub experts: Vec<[LowRank; 2]>,
}

impl Pairs {
    /// A layer without an adapter.
    pub fn none(config: &ModelConfig, layer: usize) -> Pairs {
        let experts = config.mixture_of(layer).map_or(1, |mixture| mixture.experts);
        Pairs { experts: (0..experts).map(|_| Default::default()).collect(), ..Pairs::default() }
    }

    /// Bytes of their numbers.
    pub fn bytes(&self) -> usize {
        let experts = self.experts.iter().flatten();
        [&self.inputs, &self.output, &self.router].into_iter().chain(experts).map(LowRank::bytes).sum()
    }

    /// `linears`: shapes and pairs in the order of `names::linears`.
    pub fn new<E: Element>(linears: &[([usize; 2], Option<&LoraPair>)]) -> Result<Pairs> {
        let (attention, rest) = linears.split_at(ATTENTION_LINEARS);
        let (inputs, output) = attention.split_at(ATTENTION_LINEARS - 1);
        let mut pairs =
            Pairs { inputs: LowRank::new::<E>(inputs)?, output: LowRank::new::<E>(output)?, ..Pairs::default() };
        if let [gate, up, down] = rest {
            pairs.experts.push([LowRank::new::<E>(&[*gate, *up])?, LowRank::new::<E>(&[*down])?]);
            return Ok(pairs);
        }
        let (router, experts) = rest.split_at(1);
        pairs.router = LowRank::new::<f32>(router)?;
        for expert in experts.chunks_exact(EXPERT_LINEARS) {
            pairs.experts.push([LowRank::new::<E>(&[expert[0], expert[2]])?, LowRank::new::<E>(&expert[1..2])?]);
        }
        Ok(pairs)
    }
}

/// A layer while a wave is in it.
pub struct Visit<'a> {
    pub index: usize,
    pub layer: &'a Layer,
    /// Which of the layer's linears `weights` has.
    pub places: Range<usize>,
    pub weights: LayerWeights<'a>,
    pub packed: &'a Packed,
    /// The micro-batches of a training step; none when scoring.
    pub spans: &'a [Span],
    pub angles: Arc<Angles>,
}

impl Visit<'_> {
    fn has_attention(&self) -> bool {
        self.places.start == 0
    }
}

impl<E: Element> CpuDecoder<E> {
    /// Takes all tokens through layer `index`.
    pub(super) fn visit(
        &self,
        index: usize,
        hidden: &mut Hidden,
        packed: &Packed,
        pasts: &mut Pasts<Past<E>>,
    ) -> Result<()> {
        let positions = packed.positions();
        let groups = self.weights.groups().of(index).len();
        self.workspaces.with(|space| {
            for group in 0..groups {
                let visited = self.weights.visit(index, group)?;
                let visit = Visit {
                    index,
                    layer: &self.layers[index],
                    places: visited.places(),
                    weights: visited.matrices()?,
                    packed,
                    spans: &[],
                    angles: self.rotary.angles(index, positions),
                };
                self.pass(&visit, groups > 1, hidden, pasts, space);
            }
            Ok(())
        })
    }

    /// Takes all tokens through a group of a layer, which may be all of it. With `is_cut` what its experts read is kept for
    /// those of the next.
    fn pass(
        &self,
        visit: &Visit,
        is_cut: bool,
        hidden: &mut Hidden,
        pasts: &mut Pasts<Past<E>>,
        space: &mut Workspace<E>,
    ) {
        let tokens = visit.packed.len();
        for (chunk, first) in (0..tokens).step_by(self.chunk).enumerate() {
            let rows = first..tokens.min(first + self.chunk);
            let states = &mut hidden.states[rows.start * self.width()..rows.end * self.width()];
            let chunk = is_cut.then_some(chunk);
            if visit.has_attention() {
                self.mix_heads(visit, rows.clone(), states, pasts, space);
            }
            match self.read(visit, &rows) {
                None => self.finish(visit, chunk, states, space),
                Some(read) => self.finish_some(visit, chunk, states, (rows.start, read), space),
            }
        }
        if visit.has_attention() {
            self.begin_pasts(visit, pasts, space);
        }
    }

    /// Those of `rows` whose states are read after this layer; `None`: all.
    pub(super) fn read<'a>(&self, visit: &Visit<'a>, rows: &Range<usize>) -> Option<&'a [usize]> {
        let is_last = visit.index + 1 == self.config.num_hidden_layers;
        if is_last { visit.packed.read_of(rows) } else { None }
    }

    /// What follows the heads of some rows, added to their states.
    fn finish(&self, visit: &Visit, chunk: Option<usize>, states: &mut [f32], space: &mut Workspace<E>) {
        if visit.has_attention() {
            self.add_heads(visit, states, space);
        }
        self.feed_forward(visit, chunk, states, space);
    }

    /// The same of those in `read` alone; the first of the rows has number `first`.
    fn finish_some(
        &self,
        visit: &Visit,
        chunk: Option<usize>,
        states: &mut [f32],
        (first, read): (usize, &[usize]),
        space: &mut Workspace<E>,
    ) {
        let (width, inner) = (self.width(), self.config.num_attention_heads * self.config.head_dim);
        let rows = || read.iter().map(|row| row - first);
        let mut few = std::mem::take(&mut space.few);
        for (state, row) in few.take(read.len() * width).chunks_exact_mut(width).zip(rows()) {
            state.copy_from_slice(&states[row * width..(row + 1) * width]);
        }
        for (at, row) in rows().enumerate().filter(|_| visit.has_attention()) {
            space.mixed.copy_within(row * inner..(row + 1) * inner, at * inner);
        }
        if !read.is_empty() {
            self.finish(visit, chunk, &mut few[..read.len() * width], space);
        }
        for (state, row) in few.chunks_exact(width).zip(rows()) {
            states[row * width..(row + 1) * width].copy_from_slice(state);
        }
        space.few = few;
    }

    /// Numbers of a hidden state.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Norms each hidden state into `out`.
    pub(super) fn norm_rows<T: Element>(&self, states: &[f32], weight: &[f32], out: &mut [T]) {
        let (width, eps) = (self.width(), self.config.rms_norm_eps);
        let rows = out.par_chunks_mut(width).zip(states.par_chunks(width)).with_min_len(ROWS_A_TASK);
        rows.for_each(|(out, state)| rows::rms_norm(self.kernels.isa, state, weight, eps, out));
    }

    /// Lets `add` add what a part of the layer returns to the hidden states. With a norm (Gemma) it is gathered, normed, and
    /// added then.
    pub(super) fn add_update(
        &self,
        states: &mut [f32],
        norm: Option<&[f32]>,
        update: &mut Lines<f32>,
        add: impl FnOnce(&mut [f32]),
    ) {
        let Some(norm) = norm else { return add(states) };
        let update = update.take(states.len());
        update.fill(0.0);
        add(update);
        let (width, eps) = (self.width(), self.config.rms_norm_eps);
        let rows = states.par_chunks_mut(width).zip(update.par_chunks_mut(width)).with_min_len(ROWS_A_TASK);
        rows.for_each(|(state, update)| {
            rows::rms_norm_in_place(self.kernels.isa, update, norm, eps);
            rows::add(self.kernels.isa, update, state);
        });
    }
}
