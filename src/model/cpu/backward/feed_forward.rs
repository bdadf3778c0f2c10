//! Back through the feed-forward. An expert's rows are recomputed and gone back through before the next expert's, so one
//! expert's inner rows are held.
//!
//! What a token's weight for an expert gains is the gradient of the output times the output; that is the gradient of the
//! inner row times the inner row, so the output is not computed again.

use std::ops::Range;

use rayon::prelude::*;

use super::Between;
use super::linear::{self, Seen};
use super::router;
use crate::kernel::backward::{self, Gate, Inner};
use crate::kernel::product::{Block, Rows, Term};
use crate::kernel::{Element, Isa, Lines, Matrix, PANEL_WIDTH, Shared, rows};
use crate::model::config::Activation;
use crate::model::cpu::CpuDecoder;
use crate::model::cpu::feed_forward::{DENSE, Places, places_of_expert};
use crate::model::cpu::layer::Visit;
use crate::model::cpu::linear::{LowRank, Span, runs, spans_of, within};
use crate::model::cpu::routing::Routed;
use crate::model::cpu::workspace::{GateUp, Low, ROWS_A_TASK, Workspace};
use crate::model::training::PairGradient;

/// Buffers of one walk.
#[derive(Default)]
pub struct Scratch<E> {
    outward: Lines<f32>,   // (rows, hidden): gradient of what the feed-forward returned
    of_output: Lines<E>,   // (rows, hidden): the same
    of_normed: Lines<f32>, // (rows, hidden): gradient of what it read
    expert: Expert<E>,
    router: router::Scratch,
}

/// Of one expert's rows.
#[derive(Default)]
struct Expert<E> {
    x: Lines<E>,          // (rows, hidden): what it reads
    g: Lines<E>,          // (rows, hidden): gradient of what it returns, before the rows' weights
    gate: Lines<f32>,     // (rows, intermediate)
    up: Lines<f32>,       // the same
    hidden: Lines<E>,     // the same
    of_gate: Lines<E>,    // the same
    of_up: Lines<E>,      // the same
    products: Lines<f32>, // (rows, panels)
    low: [Low<E>; 2],
    v: [Lines<E>; 2],
    pairs: linear::Scratch<E>,
}

/// A run of rows that goes through an expert.
#[derive(Clone, Copy)]
struct Through<'a> {
    places: Places,
    /// Of w1 and w3, and of w2.
    pairs: &'a [LowRank; 2],
    /// Which of the portion's they are.
    rows: &'a [usize],
    /// `None`: each counts once.
    weights: Option<&'a [f32]>,
    spans: &'a [Span],
    /// What gate and up returned for them, where it was kept.
    inner: Option<[&'a [f32]; 2]>,
}

impl<E: Element> CpuDecoder<E> {
    /// Turns the gradient of the states behind the feed-forward into that of the states before it, `middle`. `sums`: of
    /// the layer, by place.
    pub(super) fn feed_forward_back(
        &self,
        visit: &Visit,
        Between { middle, inner, portion }: Between,
        gradient: &mut [f32],
        (space, scratch): (&mut Workspace<E>, &mut Scratch<E>),
        sums: &mut [Option<PairGradient>],
    ) {
        self.outward(visit, middle, gradient, space, scratch);
        self.norm_rows(middle, &visit.layer.feed_forward_norm, space.normed.take(middle.len()));
        scratch.of_normed.take(middle.len()).fill(0.0);
        match self.config.mixture_of(visit.index) {
            None => self.dense_back(visit, inner, space, scratch, sums),
            Some(mixture) => {
                let routed = self.route(visit, mixture, middle, space);
                let of_weights = self.experts_back(visit, &routed, inner, space, scratch, sums);
                let logits = &space.logits[..visit.packed.len() * mixture.experts];
                let routes = router::Routes {
                    mixture,
                    logits,
                    routed: &routed,
                    of_weights: &of_weights,
                    balance_gradient: &portion.balance_gradient,
                };
                let of_normed = &mut scratch.of_normed[..middle.len()];
                self.router_back(visit, routes, &space.normed_f32, of_normed, &mut scratch.router, sums);
            }
        }
        let of_normed = &scratch.of_normed[..middle.len()];
        self.norm_back(middle, &visit.layer.feed_forward_norm, of_normed, gradient);
    }

