//! Pairs of several linears in one: of a layer's experts, as transformers 5 and newer PEFT store them, and of Phi-3's
//! `qkv_proj` and `gate_up_proj`, whose parts are rows of B.
//!
//! In transformers 5 the experts are two 3-D parameters, `gate_up_proj` (w1 over w3) and `down_proj` (w2), and LoRA on one of them is
//! A (experts * rank, inputs), expert after expert, and B (outputs, rank * experts), the expert running fastest
//! (peft 0.17.1, `ParamWrapper.get_delta_weight`). Split, they are ordinary pairs per expert with the same product.

use anyhow::{Result, ensure};

use super::Matrix;

/// A and B of one linear.
pub type Factors = (Matrix, Matrix);

/// One (A, B) per expert: A (rank, inputs), B (outputs, rank).
pub fn per_expert(a: &Matrix, b: &Matrix, experts: usize) -> Result<Vec<Factors>> {
    ensure!(
        a.rows > 0 && a.rows.is_multiple_of(experts) && a.rows == b.columns,
        "A has {} rows and B {} columns, which is not one rank for each of {experts} experts",
        a.rows,
        b.columns
    );
    let rank = a.rows / experts;
    let rows = rank * a.columns;
    let split = |expert: usize| {
        let own_a = a.values[expert * rows..(expert + 1) * rows].to_vec();
        let own_b = b.values.chunks_exact(b.columns).flat_map(|row| row.iter().skip(expert).step_by(experts).copied());
        (
            Matrix { rows: rank, columns: a.columns, values: own_a },
            Matrix { rows: b.rows, columns: rank, values: own_b.collect() },
        )
    };
    Ok((0..experts).map(split).collect())
}

/// The pair of `gate_up_proj` of one expert as those of w1 and w3, with the same products.
///
/// Both keep all of A, except where the halves are blocks (an adapter made from pairs of w1 and w3): then each keeps its
/// own half, and the old pairs come back.
pub fn gate_and_up((a, b): Factors) -> Result<(Factors, Factors)> {
    ensure!(b.rows.is_multiple_of(2), "B has {} rows, an odd number for w1 over w3", b.rows);
    let (gate, up) = (rows(&b, 0..b.rows / 2), rows(&b, b.rows / 2..b.rows));
    let half = a.rows / 2;
    let blocks = a.rows.is_multiple_of(2)
        && half > 0
        && is_zero(&columns(&gate, half..a.rows))
        && is_zero(&columns(&up, 0..half));
    if !blocks {
        return Ok(((a.clone(), gate), (a, up)));
    }
    let w1 = (rows(&a, 0..half), columns(&gate, 0..half));
    let w3 = (rows(&a, half..a.rows), columns(&up, half..a.rows));
    Ok((w1, w3))
}

/// The pair of stacked linears, which have `outputs` rows each, as one pair for each: all keep A, each its rows of B.
pub fn by_rows((a, b): Factors, outputs: &[usize]) -> Result<Vec<Factors>> {
    let all: usize = outputs.iter().sum();
    ensure!(b.rows == all, "B has {} rows, but its linears have {outputs:?}", b.rows);
    let mut start = 0;
    let part = |&count: &usize| {
        start += count;
        (a.clone(), rows(&b, start - count..start))
    };
    Ok(outputs.iter().map(part).collect())
}

fn rows(matrix: &Matrix, range: std::ops::Range<usize>) -> Matrix {
    let values = matrix.values[range.start * matrix.columns..range.end * matrix.columns].to_vec();
    Matrix { rows: range.len(), columns: matrix.columns, values }
}

fn columns(matrix: &Matrix, range: std::ops::Range<usize>) -> Matrix {
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
        let split = per_expert(&matrix(4, 1, &[1., 2., 3., 4.]), &matrix(1, 4, &[10., 20., 30., 40.]), 2).unwrap();
        assert_eq!(split[0], (matrix(2, 1, &[1., 2.]), matrix(1, 2, &[10., 30.])));
        assert_eq!(split[1], (matrix(2, 1, &[3., 4.]), matrix(1, 2, &[20., 40.])));
    }

    #[test]
    fn a_rank_that_no_expert_fits_is_refused() {
        assert!(per_expert(&Matrix::zeros(3, 1), &Matrix::zeros(1, 3), 2).is_err());
        assert!(per_expert(&Matrix::zeros(4, 1), &Matrix::zeros(1, 2), 2).is_err());
    }

    #[test]
    fn stacked_linears_share_a_and_cut_b() {
        let (a, b) = (matrix(1, 2, &[1., 2.]), matrix(3, 1, &[3., 4., 5.]));
        let parts = by_rows((a.clone(), b.clone()), &[2, 1]).unwrap();
        assert_eq!(parts, [(a.clone(), matrix(2, 1, &[3., 4.])), (a.clone(), matrix(1, 1, &[5.]))]);
        assert!(by_rows((a, b), &[2, 2]).is_err());
    }

    #[test]
    fn blocks_become_their_own_pairs_and_others_keep_all_of_a() {
        let a = matrix(2, 1, &[5., 6.]);
        let (w1, w3) = gate_and_up((a.clone(), matrix(2, 2, &[7., 0., 0., 8.]))).unwrap();
        assert_eq!(w1, (matrix(1, 1, &[5.]), matrix(1, 1, &[7.])));
        assert_eq!(w3, (matrix(1, 1, &[6.]), matrix(1, 1, &[8.])));
        let (w1, w3) = gate_and_up((a.clone(), matrix(2, 2, &[7., 1., 2., 8.]))).unwrap();
        assert_eq!(w1, (a.clone(), matrix(1, 2, &[7., 1.])));
        assert_eq!(w3, (a.clone(), matrix(1, 2, &[2., 8.])));
        assert!(gate_and_up((a, Matrix::zeros(3, 2))).is_err());
    }
}
