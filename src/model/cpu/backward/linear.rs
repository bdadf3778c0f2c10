//! Back through a linear and its LoRA pair. With `y = x W^T + u B^T` and `u = scale * x A^T`, and `g` the gradient of `y`:
//! that of `u` is `g B`, of B `g^T u`, of A `v^T x` with `v = scale * g B`, and of `x` `g W + v A`. The frozen matrix has none.
//!
//! Sums over tokens are made micro-batch by micro-batch, in units of so many rows that are added in order, so they do not
//! depend on which walk together.

use std::ops::Range;

use crate::kernel::product::{Block, Kernels, Rows, Term, padded};
use crate::kernel::{Element, Lines, Matrix, Shared};
use crate::model::cpu::linear::{LowRank, Pair, Span, drop_rows};
use crate::model::training::PairGradient;

/// What the pairs of linears that read the same input have seen, each (rows, ...).
#[derive(Clone, Copy)]
pub struct Seen<'a, E> {
    pub x: Rows<'a, E>,
    pub u: Rows<'a, E>,
    /// The gradients of the linears' outputs, by place.
    pub g: &'a [Rows<'a, E>],
    pub v: Rows<'a, E>,
    pub spans: &'a [Span],
}

/// Buffers of one walk.
#[derive(Default)]
pub struct Scratch<E> {
    turned: Lines<E>,  // (ranks, rows filled up to whole groups)
    dropped: Lines<E>, // (rows, inputs)
}

impl LowRank {
    /// Makes `v` of `count` rows: (count, ranks).
    pub fn back<'a, E: Element>(
        &self,
        kernels: &Kernels<E>,
        g: &[Rows<E>],
        count: usize,
        v: &'a mut Lines<E>,
    ) -> Rows<'a, E> {
        let step = self.ranks;
        let v = v.take(count * step);
        v.fill(E::default());
        let out = Shared::new(v);
        for (pair, g) in self.pairs.iter().zip(g).filter_map(|(pair, g)| Some((pair.as_ref()?, g))) {
            kernels.multiply(count, [&[Term::across(*g, pair.b())]], |block: Block<1>| {
                for (row, sums) in block.each_row(0) {
                    let start = row * step + pair.first + block.columns.start;
                    // SAFETY: every row and column is finished once.
                    let out = unsafe { out.part(start..start + sums.len()) };
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::from_f32(sum * pair.scale));
                }
            });
        }
        Rows { numbers: &v[..], step }
    }

    /// The terms of the gradient of `x`: through the frozen matrices, and through the pairs where nothing was dropped.
    pub fn terms_back<'a, E: Element>(
        &'a self,
        weights: &[Matrix<'a>],
        g: &[Rows<'a, E>],
        v: Rows<'a, E>,
        spans: &[Span],
    ) -> Vec<Term<'a, E>> {
        let mut terms: Vec<Term<E>> = g.iter().zip(weights).map(|(g, weight)| Term::across(*g, *weight)).collect();
        if self.ranks > 0 && !drops(spans) {
            terms.push(Term::across(v, self.a_of(0..self.ranks)));
        }
        terms
    }

    /// Where inputs were dropped: adds what comes back through the pairs to rows of `out`, (rows, inputs); `rows_of` says
    /// which (`None`: all in order).
    pub fn add_dropped<E: Element>(
        &self,
        kernels: &Kernels<E>,
        v: Rows<E>,
        count: usize,
        spans: &[Span],
        rows_of: Option<&[usize]>,
        out: &mut [f32],
    ) {
        if !drops(spans) {
            return;
        }
        let out = Shared::new(out);
        for pair in self.pairs.iter().flatten() {
            let of_pair = Rows { numbers: &v.numbers[pair.first..], step: v.step };
            let term = Term::across(of_pair, self.a_of(pair.first..pair.first + pair.rank));
            kernels.multiply(count, [&[term]], |block: Block<1>| {
                for (row, sums) in block.each_row(0) {
                    let start = rows_of.map_or(row, |rows| rows[row]) * self.inputs + block.columns.start;
                    // SAFETY: no two rows are the same one of `out`, and every column is finished once.
                    let out = unsafe { out.part(start..start + sums.len()) };
                    add_factored(&pair.module, spans, row, self.inputs, (block.columns.start, sums), out);
                }
            });
        }
    }

    /// Adds the gradients of the pairs to `sums`, by place.
    pub fn collect<E: Element>(
        &self,
        kernels: &Kernels<E>,
        seen: Seen<E>,
        sums: &mut [Option<PairGradient>],
        scratch: &mut Scratch<E>,
    ) {
        for (span, unit) in seen.spans.iter().flat_map(|span| span.units().map(move |unit| (span, unit))) {
            match span.dropout {
                None => self.collect_a(kernels, seen, (span, &unit), 0..self.ranks, sums, scratch),
                Some(_) => {
                    for pair in self.pairs.iter().flatten() {
                        let ranks = pair.first..pair.first + pair.rank;
                        self.collect_a(kernels, seen, (span, &unit), ranks, sums, scratch);
                    }
                }
            }
            for (place, pair) in self.pairs.iter().enumerate() {
                if let (Some(pair), Some(sum)) = (pair, &mut sums[place]) {
                    collect_b(kernels, pair, (seen.u, seen.g[place]), &unit, sum, &mut scratch.turned);
                }
            }
        }
    }

    /// Adds one unit's `v^T x` to the sums of the pairs that own these ranks: all that read the same `x`, or one
    /// whose `x` was thinned out.
    fn collect_a<E: Element>(
        &self,
        kernels: &Kernels<E>,
        seen: Seen<E>,
        (span, unit): (&Span, &Range<usize>),
        ranks: Range<usize>,
        sums: &mut [Option<PairGradient>],
        scratch: &mut Scratch<E>,
    ) {
        if ranks.is_empty() {
            return;
        }
        let Scratch { turned, dropped } = scratch;
        let own = |pair: &Pair| ranks.contains(&pair.first);
        let x = match (span.dropout, self.pairs.iter().flatten().find(|pair| own(pair))) {
            (Some(_), Some(pair)) => {
                let dropped = dropped.take(unit.len() * self.inputs);
                drop_rows(&pair.module, seen.x, span, unit, dropped);
                matrix(dropped, unit.len(), self.inputs)
            }
            _ => part(seen.x, unit, self.inputs),
        };
        let turned = turn(seen.v, unit, ranks.clone(), turned);
        let owned = self.pairs.iter().zip(sums).filter_map(|(pair, sum)| Some((pair.as_ref()?, sum.as_mut()?)));
        let owned: Vec<(&Pair, Shared<f32>)> =
            owned.filter(|(pair, _)| own(pair)).map(|(pair, sum)| (pair, Shared::new(&mut sum.a.values))).collect();
        kernels.multiply(ranks.len(), [&[Term::across(turned, x)]], |block: Block<1>| {
            for (rank, found) in block.each_row(0) {
                let rank = ranks.start + rank;
                let of_rank = |(pair, _): &&(&Pair, Shared<f32>)| (pair.first..pair.first + pair.rank).contains(&rank);
                let Some((pair, sum)) = owned.iter().find(of_rank) else { continue }; // what fills up a group
                let start = (rank - pair.first) * self.inputs + block.columns.start;
                // SAFETY: every rank and column is finished once.
                let sum = unsafe { sum.part(start..start + found.len()) };
                sum.iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
            }
        });
    }
}

