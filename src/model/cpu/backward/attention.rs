//! Back through attention: output projection, each query against what it saw, rotation, head norms, q k v, and the norm.

use rayon::prelude::*;

use super::linear::{self, Seen};
use crate::kernel::attention::Queries;
use crate::kernel::attention::backward::{
    BackwardScratch, Keys, Panels, RowStatistics, keys_backward, queries_backward,
};
use crate::kernel::product::{Rows, Term, padded};
use crate::kernel::{Element, Lines, Pool, Shared, backward, rows};
use crate::model::cpu::CpuDecoder;
use crate::model::cpu::attention::{OUTPUT, segment_rows};
use crate::model::cpu::layer::Visit;
use crate::model::cpu::workspace::{Low, ROWS_A_TASK, Workspace};
use crate::model::training::PairGradient;

/// Buffers of one walk.
#[derive(Default)]
pub struct Scratch<E> {
    outward: Lines<f32>,    // (rows, hidden): gradient of what attention returned
    of_output: Lines<E>,    // (rows, hidden): the same
    of_mixed: Lines<f32>,   // (rows, heads, head_dim)
    of_heads: Lines<E>,     // (kv_heads, rows, group, head_dim): the same
    before: Lines<f32>,     // (rows, heads or kv_heads, head_dim): what a norm of heads read
    found: [Lines<f32>; 3], // (rows, heads or kv_heads, head_dim): of queries, keys, values
    rounded: [Lines<E>; 3], // the same
    of_normed: Lines<f32>,  // (rows, hidden)
    low: Low<E>,
    v: Lines<E>,
    pairs: linear::Scratch<E>,
    heads: Pool<HeadScratch<E>>,
}

/// One worker's.
struct HeadScratch<E> {
    seen: Panels<E>,
    queries: Panels<E>,
    scratch: BackwardScratch<E>,
    statistics: RowStatistics,
}

impl<E: Element> Default for HeadScratch<E> {
    fn default() -> HeadScratch<E> {
        HeadScratch {
            seen: Panels::default(),
            queries: Panels::default(),
            scratch: BackwardScratch::default(),
            statistics: RowStatistics::default(),
        }
    }
}

impl<E: Element> CpuDecoder<E> {
    /// Turns the gradient of the states behind attention into that of its `input`. `space` is as attention left it; `sums`
    /// are those of q, k, v and o.
    pub(super) fn attention_back(
        &self,
        visit: &Visit,
        input: &[f32],
        gradient: &mut [f32],
        space: &mut Workspace<E>,
        scratch: &mut Scratch<E>,
        sums: &mut [Option<PairGradient>],
    ) {
        let (of_inputs, of_output) = sums.split_at_mut(OUTPUT);
        self.output_back(visit, gradient, space, scratch, of_output);
        self.mix_back(visit, space, scratch);
        self.norm_rows(input, &visit.layer.input_norm, space.normed.take(input.len()));
        self.split_back(visit, space, scratch);
        self.project_back(visit, space, scratch, of_inputs);
        let of_normed = &scratch.of_normed[..input.len()];
        self.norm_back(input, &visit.layer.input_norm, of_normed, gradient);
    }

    /// From the states' gradient to that of the mixed values.
    fn output_back(
        &self,
        visit: &Visit,
        gradient: &[f32],
        space: &mut Workspace<E>,
        scratch: &mut Scratch<E>,
        sums: &mut [Option<PairGradient>],
    ) {
        let (count, width) = (visit.packed.len(), self.width());
        let inner = self.config.num_attention_heads * self.config.head_dim;
        let Scratch { outward, of_output, of_mixed, low, v, pairs: pair_scratch, .. } = scratch;
        let mixed = Rows { numbers: &space.mixed[..count * inner], step: inner };
        let (pairs, weight) = (&visit.layer.pairs.output, visit.weights.matrix(OUTPUT));
        let u = pairs.project(&self.kernels, mixed, count, visit.spans, low);
        let outward = outward.take(count * width);
        match &visit.layer.output_norms {
            None => outward.copy_from_slice(gradient),
            Some([norm, _]) => {
                let returned = space.update.take(count * width);
                self.put(count, &pairs.terms(0, mixed, weight, u), returned, width);
                outward.fill(0.0);
                self.norm_back(returned, norm, gradient, outward);
            }
        }
        let of_output = self.rounded(outward, of_output);
        let g = [Rows { numbers: of_output, step: width }];
        let v = pairs.back(&self.kernels, &g, count, v);
        let of_mixed = of_mixed.take(count * inner);
        self.put(count, &pairs.terms_back(&[weight], &g, v, visit.spans), of_mixed, inner);
        pairs.add_dropped(&self.kernels, v, count, visit.spans, None, of_mixed);
        let seen = Seen { x: mixed, u, g: &g, v, spans: visit.spans };
        pairs.collect(&self.kernels, seen, sums, pair_scratch);
    }

