//! The way back through attention: from the gradient of what queries mixed to those of queries, keys and values.
//!
//! With `P` the weights, `G` the gradient of what was mixed and `D = rowsum(P * G V^T)`, the scores' gradient is
//! `S' = P * (G V^T - D) * scale`, and then `Q' = S' K`, `K' = S'^T Q`, `V' = P^T G` (FlashAttention, arXiv 2205.14135,
//! appendix B.4). It is gone through twice: query by query for `Q'` and the two numbers of a query that are needed again,
//! then key by key, with queries and keys in exchanged places, so that every product finds its panels and no matrix of
//! scores is kept.
//!
//! A query's gradient depends on that query and its keys alone, a key's adds up its queries from the first to the last:
//! the bits do not depend on how the work is cut.

use super::{KeyValues, LANES, Operands, Queries, Sight, apart, place, rows_together, times_keys, times_values};
use crate::kernel::isa::for_every_isa;
use crate::kernel::math::{exp, largest, soft_cap};
use crate::kernel::product::padded;
use crate::kernel::tile::WIDTH;
use crate::kernel::unit::Unit;
use crate::kernel::{Element, Isa, Lines};

/// Two matrices as panels in both roles: `straight` holds the first as keys and the second as values, `crossed` the other
/// way round.
pub struct Panels<E> {
    straight: KeyValues<E>,
    crossed: KeyValues<E>,
}

/// What is needed of each query when keys are gone through; queries beyond the last fill up a panel.
#[derive(Clone, Debug, Default)]
pub struct RowStatistics {
    log_sums: Vec<f32>, // ln of the sum of e^score
    deltas: Vec<f32>,   // D
}

/// Keys of one head, with their values.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a, E> {
    pub keys: &'a [E],   // (positions, head_dim filled up to whole groups)
    pub values: &'a [E], // the same
    /// Queries of one position.
    pub group: usize,
}

/// Buffers of one worker.
#[derive(Default)]
pub struct BackwardScratch<E> {
    scores: Lines<f32>,           // (rows, keys), `apart`
    weight_gradients: Lines<f32>, // the same: G V^T
    weights: Lines<E>,            // the same: P
    score_gradients: Lines<E>,    // the same: S'
    first: Lines<f32>,            // (rows, head_dim)
    second: Lines<f32>,           // (rows, head_dim)
    operands: Operands,
}

impl<E: Element> Default for Panels<E> {
    fn default() -> Panels<E> {
        Panels { straight: KeyValues::new(0), crossed: KeyValues::new(0) }
    }
}

impl<E: Element> Panels<E> {
    /// Lays rows of both matrices, as long as a head filled up to whole groups, in place of earlier ones.
    pub fn lay(&mut self, isa: Isa, head_dim: usize, first: &[E], second: &[E]) {
        self.straight.restart(head_dim);
        self.crossed.restart(head_dim);
        self.straight.extend(isa, first, second);
        self.crossed.extend(isa, second, first);
    }
}

impl<E: Element> BackwardScratch<E> {
    /// Makes room for so many rows of so many keys, and of columns.
    fn grow(&mut self, rows: usize, width: usize, columns: usize) {
        for numbers in [&mut self.scores, &mut self.weight_gradients] {
            numbers.take(rows * apart::<f32>(width));
        }
        for numbers in [&mut self.weights, &mut self.score_gradients] {
            numbers.take(rows * apart::<E>(width));
        }
        for numbers in [&mut self.first, &mut self.second] {
            numbers.take(rows * columns);
        }
    }
}

impl RowStatistics {
    fn grow(&mut self, rows: usize) {
        let filled = rows.next_multiple_of(WIDTH);
        self.log_sums.resize(self.log_sums.len().max(filled), 0.0);
        self.deltas.resize(self.deltas.len().max(filled), 0.0);
    }
}

