//! The feed-forward of a wave's rows: one gated MLP, or a mixture of them of which each token uses a few.
//!
//! A streamed layer's experts may come in several groups. All of them read what the first group normed and routed, and the
//! order of experts is the order of groups: the bits are those of a whole layer.

use rayon::prelude::*;

use super::CpuDecoder;
use super::layer::Visit;
use super::linear::{LowRank, Span, add_to, spans_of};
use super::routing::{Routed, choose};
use super::workspace::{ExpertInput, GateUp, Low, ROWS_A_TASK, Workspace};
use crate::kernel::product::{Block, Kernels, Rows, Term};
use crate::kernel::{Element, Lines, Matrix, Shared, rows};
use crate::model::config::{Activation, Mixture};
use crate::model::names::{ATTENTION_LINEARS, EXPERT_LINEARS};

/// Places in a layer's linears: the first after attention's, which is a mixture's router.
const FIRST: usize = ATTENTION_LINEARS;
pub(super) const ROUTER: usize = FIRST;
pub(super) const DENSE: Places = Places { w1: FIRST, w2: FIRST + 2, w3: FIRST + 1 };

#[derive(Clone, Copy)]
pub(super) struct Places {
    pub w1: usize,
    pub w2: usize,
    pub w3: usize,
}

pub(super) fn places_of_expert(expert: usize) -> Places {
    let first = ROUTER + 1 + EXPERT_LINEARS * expert;
    Places { w1: first, w2: first + 1, w3: first + 2 }
}

/// What the gated product of an MLP is made with.
struct Gate<'a, E> {
    kernels: &'a Kernels<E>,
    activation: Activation,
    inner: usize,
}

impl<E: Element> CpuDecoder<E> {
    /// The visited group's part of the feed-forward of some rows, added to their states. `chunk`: which rows of the wave
    /// they are, where the layer is cut.
    pub(super) fn feed_forward(
        &self,
        visit: &Visit,
        chunk: Option<usize>,
        states: &mut [f32],
        space: &mut Workspace<E>,
    ) {
        if visit.places.end <= FIRST {
            return;
        }
        let mixture = self.config.mixture_of(visit.index);
        let chunk = chunk.filter(|_| mixture.is_some()); // a dense one is never cut itself
        let mut input = space.take_input(chunk);
        if visit.places.contains(&FIRST) {
            self.norm_rows(states, &visit.layer.feed_forward_norm, input.normed.take(states.len()));
            input.routed = mixture.map_or(Vec::new(), |mixture| self.route(visit, mixture, states, space));
        }
        let mut update = std::mem::take(&mut space.update);
        let norm = visit.layer.output_norms.as_ref().map(|[_, norm]| &norm[..]);
        self.add_update(states, norm, &mut update, |out| match mixture {
            None => self.dense(visit, &input.normed, out, space),
            Some(_) => self.mixture(visit, &input, out, space),
        });
        space.update = update;
        space.keep_input(chunk, input);
    }

    pub(super) fn dense(&self, visit: &Visit, normed: &[E], out: &mut [f32], space: &mut Workspace<E>) {
        let Workspace { gated, low, inner, .. } = space;
        let count = out.len() / self.width();
        let x = Rows { numbers: &normed[..out.len()], step: self.width() };
        let [inputs, output] = &visit.layer.pairs.experts[0];
        let weights = [DENSE.w1, DENSE.w3].map(|place| visit.weights.matrix(place));
        let inner = inner.as_mut().map(|inner| &mut inner[0]);
        self.gate(visit).fill((x, count, visit.spans), inputs, weights, low, (gated, inner));
        let gated = self.gated(visit, gated, count);
        let low = output.project(&self.kernels, gated, count, visit.spans, low);
        let terms = output.terms(0, gated, visit.weights.matrix(DENSE.w2), low);
        add_to(&self.kernels, count, &terms, out, self.width());
    }

    /// Each expert makes one product over the tokens that chose it; a token's outputs are added in the order of its
    /// experts (Mixtral of Experts, arXiv 2401.04088, section 2.1).
    pub(super) fn mixture(&self, visit: &Visit, input: &ExpertInput<E>, out: &mut [f32], space: &mut Workspace<E>) {
        let (width, normed) = (self.width(), &input.normed);
        let Workspace { gathered, gated, low, inner, .. } = space;
        let visited = |expert: usize| visit.places.contains(&places_of_expert(expert).w1);
        let experts = input.routed.iter().enumerate();
        for (expert, chosen) in experts.filter(|(expert, chosen)| visited(*expert) && !chosen.rows.is_empty()) {
            let count = chosen.rows.len();
            let gathered = gathered.take(count * width);
            let copies = gathered.par_chunks_mut(width).zip(&chosen.rows).with_min_len(ROWS_A_TASK);
            copies.for_each(|(to, &row)| to.copy_from_slice(&normed[row * width..(row + 1) * width]));
            let x = Rows { numbers: &gathered[..], step: width };
            let places = places_of_expert(expert);
            let [inputs, output] = &visit.layer.pairs.experts[expert];
            let weights = [places.w1, places.w3].map(|place| visit.weights.matrix(place));
            let spans = spans_of(visit.spans, &chosen.rows);
            let inner = inner.as_mut().map(|inner| &mut inner[expert]);
            self.gate(visit).fill((x, count, &spans), inputs, weights, low, (gated, inner));
            let gated = self.gated(visit, gated, count);
            let low = output.project(&self.kernels, gated, count, &spans, low);
            let terms = output.terms(0, gated, visit.weights.matrix(places.w2), low);
            self.scatter(&terms, chosen, out);
        }
    }