    /// The gradient of what the feed-forward returned, rounded to what products are made of.
    fn outward(
        &self,
        visit: &Visit,
        middle: &[f32],
        gradient: &[f32],
        space: &mut Workspace<E>,
        scratch: &mut Scratch<E>,
    ) {
        let Some([_, norm]) = &visit.layer.output_norms else {
            self.rounded(gradient, &mut scratch.of_output);
            return;
        };
        let returned = self.feed_forward_returned(visit, middle, space);
        let outward = scratch.outward.take(middle.len());
        outward.fill(0.0);
        self.norm_back(&returned, norm, gradient, outward);
        self.rounded(outward, &mut scratch.of_output);
    }

    /// What the feed-forward of `middle` returned.
    fn feed_forward_returned(&self, visit: &Visit, middle: &[f32], space: &mut Workspace<E>) -> Vec<f32> {
        let mut returned = vec![0.0; middle.len()];
        let mut input = space.take_input(None);
        self.norm_rows(middle, &visit.layer.feed_forward_norm, input.normed.take(middle.len()));
        match self.config.mixture_of(visit.index) {
            None => self.dense(visit, &input.normed, &mut returned, space),
            Some(mixture) => {
                input.routed = self.route(visit, mixture, middle, space);
                self.mixture(visit, &input, &mut returned, space);
            }
        }
        space.keep_input(None, input);
        returned
    }

    fn dense_back(
        &self,
        visit: &Visit,
        inner: Option<&[GateUp]>,
        space: &Workspace<E>,
        scratch: &mut Scratch<E>,
        sums: &mut [Option<PairGradient>],
    ) {
        let width = self.width();
        let Scratch { of_output, of_normed, expert, .. } = scratch;
        let (places, pairs) = (DENSE, &visit.layer.pairs.experts[0]);
        for run in runs(visit.spans) {
            let rows_of = |numbers| Rows { numbers, step: width };
            let part = run.start * width..run.end * width;
            let x = rows_of(&space.normed[part.clone()]);
            let g = rows_of(&of_output[part]);
            let (rows, spans) = (run.clone().collect::<Vec<usize>>(), within(visit.spans, &run));
            let inner = inner.map(|inner| self.rows_of(&inner[0], &run, visit.index));
            let through = Through { places, pairs, rows: &rows, weights: None, spans: &spans, inner };
            self.expert_back(visit, through, (x, g), expert, sums);
            self.input_back(visit, through, x, expert, of_normed, sums);
        }
    }

    /// All experts; the gradients of the weights that each one's tokens give it.
    fn experts_back(
        &self,
        visit: &Visit,
        routed: &[Routed],
        inner: Option<&[GateUp]>,
        space: &Workspace<E>,
        scratch: &mut Scratch<E>,
        sums: &mut [Option<PairGradient>],
    ) -> Vec<Vec<f32>> {
        let width = self.width();
        let Scratch { of_output, of_normed, expert: work, .. } = scratch;
        let mut of_weights = vec![Vec::new(); routed.len()];
        for (expert, chosen) in routed.iter().enumerate() {
            let (pairs, spans) = (&visit.layer.pairs.experts[expert], spans_of(visit.spans, &chosen.rows));
            let places = places_of_expert(expert);
            for run in runs(&spans) {
                let (rows, spans) = (&chosen.rows[run.clone()], within(&spans, &run));
                let (mut x, mut g) = (std::mem::take(&mut work.x), std::mem::take(&mut work.g));
                gather(&space.normed, rows, width, &mut x);
                gather(of_output, rows, width, &mut g);
                let rows_of = |numbers| Rows { numbers, step: width };
                let (read, gained) = (rows_of(&x[..run.len() * width]), rows_of(&g[..run.len() * width]));
                let inner = inner.map(|inner| self.rows_of(&inner[expert], &run, visit.index));
                let weights = Some(&chosen.weights[run]);
                let through = Through { places, pairs, rows, weights, spans: &spans, inner };
                of_weights[expert].extend(self.expert_back(visit, through, (read, gained), work, sums));
                self.input_back(visit, through, read, work, of_normed, sums);
                (work.x, work.g) = (x, g);
            }
        }
        of_weights
    }

