//! A linear at work: its frozen matrix and, where an adapter says so, a LoRA pair beside it.
//!
//! `y = x W^T + u B^T` with `u = scale * x A^T`: the pair is one more term of the same sums. Linears that read the same
//! input have their A made into one matrix, so that `x` is read once for all of them.

use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;

use super::workspace::{Low, ROWS_A_TASK};
use crate::kernel::product::{Block, Kernels, Rows, Term, padded};
use crate::kernel::{Element, Matrix, Numbers, Shared, bytes_of, rows};
use crate::model::adapter::LoraPair;
use crate::model::dropout::Dropout;

/// The pairs of linears that read the same input, in the linears' order.
#[derive(Default)]
pub struct LowRank {
    pub a: Vec<f32>, // (ranks, inputs)
    pub inputs: usize,
    /// Columns of `u`.
    pub ranks: usize,
    pub pairs: Vec<Option<Pair>>,
}

pub struct Pair {
    pub module: String,
    /// Its first column of `u`.
    pub first: usize,
    pub rank: usize,
    pub scale: f32,
    b: Vec<f32>, // (outputs, rank)
    outputs: usize,
}

/// Rows of a linear's input that are of one micro-batch, when training. Scoring has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub rows: Range<usize>,
    /// How many of the micro-batch's rows stand before them, in an earlier part of the input.
    pub first: usize,
    /// Drops some of what LoRA pairs read.
    pub dropout: Option<Dropout>,
}

/// Rows whose gradients are summed in one go: a sum over a micro-batch is made of such parts, wherever it is cut.
pub(super) const UNIT: usize = 1024;

impl Span {
    /// Its parts, whose sums are added in order.
    pub fn units(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.rows.end;
        self.rows.clone().step_by(UNIT).map(move |start| start..end.min(start + UNIT))
    }
}

/// Runs of rows that go through an expert together: whole units of the spans, as many as one has at most.
pub fn runs(spans: &[Span]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for unit in spans.iter().flat_map(Span::units) {
        match runs.last_mut().filter(|run| unit.end - run.start <= UNIT) {
            Some(run) => run.end = unit.end,
            None => runs.push(unit),
        }
    }
    runs
}

impl LowRank {
    /// `linears`: the shapes (outputs, inputs) of linears that read the same input, each with its pair.
    pub fn new<E: Element>(linears: &[([usize; 2], Option<&LoraPair>)]) -> Result<LowRank> {
        let mut low = LowRank::default();
        for &([outputs, inputs], pair) in linears {
            low.inputs = inputs;
            let Some(pair) = pair else {
                low.pairs.push(None);
                continue;
            };
            pair.check(inputs, outputs)?;
            low.a.extend_from_slice(&pair.a.values);
            let (module, rank) = (pair.module.clone(), pair.a.rows);
            let (first, scale, b) = (low.ranks, pair.scale, pair.b.values.clone());
            low.pairs.push(Some(Pair { module, first, rank, scale, b, outputs }));
            low.ranks += padded::<E>(rank);
            low.a.resize(low.ranks * inputs, 0.0);
        }
        Ok(low)
    }

    /// Bytes of the numbers.
    pub fn bytes(&self) -> usize {
        4 * (self.a.len() + self.pairs.iter().flatten().map(|pair| pair.b.len()).sum::<usize>())
    }