/// Adds one unit's `g^T u` to the sum of a pair's B.
fn collect_b<E: Element>(
    kernels: &Kernels<E>,
    pair: &Pair,
    (u, g): (Rows<E>, Rows<E>),
    unit: &Range<usize>,
    sum: &mut PairGradient,
    turned: &mut Lines<E>,
) {
    let turned = turn(u, unit, pair.first..pair.first + pair.rank, turned);
    let (outputs, sum) = (sum.b.rows, Shared::new(&mut sum.b.values));
    kernels.multiply(pair.rank, [&[Term::across(turned, part(g, unit, outputs))]], |block: Block<1>| {
        for (rank, sums) in block.each_row(0) {
            for (output, value) in (block.columns.start..).zip(sums) {
                let at = output * pair.rank + rank;
                // SAFETY: every rank and output is finished once.
                unsafe { sum.part(at..at + 1)[0] += value };
            }
        }
    });
}

/// Adds to `out` the numbers of a row from a column on, each times the factor that its input had.
pub fn add_factored(
    module: &str,
    spans: &[Span],
    row: usize,
    inputs: usize,
    (column, numbers): (usize, &[f32]),
    out: &mut [f32],
) {
    let span = spans.iter().find(|span| span.rows.contains(&row)).expect("every row is of a micro-batch");
    let first = (span.first + row - span.rows.start) * inputs + column;
    match span.dropout.map(|dropout| dropout.factors(module)) {
        None => out.iter_mut().zip(numbers).for_each(|(out, number)| *out += number),
        Some(factors) => {
            let numbers = numbers.iter().enumerate().map(|(index, number)| number * factors.at(first + index));
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out += number);
        }
    }
}

pub fn drops(spans: &[Span]) -> bool {
    spans.iter().any(|span| span.dropout.is_some())
}

/// Numbers in memory as a matrix.
fn matrix<E: Element>(numbers: &[E], rows: usize, columns: usize) -> Matrix<'_> {
    Matrix { rows, columns, numbers: E::numbers(&numbers[..rows * columns]), rounded_to_f16: false }
}

/// Some rows, which lie one after the other, as a matrix.
fn part<'a, E: Element>(rows: Rows<'a, E>, range: &Range<usize>, columns: usize) -> Matrix<'a> {
    assert_eq!(rows.step, columns, "rows that lie apart are no matrix");
    matrix(&rows.numbers[range.start * columns..], range.len(), columns)
}

/// Some columns of some rows, turned: (columns, rows filled up to whole groups).
fn turn<'a, E: Element>(
    rows: Rows<E>,
    range: &Range<usize>,
    columns: Range<usize>,
    out: &'a mut Lines<E>,
) -> Rows<'a, E> {
    let step = padded::<E>(range.len());
    let turned = out.take(columns.len() * step);
    turned.fill(E::default());
    for (index, row) in range.clone().enumerate() {
        let values = &rows.numbers[row * rows.step + columns.start..][..columns.len()];
        values.iter().enumerate().for_each(|(column, value)| turned[column * step + index] = *value);
    }
    Rows { numbers: &turned[..], step }
}
