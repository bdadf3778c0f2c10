//! Attention of some queries over one head's keys and values, which are held as panels.
//!
//! Keys lie in blocks of 64 positions (a panel's columns), values in rows of positions (a panel's depth); both begin at
//! position 0 of the sequence, wherever it was cut into segments. So what a query computes depends on its sequence alone:
//! scores of whole blocks, a softmax whose lanes belong to positions, a product over positions from the first on, with
//! exact zeros for what it does not see. Queries go a few rows at a time against all keys they see; no score is kept.

pub mod backward;
mod key_values;

pub use key_values::KeyValues;

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::element::LANES;
use super::isa::for_every_isa;
use super::lines::CACHE_LINE;
use super::math::{largest, power_of_2, soft_cap, sum_of};
use super::product::padded;
use super::tile::{self, WIDTH};
use super::unit::{Laid, Unit};
use super::{Element, Isa, Lines};

/// Query rows that are scored together, whole tiles of them; their scores stay in the cache for thousands of keys.
fn rows_together(unit: Unit) -> usize {
    match unit {
        Unit::F32 | Unit::Bf16Pair | Unit::Bf16Widened => 24,
        Unit::Bf16Tile => 64, // two tiles, which share what comes from the second-level cache
    }
}

/// From one row of so many scores or weights to the next: one line of the cache more than they take. A power of two apart, the
/// rows of a tile would push one another out of the first-level cache.
fn apart<T>(width: usize) -> usize {
    width + CACHE_LINE / size_of::<T>()
}

/// Where a row of so many of them lies.
fn place<T>(row: usize, width: usize) -> Range<usize> {
    let first = row * apart::<T>(width);
    first..first + width
}

/// Positions whose values are multiplied at a time; a multiple of a panel.
const POSITIONS: usize = 256;

/// Consecutive queries of one key-value head's group.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a, E> {
    /// (queries, group, head_dim filled up to whole groups): the heads of a query side by side.
    pub numbers: &'a [E],
    pub group: usize,
    /// Position of the first.
    pub first: usize,
}

/// How scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    pub scale: f32,
    /// Scores are squashed into this range (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Keys further back than this many positions are not seen; a query is its own first.
    pub window: Option<usize>,
}

/// Buffers of one worker.
#[derive(Default)]
pub struct Scratch<E> {
    scores: Lines<f32>, // (rows, keys), `apart`
    weights: Lines<E>,  // the same
    mixed: Lines<f32>,  // (rows, columns)
    inverses: Vec<f32>, // (rows)
    operands: Operands,
}

/// Rows and a panel as they are multiplied, where they are not held so.
#[derive(Default)]
struct Operands {
    rows: Laid,
    panel: Laid,
}

/// The half-open ranges of keys that tiles and rows of queries see.
impl<E> Queries<'_, E> {
    fn sees(&self, row: usize, window: Option<usize>) -> (usize, usize) {
        let end = self.first + row / self.group + 1;
        (window.map_or(0, |window| end.saturating_sub(window)), end)
    }
}

/// Attends; `seen` holds the keys of all positions up to the last query. `out` gets, row by row (query-major, then the
/// heads of the group), the sum of values by their weights (head_dim) and one over the sum of weights, which it is to be
/// multiplied by.
pub fn attend<E: Element>(
    isa: Isa,
    queries: Queries<E>,
    seen: &KeyValues<E>,
    sight: Sight,
    scratch: &mut Scratch<E>,
    mut out: impl FnMut(usize, &[f32], f32),
) {
    let step = padded::<E>(seen.head_dim);
    let (rows, together) = (queries.numbers.len() / step, rows_together(Unit::of::<E>(isa)));
    let columns = seen.columns();
    for first in (0..rows).step_by(together) {
        let count = together.min(rows - first);
        let keys = weigh(isa, queries, (first, count), seen, sight, scratch);
        let width = (keys.1 - keys.0).next_multiple_of(WIDTH);
        let mixed = (&mut scratch.operands, scratch.mixed.take(count * columns));
        times_values(isa, (&scratch.weights, apart::<E>(width), count), seen, keys, mixed);
        for (row, (mixed, inverse)) in
            scratch.mixed.chunks_exact(columns).zip(&scratch.inverses).enumerate().take(count)
        {
            out(first + row, &mixed[..seen.head_dim], *inverse);
        }
    }
}

