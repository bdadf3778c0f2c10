//! Pairs of several linears in one: of a layer's experts, as transformers 5 and newer PEFT store them, and of Phi-3's
//! `qkv_proj` and `gate_up_proj`, whose parts are rows of B.
//!
//! In transformers 5 the experts are two 3-D parameters, `gate_up_proj` (w1 over w3) and `down_proj` (w2), and LoRA on one of them is
//! A (experts * rank, inputs), expert after expert, and B (outputs, rank * experts), the expert running fastest
//! (peft 0.17.1, `ParamWrapper.get_delta_weight`). Split, they are ordinary pairs per expert with the same product.

use std::ops::Range;

use super::Matrix;

/// A and B of one linear.
pub type Factors = (Matrix, Matrix);

/// What is `expert`'s of all experts' A (experts * rank, inputs) and B (outputs, rank * experts): A (rank, inputs) and
/// B (outputs, rank).
pub fn of_expert((a, b): &Factors, experts: usize, expert: usize) -> Factors {
    debug_assert!(a.rows.is_multiple_of(experts) && a.rows == b.columns);
    let rank = a.rows / experts;
    let own = b.values.chunks_exact(b.columns).flat_map(|row| row.iter().skip(expert).step_by(experts).copied());
    let own = Matrix { rows: b.rows, columns: rank, values: own.collect() };
    (rows(a, expert * rank..(expert + 1) * rank), own)
}

/// The pair of `gate_up_proj` of one expert as those of w1 and w3, with the same products.
///
/// Both keep all of A, except where the halves are blocks (an adapter made from pairs of w1 and w3): then each keeps its
/// own half, and the old pairs come back.
pub fn gate_and_up((a, b): Factors) -> (Factors, Factors) {
    let (gate, up) = (rows(&b, 0..b.rows / 2), rows(&b, b.rows / 2..b.rows));
    let half = a.rows / 2;
    let blocks = a.rows.is_multiple_of(2)
        && half > 0
        && is_zero(&columns(&gate, half..a.rows))
        && is_zero(&columns(&up, 0..half));
    if !blocks {
        return ((a.clone(), gate), (a, up));
    }
    let w1 = (rows(&a, 0..half), columns(&gate, 0..half));
    let w3 = (rows(&a, half..a.rows), columns(&up, half..a.rows));
    (w1, w3)
}

/// Of the pair of stacked linears, what is the linear's whose outputs are `range`: all of A, its rows of B.
pub fn by_rows((a, b): Factors, range: Range<usize>) -> Factors {
    let own = rows(&b, range);
    (a, own)
}

fn rows(matrix: &Matrix, range: Range<usize>) -> Matrix {
    let values = matrix.values[range.start * matrix.columns..range.end * matrix.columns].to_vec();
    Matrix { rows: range.len(), columns: matrix.columns, values }
}

fn columns(matrix: &Matrix, range: Range<usize>) -> Matrix {
    let kept = matrix.values.chunks_exact(matrix.columns).flat_map(|row| row[range.clone()].to_vec());
    Matrix { rows: matrix.rows, columns: range.len(), values: kept.collect() }
}

fn is_zero(matrix: &Matrix) -> bool {
    matrix.values.iter().all(|&value| value == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
        Matrix { rows, columns, values: values.to_vec() }
    }

    #[test]
    fn experts_lie_in_blocks_of_a_and_every_so_many_columns_of_b() {
        // Two experts of rank 2, one input, one output: the columns of B are (rank 0: e0 e1, rank 1: e0 e1).
        let all = (matrix(4, 1, &[1., 2., 3., 4.]), matrix(1, 4, &[10., 20., 30., 40.]));
        assert_eq!(of_expert(&all, 2, 0), (matrix(2, 1, &[1., 2.]), matrix(1, 2, &[10., 30.])));
        assert_eq!(of_expert(&all, 2, 1), (matrix(2, 1, &[3., 4.]), matrix(1, 2, &[20., 40.])));
    }

    #[test]
    fn stacked_linears_share_a_and_cut_b() {
        let stacked = (matrix(1, 2, &[1., 2.]), matrix(3, 1, &[3., 4., 5.]));
        assert_eq!(by_rows(stacked.clone(), 0..2), (stacked.0.clone(), matrix(2, 1, &[3., 4.])));
        assert_eq!(by_rows(stacked.clone(), 2..3), (stacked.0, matrix(1, 1, &[5.])));
    }

    #[test]
    fn blocks_become_their_own_pairs_and_others_keep_all_of_a() {
        let a = matrix(2, 1, &[5., 6.]);
        let (w1, w3) = gate_and_up((a.clone(), matrix(2, 2, &[7., 0., 0., 8.])));
        assert_eq!(w1, (matrix(1, 1, &[5.]), matrix(1, 1, &[7.])));
        assert_eq!(w3, (matrix(1, 1, &[6.]), matrix(1, 1, &[8.])));
        let (w1, w3) = gate_and_up((a.clone(), matrix(2, 2, &[7., 1., 2., 8.])));
        assert_eq!(w1, (a.clone(), matrix(1, 2, &[7., 1.])));
        assert_eq!(w3, (a, matrix(1, 2, &[2., 8.])));
    }
}