    /// What gate and up returned for a run of an expert's rows.
    fn rows_of<'a>(&self, inner: &'a GateUp, run: &Range<usize>, layer: usize) -> [&'a [f32]; 2] {
        let width = self.config.feed_forward_width(layer);
        inner.each_ref().map(|numbers| &numbers[run.start * width..run.end * width])
    }

    /// From the gradient `g` of an expert's output to those of its gate and up, with the sums of its w2. Returns the
    /// gradients of the rows' weights.
    fn expert_back(
        &self,
        visit: &Visit,
        through: Through,
        (x, g): (Rows<E>, Rows<E>),
        work: &mut Expert<E>,
        sums: &mut [Option<PairGradient>],
    ) -> Vec<f32> {
        let Through { places, pairs: [inputs, output], rows, weights, spans, inner: kept } = through;
        let (count, inner) = (rows.len(), self.config.feed_forward_width(visit.index));
        let w2 = visit.weights.matrix(places.w2);
        if kept.is_none() {
            let u = inputs.project(&self.kernels, x, count, spans, &mut work.low[0]);
            for (place, weight, out) in [(0, places.w1, &mut work.gate), (1, places.w3, &mut work.up)] {
                let terms = inputs.terms(place, x, visit.weights.matrix(weight), u);
                self.put(count, &terms, out.take(count * inner), inner);
            }
        }
        let [_, of_low] = &mut work.v;
        output.back(&self.kernels, &[g], count, of_low);
        let v = Rows { numbers: &work.v[1][..count * output.ranks], step: output.ranks };
        let [gate, up] = kept.unwrap_or([&work.gate, &work.up]);
        let hidden = Hidden {
            gate,
            up,
            hidden: Shared::new(work.hidden.take(count * inner)),
            of_gate: Shared::new(work.of_gate.take(count * inner)),
            of_up: Shared::new(work.of_up.take(count * inner)),
            products: Shared::new(work.products.take(count * inner.div_ceil(PANEL_WIDTH))),
            weights,
            inner,
        };
        self.gate_back(output, (w2, g, v), count, spans, &hidden);
        let of_weights = sum_rows(&work.products, count, inner.div_ceil(PANEL_WIDTH));
        let h = Rows { numbers: &work.hidden[..count * inner], step: inner };
        let u = output.project(&self.kernels, h, count, spans, &mut work.low[1]);
        let (u, v) = (weighted(u, count, weights), weighted(v, count, weights));
        let rows_of = |numbers| Rows { numbers, step: output.ranks };
        let seen = Seen { x: h, u: rows_of(&u), g: &[g], v: rows_of(&v), spans };
        output.collect(&self.kernels, seen, &mut sums[places.w2..=places.w2], &mut work.pairs);
        of_weights
    }

    /// The gradient of the inner rows, block by block through the gate.
    fn gate_back(
        &self,
        output: &LowRank,
        (w2, g, v): (Matrix, Rows<E>, Rows<E>),
        count: usize,
        spans: &[Span],
        hidden: &Hidden<E>,
    ) {
        let activation = match self.config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let isa = self.kernels.isa;
        let dropped = output.pairs.iter().flatten().next().filter(|_| linear::drops(spans));
        match dropped {
            None => {
                let terms = output.terms_back(&[w2], &[g], v, spans);
                self.kernels.multiply(count, [&terms], |Block { rows, columns, sums: [sums] }: Block<1>| {
                    hidden.finish(isa, activation, rows, columns, sums);
                });
            }
            Some(pair) => {
                let frozen = [Term::across(g, w2)];
                let low = [Term::across(v, output.a_of(0..output.ranks))];
                self.kernels.multiply(count, [&frozen, &low], |block: Block<2>| {
                    let Block { rows, columns, sums: [sums, low] } = block;
                    for (row, (sums, low)) in
                        rows.clone().zip(sums.chunks_exact_mut(PANEL_WIDTH).zip(low.chunks_exact(PANEL_WIDTH)))
                    {
                        let low = (columns.start, &low[..columns.len()]);
                        linear::add_factored(&pair.module, spans, row, output.inputs, low, sums);
                    }
                    hidden.finish(isa, activation, rows, columns, sums);
                });
            }
        }
    }

    /// From the gradients of gate and up to that of what they read, added to the rows it came from.
    fn input_back(
        &self,
        visit: &Visit,
        Through { places, pairs: [inputs, _], rows: rows_of, spans, .. }: Through,
        x: Rows<E>,
        work: &mut Expert<E>,
        of_normed: &mut [f32],
        sums: &mut [Option<PairGradient>],
    ) {
        let (inner, width) = (self.config.feed_forward_width(visit.index), self.width());
        let count = rows_of.len();
        let g = [&work.of_gate, &work.of_up].map(|of| Rows { numbers: &of[..count * inner], step: inner });
        let weights = [places.w1, places.w3].map(|place| visit.weights.matrix(place));
        let v = inputs.back(&self.kernels, &g, count, &mut work.v[0]);
        let terms = inputs.terms_back(&weights, &g, v, spans);
        let out = Shared::new(of_normed);
        self.kernels.multiply(count, [&terms], |block: Block<1>| {
            for (row, sums) in block.each_row(0) {
                let start = rows_of[row] * width + block.columns.start;
                // SAFETY: a token chooses an expert once, and every column is finished once.
                rows::add(self.kernels.isa, sums, unsafe { out.part(start..start + sums.len()) });
            }
        });
        inputs.add_dropped(&self.kernels, v, count, spans, Some(rows_of), of_normed);
        let u = inputs.project(&self.kernels, x, count, spans, &mut work.low[0]);
        let mut of_pairs = [sums[places.w1].take(), sums[places.w3].take()];
        inputs.collect(&self.kernels, Seen { x, u, g: &g, v, spans }, &mut of_pairs, &mut work.pairs);
        [sums[places.w1], sums[places.w3]] = of_pairs;
    }
}