    /// Adds an expert's output to the rows it is for, by their weights.
    fn scatter(&self, terms: &[Term<E>], chosen: &Routed, out: &mut [f32]) {
        let width = self.width();
        let out = Shared::new(out);
        self.kernels.multiply(chosen.rows.len(), [terms], |block: Block<1>| {
            for (index, sums) in block.each_row(0) {
                let start = chosen.rows[index] * width + block.columns.start;
                // SAFETY: a token chooses an expert once, and every column is finished once.
                let out = unsafe { out.part(start..start + sums.len()) };
                rows::add_scaled(self.kernels.isa, sums, chosen.weights[index], out);
            }
        });
    }

    fn gate(&self, visit: &Visit) -> Gate<'_, E> {
        let inner = self.config.feed_forward_width(visit.index);
        Gate { kernels: &self.kernels, activation: self.config.activation, inner }
    }

    fn gated<'a>(&self, visit: &Visit, gated: &'a [E], count: usize) -> Rows<'a, E> {
        let inner = self.config.feed_forward_width(visit.index);
        Rows { numbers: &gated[..count * inner], step: inner }
    }

    /// Which tokens each expert gets. The router works in f32.
    pub(super) fn route(
        &self,
        visit: &Visit,
        mixture: Mixture,
        states: &[f32],
        space: &mut Workspace<E>,
    ) -> Vec<Routed> {
        let (width, experts) = (self.width(), mixture.experts);
        let count = states.len() / width;
        let Workspace { normed_f32, low_f32, logits, .. } = space;
        let normed = normed_f32.take(states.len());
        self.norm_rows(states, &visit.layer.feed_forward_norm, normed);
        let x = Rows { numbers: &normed[..], step: width };
        let pairs = &visit.layer.pairs.router;
        let low = pairs.project(&self.f32_kernels, x, count, visit.spans, low_f32);
        let terms = pairs.terms(0, x, visit.weights.matrix(ROUTER), low);
        let logits = logits.take(count * experts);
        logits.fill(0.0);
        add_to(&self.f32_kernels, count, &terms, logits, experts);
        let mut routed = vec![Routed::default(); experts];
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            for (expert, weight) in choose(logits, mixture) {
                routed[expert].rows.push(row);
                routed[expert].weights.push(weight);
            }
        }
        routed
    }
}

impl<E: Element> Gate<'_, E> {
    /// `activation(w1 x) * w3 x` of `count` rows: (count, intermediate). Both products are left in `kept`, if there is one.
    fn fill(
        &self,
        (x, count, spans): (Rows<E>, usize, &[Span]),
        pairs: &LowRank,
        [w1, w3]: [Matrix; 2],
        low: &mut Low<E>,
        (gated, kept): (&mut Lines<E>, Option<&mut GateUp>),
    ) {
        let low = pairs.project(self.kernels, x, count, spans, low);
        let (gate, up) = (pairs.terms(0, x, w1, low), pairs.terms(1, x, w3, low));
        let (inner, isa) = (self.inner, self.kernels.isa);
        let out = Shared::new(gated.take(count * inner));
        let kept = kept.map(|kept| kept.each_mut().map(|numbers| Shared::new(numbers.take(count * inner))));
        self.kernels.multiply(count, [&gate, &up], |Block { rows, columns, sums: [gate, up] }: Block<2>| {
            let first = rows.start * inner + columns.start;
            for (kept, sums) in kept.iter().flatten().zip([&gate, &up]) {
                // SAFETY: every row and column is finished once.
                rows::put_block(isa, sums, unsafe { kept.strip(first, inner, rows.len(), columns.len()) });
            }
            // SAFETY: as above.
            let out = unsafe { out.strip(first, inner, rows.len(), columns.len()) };
            match self.activation {
                Activation::Silu => rows::silu_block(isa, gate, up, out),
                Activation::GeluTanh => rows::gelu_block(isa, gate, up, out),
            }
        });
    }
}