    /// From the mixed values' gradient to those of rotated queries, of rotated keys and of values.
    fn mix_back(&self, visit: &Visit, space: &Workspace<E>, scratch: &mut Scratch<E>) {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let (head_dim, count, group) = (self.config.head_dim, visit.packed.len(), heads / kv_heads);
        let step = padded::<E>(head_dim);
        let Scratch { of_mixed, of_heads, found: [of_queries, of_keys, of_values], heads: pool, .. } = scratch;
        let of_heads = self.by_head(&of_mixed[..count * heads * head_dim], of_heads);
        let of_queries = Shared::new(of_queries.take(count * heads * head_dim));
        let of_keys = Shared::new(of_keys.take(count * kv_heads * head_dim));
        let of_values = Shared::new(of_values.take(count * kv_heads * head_dim));
        let sight = self.sight(visit);
        (0..visit.packed.segments.len() * kv_heads).into_par_iter().with_max_len(1).for_each(|item| {
            let (head, rows) = (item % kv_heads, segment_rows(visit.packed, item / kv_heads));
            let of = |size: usize| (head * count + rows.start) * size..(head * count + rows.end) * size;
            let (queries, gradients) = (&space.queries[of(group * step)], &of_heads[of(group * step)]);
            let (keys, values) = (&space.keys[of(step)], &space.values[of(step)]);
            pool.with(|worker| {
                let HeadScratch { seen, queries: asking, scratch, statistics } = worker;
                seen.lay(self.kernels.isa, head_dim, keys, values);
                asking.lay(self.kernels.isa, head_dim, queries, gradients);
                let asked = Queries { numbers: queries, group, first: 0 };
                queries_backward(
                    self.kernels.isa,
                    asked,
                    gradients,
                    seen,
                    sight,
                    (scratch, statistics),
                    |row, found| {
                        let at = ((rows.start + row / group) * heads + head * group + row % group) * head_dim;
                        // SAFETY: each head of each row is written once.
                        unsafe { of_queries.part(at..at + head_dim) }.copy_from_slice(found);
                    },
                );
                let keys = Keys { keys, values, group };
                keys_backward(self.kernels.isa, keys, asking, sight, (scratch, statistics), |position, key, value| {
                    let at = ((rows.start + position) * kv_heads + head) * head_dim;
                    // SAFETY: as above.
                    unsafe {
                        of_keys.part(at..at + head_dim).copy_from_slice(key);
                        of_values.part(at..at + head_dim).copy_from_slice(value);
                    }
                });
            });
        });
    }