/// Leaves the (unnormalised) weights of some rows in the scratch, and one over their sums. Returns the range of keys they
/// are for: it begins at a block.
fn weigh<E: Element>(
    isa: Isa,
    queries: Queries<E>,
    (first, count): (usize, usize),
    seen: &KeyValues<E>,
    sight: Sight,
    scratch: &mut Scratch<E>,
) -> (usize, usize) {
    let begin = queries.sees(first, sight.window).0 / WIDTH * WIDTH;
    let end = queries.sees(first + count - 1, sight.window).1;
    assert!(end <= seen.len, "keys of {end} positions are needed, {} are there", seen.len);
    let width = (end - begin).next_multiple_of(WIDTH);
    let step = padded::<E>(seen.head_dim);
    let Scratch { scores, weights, inverses, operands, .. } = scratch;
    let (scores, weights) = (scores.take(count * apart::<f32>(width)), weights.take(count * apart::<E>(width)));
    inverses.resize(count, 0.0);
    let out = (operands, &mut *scores);
    times_keys(isa, (&queries.numbers[first * step..], step, count), seen, (begin, end), out);
    let visible = |row: usize| {
        let (from, to) = queries.sees(first + row, sight.window);
        (from - begin, to - begin)
    };
    softmax(isa, &visible, sight, width, scores, weights, inverses);
    (begin, end)
}

/// Rows (numbers, their step, their count) times the keys `from..to`, `from` the first of a panel: (rows, whole panels), which
/// lie [`apart`].
fn times_keys<E: Element>(
    isa: Isa,
    (rows, step, count): (&[E], usize, usize),
    seen: &KeyValues<E>,
    (from, to): (usize, usize),
    (laid, out): (&mut Operands, &mut [f32]),
) {
    let (depth, step_out) = (padded::<E>(seen.head_dim), apart::<f32>((to - from).next_multiple_of(WIDTH)));
    let how = (isa, Unit::of::<E>(isa));
    let rows = laid.rows.rows(how, &rows[..count * step], step);
    for (index, block) in (from..to).step_by(WIDTH).enumerate() {
        let keys = laid.panel.panel(how, &seen.keys[block * depth..][..WIDTH * depth], (depth, WIDTH));
        let keys = (keys, WIDTH.min(to - block), how.1.count::<E>(depth));
        tile::multiply(how, (rows, count), keys, (&mut out[index * WIDTH..], step_out), false, None);
    }
}

/// Rows of weights of the positions `from..to` times their values: (rows, columns).
fn times_values<E: Element>(
    isa: Isa,
    (weights, step, count): (&[E], usize, usize),
    seen: &KeyValues<E>,
    (from, to): (usize, usize),
    (laid, out): (&mut Operands, &mut [f32]),
) {
    let columns = seen.columns();
    let how = (isa, Unit::of::<E>(isa));
    let rows = laid.rows.rows(how, &weights[..count * step], step);
    for column in (0..columns).step_by(WIDTH) {
        for first in (from..to).step_by(POSITIONS) {
            let end = to.min(first + POSITIONS).next_multiple_of(how.1.depth::<E>());
            let values = &seen.values[first * columns + column * E::GROUP..end * columns];
            let values = laid.panel.panel(how, values, (end - first, columns));
            let rows = (rows.from(how.1.of_rows().count::<E>(first - from)), count);
            let depth = how.1.count::<E>(end - first);
            let values = (values, WIDTH.min(seen.head_dim - column), depth);
            tile::multiply(how, rows, values, (&mut out[column..], columns), first > from, None);
        }
    }
}