/// `Q'`: hands `out` each row (query-major, then the heads of the group) with its gradient (head_dim), and leaves the
/// rows' statistics.
///
/// `gradients`: `G`, laid out as the queries, which begin at the first position of `seen` (keys and values).
pub fn queries_backward<E: Element>(
    isa: Isa,
    queries: Queries<E>,
    gradients: &[E],
    seen: &Panels<E>,
    sight: Sight,
    (scratch, statistics): (&mut BackwardScratch<E>, &mut RowStatistics),
    mut out: impl FnMut(usize, &[f32]),
) {
    let Panels { straight, crossed } = seen;
    let (step, columns) = (padded::<E>(straight.head_dim), straight.columns());
    let rows = queries.numbers.len() / step;
    statistics.grow(rows);
    let together = rows_together(Unit::of::<E>(isa));
    for first in (0..rows).step_by(together) {
        let count = together.min(rows - first);
        let begin = queries.sees(first, sight.window).0 / WIDTH * WIDTH;
        let end = queries.sees(first + count - 1, sight.window).1;
        let width = (end - begin).next_multiple_of(WIDTH);
        scratch.grow(count, width, columns);
        let BackwardScratch { scores, weight_gradients, score_gradients, first: found, operands, .. } = scratch;
        times_keys(isa, (&queries.numbers[first * step..], step, count), straight, (begin, end), (operands, scores));
        times_keys(isa, (&gradients[first * step..], step, count), crossed, (begin, end), (operands, weight_gradients));
        for row in 0..count {
            let (from, to) = queries.sees(first + row, sight.window);
            let part = place::<f32>(row, width);
            let (scores, weight_gradients) = (&mut scores[part.clone()], &mut weight_gradients[part]);
            let (log_sum, delta) = (&mut statistics.log_sums[first + row], &mut statistics.deltas[first + row]);
            query_score_gradients(
                isa,
                scores,
                weight_gradients,
                (from - begin, to - begin),
                sight,
                &mut score_gradients[place::<E>(row, width)],
                log_sum,
                delta,
            );
        }
        times_values(isa, (score_gradients, apart::<E>(width), count), crossed, (begin, end), (operands, found));
        for (row, found) in found.chunks_exact(columns).enumerate().take(count) {
            out(first + row, &found[..straight.head_dim]);
        }
    }
}

/// `K'` and `V'`: hands `out` each position with both gradients (head_dim).
///
/// `queries`: all queries and their `G`, laid by rows; the first are those of the first key's position. `statistics`: theirs.
pub fn keys_backward<E: Element>(
    isa: Isa,
    keys: Keys<E>,
    queries: &Panels<E>,
    sight: Sight,
    (scratch, statistics): (&mut BackwardScratch<E>, &RowStatistics),
    mut out: impl FnMut(usize, &[f32], &[f32]),
) {
    let Panels { straight, crossed } = queries;
    let (step, columns) = (padded::<E>(straight.head_dim), straight.columns());
    let positions = keys.keys.len() / step;
    let is_seen_by = |key: usize| {
        let end = sight.window.map_or(straight.len, |window| straight.len.min((key + window) * keys.group));
        (key * keys.group, end)
    };
    let together = rows_together(Unit::of::<E>(isa));
    for first in (0..positions).step_by(together) {
        let count = together.min(positions - first);
        let begin = is_seen_by(first).0 / WIDTH * WIDTH;
        let end = is_seen_by(first + count - 1).1;
        let width = (end - begin).next_multiple_of(WIDTH);
        scratch.grow(count, width, columns);
        let BackwardScratch {
            scores,
            weight_gradients,
            weights,
            score_gradients,
            first: of_keys,
            second: of_values,
            operands,
        } = scratch;
        times_keys(isa, (&keys.keys[first * step..], step, count), straight, (begin, end), (operands, scores));
        times_keys(
            isa,
            (&keys.values[first * step..], step, count),
            crossed,
            (begin, end),
            (operands, weight_gradients),
        );
        let statistics = (&statistics.log_sums[begin..begin + width], &statistics.deltas[begin..begin + width]);
        for row in 0..count {
            let (from, to) = is_seen_by(first + row);
            let (part, rounded) = (place::<f32>(row, width), place::<E>(row, width));
            let (scores, weight_gradients) = (&scores[part.clone()], &weight_gradients[part]);
            let (weights, score_gradients) = (&mut weights[rounded.clone()], &mut score_gradients[rounded]);
            key_score_gradients(
                isa,
                scores,
                weight_gradients,
                statistics,
                (from - begin, to - begin),
                sight,
                weights,
                score_gradients,
            );
        }
        let step = apart::<E>(width);
        times_values(isa, (weights, step, count), straight, (begin, end), (operands, of_values));
        times_values(isa, (score_gradients, step, count), crossed, (begin, end), (operands, of_keys));
        for row in 0..count {
            let part = row * columns..row * columns + straight.head_dim;
            out(first + row, &of_keys[part.clone()], &of_values[part]);
        }
    }
}