    /// The mixed values' gradient where attention reads it: (kv_heads, rows, group, head_dim).
    fn by_head<'a>(&self, of_mixed: &[f32], of_heads: &'a mut Lines<E>) -> &'a [E] {
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim);
        let (step, group) = (padded::<E>(head_dim), heads / self.config.num_key_value_heads);
        let count = of_mixed.len() / (heads * head_dim);
        let of_heads = of_heads.take(count * heads * step);
        let out = Shared::new(of_heads);
        let rows_of = of_mixed.par_chunks(heads * head_dim).enumerate().with_min_len(ROWS_A_TASK);
        rows_of.for_each(|(row, mixed)| {
            for (index, head) in mixed.chunks_exact(head_dim).enumerate() {
                let at = ((index / group * count + row) * group + index % group) * step;
                // SAFETY: each head of each row is written once.
                let out = unsafe { out.part(at..at + step) };
                out[head_dim..].fill(E::default());
                rows::round(self.kernels.isa, head, &mut out[..head_dim]);
            }
        });
        of_heads
    }

    /// From rotated (and normed) heads to what the projections returned, rounded.
    fn split_back(&self, visit: &Visit, space: &Workspace<E>, scratch: &mut Scratch<E>) {
        let (count, head_dim) = (visit.packed.len(), self.config.head_dim);
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let places = self.places(visit, 0..count);
        for (which, of) in [(0, heads), (1, kv_heads), (2, kv_heads)] {
            let norm = visit.layer.head_norms.as_ref().and_then(|norms| norms.get(which));
            if norm.is_some() {
                self.project_again(visit, which, space, scratch);
            }
            let (found, before) = (&mut scratch.found[which][..count * of * head_dim], &scratch.before);
            let rows_of = found.par_chunks_mut(of * head_dim).enumerate().with_min_len(ROWS_A_TASK);
            rows_of.for_each(|(row, found)| {
                let (cosines, sines) = visit.angles.at(places[row]);
                for (index, head) in found.chunks_exact_mut(head_dim).enumerate() {
                    if which < 2 {
                        backward::rotate(self.kernels.isa, head, cosines, sines);
                    }
                    if let Some(norm) = norm {
                        let before = &before[(row * of + index) * head_dim..][..head_dim];
                        let of_normed = head.to_vec();
                        head.fill(0.0);
                        backward::rms_norm(self.kernels.isa, before, norm, self.config.rms_norm_eps, &of_normed, head);
                    }
                }
            });
            self.rounded(&scratch.found[which][..count * of * head_dim], &mut scratch.rounded[which]);
        }
    }

    /// q or k of the normed rows, as they are before a norm.
    fn project_again(&self, visit: &Visit, which: usize, space: &Workspace<E>, scratch: &mut Scratch<E>) {
        let Scratch { before, low, .. } = scratch;
        let (count, weight) = (visit.packed.len(), visit.weights.matrix(which));
        let x = Rows { numbers: &space.normed[..count * self.width()], step: self.width() };
        let pairs = &visit.layer.pairs.inputs;
        let u = pairs.project(&self.kernels, x, count, visit.spans, low);
        let before = before.take(count * weight.rows);
        self.put(count, &pairs.terms(which, x, weight, u), before, weight.rows);
        if let Some(biases) = &visit.layer.biases {
            before.par_chunks_mut(weight.rows).for_each(|row| rows::add(self.kernels.isa, &biases[which], row));
        }
    }

    /// From q, k and v to the normed states.
    fn project_back(
        &self,
        visit: &Visit,
        space: &Workspace<E>,
        scratch: &mut Scratch<E>,
        sums: &mut [Option<PairGradient>],
    ) {
        let (count, width) = (visit.packed.len(), self.width());
        let Scratch { rounded, of_normed, low, v, pairs: pair_scratch, .. } = scratch;
        let x = Rows { numbers: &space.normed[..count * width], step: width };
        let pairs = &visit.layer.pairs.inputs;
        let weights = [0, 1, 2].map(|place| visit.weights.matrix(place));
        let g = [0, 1, 2].map(|place| {
            let step = weights[place].rows;
            Rows { numbers: &rounded[place][..count * step], step }
        });
        let u = pairs.project(&self.kernels, x, count, visit.spans, low);
        let v = pairs.back(&self.kernels, &g, count, v);
        let of_normed = of_normed.take(count * width);
        let terms: Vec<Term<E>> = pairs.terms_back(&weights, &g, v, visit.spans);
        self.put(count, &terms, of_normed, width);
        pairs.add_dropped(&self.kernels, v, count, visit.spans, None, of_normed);
        pairs.collect(&self.kernels, Seen { x, u, g: &g, v, spans: visit.spans }, sums, pair_scratch);
    }
}