for_every_isa! {
    /// Of each row the weights of visible scores, 0 elsewhere, and one over their sum. A weight is `e^score` by a power of two,
    /// which makes the largest at most 1 and at least 1/2: it is a factor of all of them, and so of their sum. Lanes belong
    /// to positions (a row begins at a multiple of 64), so the sum is the same however much stands to the left or right of
    /// what is visible.
    fn softmax<E: Element>(
        visible: &dyn Fn(usize) -> (usize, usize),
        sight: Sight,
        width: usize,
        scores: &mut [f32],
        weights: &mut [E],
        inverses: &mut [f32],
    ) {
        let factor = LOG2_E * if sight.soft_cap.is_some() { 1.0 } else { sight.scale };
        // The largest of all rows first: each row's weights would wait for it. It is kept where one over the sum goes.
        for (row, largest_of) in inverses.iter_mut().enumerate() {
            let (from, to) = visible(row);
            let scores = chunks_of(&mut scores[place::<f32>(row, width)], (from, to));
            if let Some(cap) = sight.soft_cap {
                scores.as_flattened_mut().iter_mut().for_each(|score| *score = soft_cap::<FUSED>(*score * sight.scale, cap));
            }
            let last = scores.len() - 1;
            hide(&mut scores[0], from % LANES, LANES);
            hide(&mut scores[last], 0, (to - 1) % LANES + 1);
            *largest_of = largest(scores.as_flattened());
        }
        for (row, inverse) in inverses.iter_mut().enumerate() {
            let (scores, weights) = (&mut scores[place::<f32>(row, width)], &mut weights[place::<E>(row, width)]);
            let (from, to) = visible(row);
            let whole = (*inverse * factor).ceil();
            let mut sums = [0f32; LANES];
            for (scores, out) in chunks_of(scores, (from, to)).iter().zip(chunks_of(weights, (from, to))) {
                let mut weights = [0f32; LANES];
                for ((score, sum), weight) in scores.iter().zip(&mut sums).zip(&mut weights) {
                    *weight = power_of_2::<FUSED>(*score, factor, whole);
                    *sum += *weight;
                }
                *out = E::from_f32s::<ROUNDS>(weights);
            }
            weights[..from / LANES * LANES].fill(E::default());
            weights[to.next_multiple_of(LANES)..].fill(E::default());
            *inverse = 1.0 / sum_of(sums);
        }
    }
}

/// The whole chunks of a row that hold what is visible.
#[inline(always)]
fn chunks_of<T>(row: &mut [T], (from, to): (usize, usize)) -> &mut [[T; LANES]] {
    row[from / LANES * LANES..to.next_multiple_of(LANES)].as_chunks_mut().0
}