/// The inner rows while blocks of their gradient are finished.
struct Hidden<'a, E> {
    gate: &'a [f32],
    up: &'a [f32],
    hidden: Shared<'a, E>,
    of_gate: Shared<'a, E>,
    of_up: Shared<'a, E>,
    products: Shared<'a, f32>,
    weights: Option<&'a [f32]>,
    inner: usize,
}

impl<E: Element> Hidden<'_, E> {
    /// Takes a block of gradients (rows, 64) through the gate.
    fn finish(&self, isa: Isa, activation: Gate, rows: Range<usize>, columns: Range<usize>, sums: &[f32]) {
        let (panels, panel) = (self.inner.div_ceil(PANEL_WIDTH), columns.start / PANEL_WIDTH);
        for (row, sums) in rows.zip(sums.chunks_exact(PANEL_WIDTH)) {
            let at = row * self.inner + columns.start..row * self.inner + columns.end;
            let product = row * panels + panel;
            // SAFETY: every row and column is finished once.
            unsafe {
                let inner = Inner {
                    gate: &self.gate[at.clone()],
                    up: &self.up[at.clone()],
                    gradient: &sums[..columns.len()],
                    weight: self.weights.map_or(1.0, |weights| weights[row]),
                    hidden: self.hidden.part(at.clone()),
                    of_gate: self.of_gate.part(at.clone()),
                    of_up: self.of_up.part(at),
                };
                backward::gate(isa, activation, inner, &mut self.products.part(product..product + 1)[0]);
            }
        }
    }
}

/// Copies some rows side by side.
fn gather<E: Element>(from: &[E], rows: &[usize], width: usize, out: &mut Lines<E>) {
    let out = out.take(rows.len() * width);
    let copies = out.par_chunks_mut(width).zip(rows).with_min_len(ROWS_A_TASK);
    copies.for_each(|(to, &row)| to.copy_from_slice(&from[row * width..(row + 1) * width]));
}

/// Each row's numbers added up.
fn sum_rows(numbers: &[f32], count: usize, width: usize) -> Vec<f32> {
    numbers[..count * width].chunks_exact(width).map(|row| row.iter().sum()).collect()
}

/// Rows times their weights.
fn weighted<E: Element>(rows: Rows<E>, count: usize, weights: Option<&[f32]>) -> Vec<E> {
    let numbers = &rows.numbers[..count * rows.step];
    let Some(weights) = weights else { return numbers.to_vec() };
    let weighted = numbers.chunks_exact(rows.step.max(1)).zip(weights);
    weighted.flat_map(|(row, weight)| row.iter().map(move |value| E::from_f32(value.to_f32() * weight))).collect()
}