/// A score as the softmax sees it, and its derivative by the product of query and key.
#[inline(always)]
fn seen_score<const FUSED: bool>(product: f32, sight: Sight) -> (f32, f32) {
    let score = product * sight.scale;
    match sight.soft_cap {
        None => (score, sight.scale),
        Some(cap) => {
            let capped = soft_cap::<FUSED>(score, cap);
            (capped, sight.scale * (1.0 - (capped / cap) * (capped / cap)))
        }
    }
}

for_every_isa! {
    /// The gradients of one query's scores, 0 where it does not see, and its statistics. Lanes belong to positions.
    fn query_score_gradients<E: Element>(
        scores: &mut [f32],
        weight_gradients: &mut [f32],
        visible: (usize, usize),
        sight: Sight,
        score_gradients: &mut [E],
        log_sum: &mut f32,
        delta: &mut f32,
    ) {
        let (from, to) = (visible.0 / LANES * LANES, visible.1.next_multiple_of(LANES));
        // What stands in a panel's place of a key that is not seen may be anything.
        weight_gradients[from..visible.0].fill(0.0);
        weight_gradients[visible.1..to].fill(0.0);
        let weight_gradients = weight_gradients[from..to].as_chunks::<LANES>().0;
        scores[visible.0..visible.1].iter_mut().for_each(|score| *score = seen_score::<FUSED>(*score, sight).0);
        scores[from..visible.0].fill(f32::NEG_INFINITY);
        scores[visible.1..to].fill(f32::NEG_INFINITY);
        let peak = largest(&scores[from..to]);
        let (mut sums, mut products) = ([0f32; LANES], [0f32; LANES]);
        for (scores, weight_gradients) in scores[from..to].as_chunks::<LANES>().0.iter().zip(weight_gradients) {
            for lane in 0..LANES {
                let weight = exp::<FUSED>(scores[lane] - peak);
                sums[lane] += weight;
                products[lane] += weight * weight_gradients[lane];
            }
        }
        let sum = sums.iter().sum::<f32>();
        (*log_sum, *delta) = (peak + sum.ln(), products.iter().sum::<f32>() / sum);
        let out = score_gradients[from..to].as_chunks_mut::<LANES>().0;
        let chunks = scores[from..to].as_chunks::<LANES>().0.iter().zip(weight_gradients);
        for ((scores, weight_gradients), out) in chunks.zip(out) {
            let mut gradients = [0f32; LANES];
            for lane in 0..LANES {
                let factor = match sight.soft_cap {
                    None => sight.scale,
                    Some(cap) if scores[lane] > f32::NEG_INFINITY => sight.scale * (1.0 - (scores[lane] / cap) * (scores[lane] / cap)),
                    Some(_) => 0.0,
                };
                gradients[lane] = exp::<FUSED>(scores[lane] - *log_sum) * (weight_gradients[lane] - *delta) * factor;
            }
            *out = E::from_f32s::<ROUNDS>(gradients);
        }
        score_gradients[..from].fill(E::default());
        score_gradients[to..].fill(E::default());
    }
}