/// Scores outside of `from..to` become minus infinity, whose weight is 0.
#[inline(always)]
fn hide(scores: &mut [f32; LANES], from: usize, to: usize) {
    let (from, to) = (from as u32, to as u32);
    for (lane, score) in (0..).zip(scores) {
        *score = if from <= lane && lane < to { *score } else { f32::NEG_INFINITY };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::random::Random;

    fn random<E: Element>(count: usize, seed: u64) -> Vec<E> {
        let mut random = Random::named(seed, "attention");
        (0..count).map(|_| E::from_f32(random.normal() as f32)).collect()
    }

    struct Case<E> {
        head_dim: usize,
        group: usize,
        keys: Vec<E>,
        values: Vec<E>,
        queries: Vec<E>,
        sight: Sight,
    }

    impl<E: Element> Case<E> {
        fn new(positions: usize, head_dim: usize, group: usize, sight: Sight) -> Case<E> {
            Case {
                head_dim,
                group,
                keys: random(positions * head_dim, 1),
                values: random(positions * head_dim, 2),
                queries: random(positions * group * head_dim, 3),
                sight,
            }
        }

        fn key_values(&self, to: usize) -> KeyValues<E> {
            let mut seen = KeyValues::new(self.head_dim);
            let rows = self.keys.chunks(self.head_dim).zip(self.values.chunks(self.head_dim));
            rows.take(to).for_each(|(key, value)| seen.push(key, value));
            seen
        }

        /// Queries at positions `from..to`.
        fn attend(&self, isa: Isa, seen: &KeyValues<E>, from: usize, to: usize) -> Vec<f32> {
            let size = self.group * self.head_dim;
            let queries = Queries { numbers: &self.queries[from * size..to * size], group: self.group, first: from };
            let mut out = Vec::new();
            attend(isa, queries, seen, self.sight, &mut Scratch::default(), |row, mixed, inverse| {
                assert_eq!(row * self.head_dim, out.len());
                out.extend(mixed.iter().map(|value| value * inverse));
            });
            out
        }

        /// In f64.
        fn plain(&self, position: usize, head: usize) -> Vec<f64> {
            let from = self.sight.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let query = &self.queries[(position * self.group + head) * self.head_dim..][..self.head_dim];
            let scores: Vec<f64> = (from..=position)
                .map(|key| {
                    let key = &self.keys[key * self.head_dim..][..self.head_dim];
                    let dot: f64 =
                        query.iter().zip(key).map(|(a, b)| f64::from(a.to_f32()) * f64::from(b.to_f32())).sum();
                    let score = dot * f64::from(self.sight.scale);
                    self.sight.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                })
                .collect();
            let sum: f64 = scores.iter().sum();
            (0..self.head_dim)
                .map(|column| {
                    let value = |key: usize| f64::from(self.values[(from + key) * self.head_dim + column].to_f32());
                    scores.iter().enumerate().map(|(key, score)| score / sum * value(key)).sum()
                })
                .collect()
        }
    }

    fn agrees<E: Element>(case: &Case<E>, positions: usize, tolerance: f64) {
        let seen = case.key_values(positions);
        for isa in Isa::supported() {
            let found = case.attend(isa, &seen, 0, positions);
            for (row, ours) in found.chunks(case.head_dim).enumerate() {
                for (ours, exact) in ours.iter().zip(case.plain(row / case.group, row % case.group)) {
                    assert!((f64::from(*ours) - exact).abs() < tolerance, "{isa:?} row {row}: {ours} {exact}");
                }
            }
        }
    }

    #[test]
    fn attention_agrees_with_its_formula() {
        let sight = Sight { scale: 0.3, soft_cap: None, window: None };
        for (positions, head_dim, group) in [(1, 64, 3), (65, 64, 3), (130, 16, 1), (70, 96, 2), (67, 6, 4)] {
            agrees(&Case::<f32>::new(positions, head_dim, group, sight), positions, 3e-6);
            agrees(&Case::<bf16>::new(positions, head_dim, group, sight), positions, 2e-2);
        }
        let windowed = Sight { window: Some(5), ..sight };
        agrees(&Case::<f32>::new(200, 8, 2, windowed), 200, 3e-6);
        let capped = Sight { soft_cap: Some(2.0), ..sight };
        agrees(&Case::<f32>::new(70, 8, 2, capped), 70, 3e-6);
    }

    #[test]
    fn a_query_has_the_same_bits_alone_and_among_others() {
        for window in [None, Some(70)] {
            let case = Case::<bf16>::new(150, 64, 3, Sight { scale: 0.125, soft_cap: None, window });
            for isa in Isa::supported() {
                let all = case.attend(isa, &case.key_values(150), 0, 150);
                let row = case.group * case.head_dim;
                for (from, to) in [(0, 1), (63, 66), (100, 150), (149, 150)] {
                    let alone = case.attend(isa, &case.key_values(to), from, to);
                    assert_eq!(alone, all[from * row..to * row], "{isa:?} {window:?} {from}..{to}");
                }
            }
        }
    }

    #[test]
    fn what_was_pushed_over_is_as_if_it_had_never_been() {
        let case = Case::<bf16>::new(100, 64, 1, Sight { scale: 0.125, soft_cap: None, window: None });
        let mut seen = case.key_values(70);
        let stray = random::<bf16>(64, 9);
        for _ in 0..40 {
            seen.push(&stray, &stray);
        }
        seen.truncate(70);
        let rows = case.keys.chunks(64).zip(case.values.chunks(64)).skip(70);
        rows.for_each(|(key, value)| seen.push(key, value));
        let isa = Isa::best();
        assert_eq!(case.attend(isa, &seen, 0, 100), case.attend(isa, &case.key_values(100), 0, 100));
        seen.truncate(75);
        assert_eq!(case.attend(isa, &seen, 0, 75), case.attend(isa, &case.key_values(75), 0, 75));
    }
}
