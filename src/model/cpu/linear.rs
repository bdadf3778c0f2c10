//! A linear at work: its frozen matrix and, where an adapter says so, a LoRA pair beside it.
//!
//! `y = x W^T + u B^T` with `u = scale * x A^T`: the pair is one more term of the same sums. Linears that read the same
//! input have their A made into one matrix, so that `x` is read once for all of them.

use anyhow::Result;

use super::workspace::take;
use crate::kernel::product::{Block, Kernels, Rows, Term, padded};
use crate::kernel::{Element, Matrix, Numbers, Shared, matrix, rows};
use crate::model::adapter::LoraPair;

/// The pairs of linears that read the same input, in the linears' order.
#[derive(Default)]
pub struct LowRank {
    a: Vec<f32>, // (ranks, inputs)
    inputs: usize,
    /// Columns of `u`.
    ranks: usize,
    pairs: Vec<Option<Pair>>,
}

struct Pair {
    /// Its first column of `u`.
    first: usize,
    rank: usize,
    scale: f32,
    b: Vec<f32>, // (outputs, rank)
    outputs: usize,
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
            let rank = pair.a.rows;
            low.pairs.push(Some(Pair { first: low.ranks, rank, scale: pair.scale, b: pair.b.values.clone(), outputs }));
            low.ranks += padded::<E>(rank);
            low.a.resize(low.ranks * inputs, 0.0);
        }
        Ok(low)
    }

    /// Fills `low` with `u`: (count, ranks).
    pub fn project<'a, E: Element>(
        &self,
        kernels: &Kernels<E>,
        x: Rows<E>,
        count: usize,
        low: &'a mut Vec<E>,
    ) -> Rows<'a, E> {
        let step = self.ranks;
        let low = take(low, count * step);
        if step > 0 {
            let out = Shared::new(low);
            let term = Term::along(x, held(&self.a, step, self.inputs));
            kernels.multiply(count, [&[term]], |block: Block<1>| {
                for (row, sums) in block.each_row(0) {
                    // SAFETY: every row and column is finished once.
                    let out = unsafe { out.part(row * step + block.columns.start..row * step + block.columns.end) };
                    let scaled = (block.columns.start..).zip(sums).map(|(column, sum)| sum * self.scale(column));
                    out.iter_mut().zip(scaled).for_each(|(out, value)| *out = E::from_f32(value));
                }
            });
        }
        Rows { numbers: low, step }
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
            terms.push(Term::along(rows, held(&pair.b, pair.outputs, pair.rank)));
        }
        terms
    }
}

fn held(values: &[f32], rows: usize, columns: usize) -> Matrix<'_> {
    Matrix { rows, columns, numbers: Numbers::F32(matrix::bytes_of(values)), rounded_to_f16: false }
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