for_every_isa! {
    /// One key's weights and score gradients by the queries that see it, 0 elsewhere.
    fn key_score_gradients<E: Element>(
        scores: &[f32],
        weight_gradients: &[f32],
        statistics: (&[f32], &[f32]),
        visible: (usize, usize),
        sight: Sight,
        weights: &mut [E],
        score_gradients: &mut [E],
    ) {
        let range = visible.0 / LANES * LANES..visible.1.next_multiple_of(LANES);
        let (scores, weight_gradients) = (scores[range.clone()].as_chunks::<LANES>().0, weight_gradients[range.clone()].as_chunks::<LANES>().0);
        let (log_sums, deltas) = (statistics.0[range.clone()].as_chunks::<LANES>().0, statistics.1[range.clone()].as_chunks::<LANES>().0);
        let out = weights[range.clone()].as_chunks_mut::<LANES>().0.iter_mut().zip(score_gradients[range].as_chunks_mut::<LANES>().0);
        for (chunk, (weights, score_gradients)) in out.enumerate() {
            let [mut weight, mut gradient] = [[0f32; LANES]; 2];
            for lane in 0..LANES {
                let (score, factor) = seen_score::<FUSED>(scores[chunk][lane], sight);
                weight[lane] = exp::<FUSED>(score - log_sums[chunk][lane]);
                gradient[lane] = weight[lane] * (weight_gradients[chunk][lane] - deltas[chunk][lane]) * factor;
            }
            (*weights, *score_gradients) = (E::from_f32s::<ROUNDS>(weight), E::from_f32s::<ROUNDS>(gradient));
        }
        for out in [weights, score_gradients] {
            out[..visible.0].fill(E::default());
            out[visible.1..].fill(E::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::random::Random;

    fn random<E: Element>(count: usize, seed: u64) -> Vec<E> {
        let mut random = Random::named(seed, "attention backward");
        (0..count).map(|_| E::from_f32(random.normal() as f32)).collect()
    }

    struct Case<E> {
        positions: usize,
        head_dim: usize,
        group: usize,
        queries: Vec<E>,   // (positions, group, head_dim)
        gradients: Vec<E>, // the same
        keys: Vec<E>,      // (positions, head_dim)
        values: Vec<E>,    // the same
        sight: Sight,
    }

    /// Of queries, keys and values, in their layouts.
    type Found = [Vec<f32>; 3];

    impl<E: Element> Case<E> {
        fn new(positions: usize, head_dim: usize, group: usize, sight: Sight) -> Case<E> {
            Case {
                positions,
                head_dim,
                group,
                queries: random(positions * group * head_dim, 1),
                gradients: random(positions * group * head_dim, 2),
                keys: random(positions * head_dim, 3),
                values: random(positions * head_dim, 4),
                sight,
            }
        }

        fn found(&self, isa: Isa) -> Found {
            let (mut seen, mut queries) = (Panels::default(), Panels::default());
            seen.lay(isa, self.head_dim, &self.keys, &self.values);
            queries.lay(isa, self.head_dim, &self.queries, &self.gradients);
            let (mut scratch, mut statistics) = (BackwardScratch::default(), RowStatistics::default());
            let [mut of_queries, mut of_keys, mut of_values] = [Vec::new(), Vec::new(), Vec::new()];
            let rows = Queries { numbers: &self.queries, group: self.group, first: 0 };
            let buffers = (&mut scratch, &mut statistics);
            queries_backward(isa, rows, &self.gradients, &seen, self.sight, buffers, |row, found| {
                assert_eq!(row * self.head_dim, of_queries.len());
                of_queries.extend_from_slice(found);
            });
            let keys = Keys { keys: &self.keys, values: &self.values, group: self.group };
            keys_backward(isa, keys, &queries, self.sight, (&mut scratch, &statistics), |_, key, value| {
                of_keys.extend_from_slice(key);
                of_values.extend_from_slice(value);
            });
            [of_queries, of_keys, of_values]
        }

        fn number(values: &[E], index: usize) -> f64 {
            f64::from(values[index].to_f32())
        }

        fn dot(&self, a: (&[E], usize), b: (&[E], usize)) -> f64 {
            let size = self.head_dim;
            (0..size).map(|i| Self::number(a.0, a.1 * size + i) * Self::number(b.0, b.1 * size + i)).sum()
        }

        /// By the formulas, in f64.
        fn exact(&self) -> [Vec<f64>; 3] {
            let size = self.head_dim;
            let mut found = [&self.queries, &self.keys, &self.values].map(|values| vec![0f64; values.len()]);
            for row in 0..self.positions * self.group {
                let position = row / self.group;
                let from = self.sight.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let sees: Vec<usize> = (from..=position).collect();
                let scale = f64::from(self.sight.scale);
                let score = |key: usize| self.dot((&self.queries, row), (&self.keys, key)) * scale;
                let cap = self.sight.soft_cap.map(f64::from);
                let capped = |key: usize| cap.map_or(score(key), |cap| cap * (score(key) / cap).tanh());
                let sum: f64 = sees.iter().map(|&key| capped(key).exp()).sum();
                let weight = |key: usize| capped(key).exp() / sum;
                let weight_gradient = |key: usize| self.dot((&self.gradients, row), (&self.values, key));
                let delta: f64 = sees.iter().map(|&key| weight(key) * weight_gradient(key)).sum();
                for &key in &sees {
                    let squash = cap.map_or(1.0, |cap| 1.0 - (score(key) / cap).tanh().powi(2));
                    let score_gradient = weight(key) * (weight_gradient(key) - delta) * squash * scale;
                    for i in 0..size {
                        found[0][row * size + i] += score_gradient * Self::number(&self.keys, key * size + i);
                        found[1][key * size + i] += score_gradient * Self::number(&self.queries, row * size + i);
                        found[2][key * size + i] += weight(key) * Self::number(&self.gradients, row * size + i);
                    }
                }
            }
            found
        }

        fn agrees(&self, tolerance: f64) {
            let exact = self.exact();
            for isa in Isa::supported() {
                for (which, (found, exact)) in self.found(isa).iter().zip(&exact).enumerate() {
                    assert_eq!(found.len(), exact.len());
                    let scale = exact.iter().fold(0.1f64, |largest, value| largest.max(value.abs()));
                    for (index, (found, exact)) in found.iter().zip(exact).enumerate() {
                        let error = (f64::from(*found) - exact).abs() / scale;
                        assert!(error < tolerance, "{isa:?} {which} at {index}: {found}, exact {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_agree_with_their_formulas() {
        let sight = Sight { scale: 0.3, soft_cap: None, window: None };
        for (positions, head_dim, group) in [(1, 64, 3), (65, 64, 3), (130, 16, 1), (70, 96, 2), (67, 6, 4)] {
            Case::<f32>::new(positions, head_dim, group, sight).agrees(3e-6);
            Case::<bf16>::new(positions, head_dim, group, sight).agrees(1e-2);
        }
        let windowed = Sight { window: Some(5), ..sight };
        Case::<f32>::new(100, 8, 2, windowed).agrees(3e-6);
        Case::<bf16>::new(101, 8, 3, windowed).agrees(1e-2);
        let capped = Sight { soft_cap: Some(2.0), ..sight };
        Case::<f32>::new(70, 8, 2, capped).agrees(3e-6);
    }

    #[test]
    fn what_lay_in_the_panels_before_does_not_show() {
        let sight = Sight { scale: 0.125, soft_cap: None, window: None };
        let case = Case::<bf16>::new(33, 64, 3, sight);
        let (mut fresh, mut used) = (Panels::default(), Panels::default());
        let stray = vec![bf16::NAN; 70 * 64];
        used.lay(Isa::best(), 64, &stray, &stray);
        let mut found = [&mut fresh, &mut used].map(|panels| {
            panels.lay(Isa::best(), 64, &case.keys, &case.values);
            let (mut scratch, mut statistics) = (BackwardScratch::default(), RowStatistics::default());
            let rows = Queries { numbers: &case.queries, group: 3, first: 0 };
            let mut all = Vec::new();
            let buffers = (&mut scratch, &mut statistics);
            queries_backward(Isa::best(), rows, &case.gradients, panels, sight, buffers, |_, found| {
                all.extend_from_slice(found);
            });
            all
        });
        assert!(found[0].iter().all(|value| value.is_finite()));
        let first = std::mem::take(&mut found[0]);
        assert_eq!(first, found[1]);
    }
}