    /// Makes `u`: (count, ranks). `spans` say what is dropped of `x` before.
    pub fn project<'a, E: Element>(
        &self,
        kernels: &Kernels<E>,
        x: Rows<E>,
        count: usize,
        spans: &[Span],
        low: &'a mut Low<E>,
    ) -> Rows<'a, E> {
        let step = self.ranks;
        let u = low.u.take(count * step);
        if spans.iter().all(|span| span.dropout.is_none()) {
            if step > 0 {
                self.fill(kernels, x, count, 0..step, u);
            }
        } else {
            u.fill(E::default());
            for pair in self.pairs.iter().flatten() {
                let dropped = low.dropped.take(count * self.inputs);
                drop_some(&pair.module, x, spans, dropped);
                let dropped = Rows { numbers: &dropped[..], step: self.inputs };
                self.fill(kernels, dropped, count, pair.first..pair.first + pair.rank, u);
            }
        }
        Rows { numbers: u, step }
    }

    /// Fills some columns of `u`.
    fn fill<E: Element>(&self, kernels: &Kernels<E>, x: Rows<E>, count: usize, columns: Range<usize>, u: &mut [E]) {
        let (step, out) = (self.ranks, Shared::new(u));
        kernels.multiply(count, [&[Term::along(x, self.a_of(columns.clone()))]], |block: Block<1>| {
            let first = columns.start + block.columns.start;
            for (row, sums) in block.each_row(0) {
                // SAFETY: every row and column is finished once.
                let out = unsafe { out.part(row * step + first..row * step + first + sums.len()) };
                let scaled = (first..).zip(sums).map(|(column, sum)| sum * self.scale(column));
                out.iter_mut().zip(scaled).for_each(|(out, value)| *out = E::from_f32(value));
            }
        });
    }

    /// Rows of the pairs' A.
    pub fn a_of(&self, ranks: Range<usize>) -> Matrix<'_> {
        held(&self.a[ranks.start * self.inputs..ranks.end * self.inputs], ranks.len(), self.inputs)
    }

    /// The scale of a column of `u`.
    fn scale(&self, column: usize) -> f32 {
        let of_column = |pair: &&Pair| (pair.first..pair.first + pair.rank).contains(&column);
        self.pairs.iter().flatten().find(of_column).map_or(0.0, |pair| pair.scale)
    }

    /// The terms of the linear at `place`: its frozen matrix on `x`, and its pair's B on `u`.
    pub fn terms<'a, E: Element>(
        &'a self,
        place: usize,
        x: Rows<'a, E>,
        weight: Matrix<'a>,
        low: Rows<'a, E>,
    ) -> Vec<Term<'a, E>> {
        let mut terms = vec![Term::along(x, weight)];
        if let Some(Some(pair)) = self.pairs.get(place) {
            let rows = Rows { numbers: &low.numbers[pair.first..], step: low.step };
            terms.push(Term::along(rows, pair.b()));
        }
        terms
    }
}

impl Pair {
    /// (outputs, rank)
    pub fn b(&self) -> Matrix<'_> {
        held(&self.b, self.outputs, self.rank)
    }
}

/// The spans of an expert's input, which is made of the given rows, in order.
pub fn spans_of(spans: &[Span], rows: &[usize]) -> Vec<Span> {
    let behind = |row: usize| rows.partition_point(|&found| found < row);
    let of = |span: &Span| Span { rows: behind(span.rows.start)..behind(span.rows.end), ..span.clone() };
    spans.iter().map(of).collect()
}

/// The spans of a part of the input.
pub fn within(spans: &[Span], part: &Range<usize>) -> Vec<Span> {
    let clip = |span: &Span| {
        let rows = span.rows.start.max(part.start)..span.rows.end.min(part.end);
        let first = span.first + rows.start - span.rows.start;
        (!rows.is_empty()).then(|| Span { rows: rows.start - part.start..rows.end - part.start, first, ..span.clone() })
    };
    spans.iter().filter(|span| span.rows.start < part.end && part.start < span.rows.end).filter_map(clip).collect()
}

/// `x` with what the linear `module` drops at 0 and the rest scaled up. `out`: (rows, inputs).
fn drop_some<E: Element>(module: &str, x: Rows<E>, spans: &[Span], out: &mut [E]) {
    for span in spans {
        drop_rows(module, x, span, &span.rows, &mut out[span.rows.start * x.step..span.rows.end * x.step]);
    }
}

/// Some rows of a span. `out`: (rows, inputs).
pub fn drop_rows<E: Element>(module: &str, x: Rows<E>, span: &Span, rows: &Range<usize>, out: &mut [E]) {
    let x = &x.numbers[rows.start * x.step..rows.end * x.step];
    let Some(dropout) = span.dropout else { return out.copy_from_slice(x) };
    if rows.is_empty() {
        return;
    }
    let (factors, inputs) = (dropout.factors(module), x.len() / rows.len());
    let (first, size) = ((span.first + rows.start - span.rows.start) * inputs, ROWS_A_TASK * inputs);
    out.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(task, (out, x))| {
        for (index, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = E::from_f32(x.to_f32() * factors.at(first + task * size + index));
        }
    });
}

fn held(values: &[f32], rows: usize, columns: usize) -> Matrix<'_> {
    Matrix { rows, columns, numbers: Numbers::F32(bytes_of(values)), rounded_to_f16: false }
}

/// Adds a product's sums to rows of `width` numbers.
pub fn add_to<E: Element>(kernels: &Kernels<E>, count: usize, terms: &[Term<E>], out: &mut [f32], width: usize) {
    let out = Shared::new(out);
    kernels.multiply(count, [terms], |Block { rows, columns, sums: [sums] }: Block<1>| {
        // SAFETY: every row and column is finished once.
        let out = unsafe { out.strip(rows.start * width + columns.start, width, rows.len(), columns.len()) };
        rows::add_block(kernels.isa, sums, out);
    });
}
