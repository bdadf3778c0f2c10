//! Products at every level of instructions against plain sums and each other, on odd shapes.

use std::sync::Mutex;

use half::bf16;

use super::*;
use crate::kernel::element::bytes_of;
use crate::kernel::rows::round;
use crate::kernel::{Numbers, nf4};
use crate::random::Random;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::named(seed, "kernel");
    (0..count).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
}

fn activations<E: Element>(values: &[f32], rows: usize, columns: usize) -> Vec<E> {
    let step = padded::<E>(columns);
    let mut out = vec![E::default(); rows * step];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        round(Isa::Portable, values, &mut out[row * step..][..columns]);
    }
    out
}

/// (count, outputs)
fn product<E: Element>(isa: Isa, count: usize, terms: &[Term<E>]) -> Vec<f32> {
    let outputs = terms[0].outputs();
    let out = Mutex::new(vec![f32::NAN; count * outputs]);
    Kernels::<E>::new(isa).multiply(count, [terms], |block: Block<1>| {
        let mut out = out.lock().unwrap();
        for (row, sums) in block.each_row(0) {
            out[row * outputs + block.columns.start..][..sums.len()].copy_from_slice(sums);
        }
    });
    out.into_inner().unwrap()
}

/// In f64, from the numbers as they are held.
fn plain<E: Element>(x: &[E], step: usize, count: usize, weight: &Matrix) -> Vec<f64> {
    let mut row = vec![0.0; weight.columns];
    let mut out = vec![0.0; count * weight.rows];
    for output in 0..weight.rows {
        weight.decode_row(Isa::Portable, output, 0, &mut row);
        for index in 0..count {
            let x = &x[index * step..][..weight.columns];
            let terms = x.iter().zip(&row).map(|(x, w)| f64::from(x.to_f32()) * f64::from(E::from_f32(*w).to_f32()));
            out[index * weight.rows + output] = terms.sum();
        }
    }
    out
}

fn agrees<E: Element>(count: usize, outputs: usize, columns: usize) {
    let (x, w) = (random(count * columns, 1), random(outputs * columns, 2));
    let x = activations::<E>(&x, count, columns);
    let step = padded::<E>(columns);
    let weight = Matrix { rows: outputs, columns, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
    let expected = plain(&x, step, count, &weight);
    let terms = [Term::along(Rows { numbers: &x, step }, weight)];
    let mut fused: Option<Vec<f32>> = None;
    for isa in Isa::supported() {
        let found = product(isa, count, &terms);
        for (ours, exact) in found.iter().zip(&expected) {
            let tolerance = 3e-6 * (columns as f64).sqrt();
            assert!((f64::from(*ours) - exact).abs() < tolerance, "{isa:?} {count} {outputs} {columns}");
        }
        if isa.arithmetic(E::GROUP == 2) == "fused" {
            assert_eq!(*fused.get_or_insert(found.clone()), found, "{isa:?}: the same bits");
        }
    }
}

#[test]
fn every_level_agrees_with_plain_sums_on_odd_shapes() {
    for count in [1, 5, 6, 7, 63, 65] {
        for outputs in [1, 5, 63, 64, 65] {
            for columns in [1, 5, 63, 65, 128] {
                agrees::<f32>(count, outputs, columns);
                agrees::<bf16>(count, outputs, columns);
            }
        }
    }
    agrees::<f32>(7, 65, 2 * DEPTH + 3);
    agrees::<bf16>(7, 65, 2 * 2 * DEPTH + 3);
}

#[test]
fn widened_numbers_have_the_bits_of_f32() {
    let (count, outputs, columns) = (13, 70, 2 * DEPTH + 30);
    let brains = activations::<bf16>(&random(count * columns, 13), count, columns);
    let wide: Vec<f32> = brains.iter().map(|number| number.to_f32()).collect();
    let w: Vec<f32> = random(outputs * columns, 14).iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
    let weight = Matrix { rows: outputs, columns, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
    for isa in Isa::supported().into_iter().filter(|isa| isa.arithmetic(true) == isa.arithmetic(false)) {
        let in_bf16 = product(isa, count, &[Term::along(Rows { numbers: &brains, step: columns }, weight)]);
        let in_f32 = product(isa, count, &[Term::along(Rows { numbers: &wide, step: columns }, weight)]);
        assert_eq!(in_bf16, in_f32, "{isa:?}");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let (count, outputs, columns) = (150, 130, 2000);
    let (x, w) = (random(count * columns, 3), random(outputs * columns, 4));
    let weight = Matrix { rows: outputs, columns, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
    for isa in Isa::supported() {
        let x = activations::<bf16>(&x, count, columns);
        let all = product(isa, count, &[Term::along(Rows { numbers: &x, step: columns }, weight)]);
        for (first, some) in [(0, 1), (7, 5), (100, 50), (149, 1)] {
            let rows = Rows { numbers: &x[first * columns..], step: columns };
            let alone = product(isa, some, &[Term::along(rows, weight)]);
            assert_eq!(alone, all[first * outputs..][..some * outputs], "{isa:?} {first} {some}");
        }
    }
}

#[test]
fn four_bits_multiply_as_what_they_decode_to() {
    let (count, outputs, columns) = (9, 70, 192);
    let x = activations::<bf16>(&random(count * columns, 5), count, columns);
    let packed: Vec<u8> = (0..outputs * columns / 2).map(|index| (index * 89 + 7) as u8).collect();
    let absmax: Vec<f32> = random(outputs * columns / 64, 6).iter().map(|value| value.abs()).collect();
    let numbers = Numbers::Nf4 { packed: &packed, absmax: nf4::Absmax::Plain(&absmax) };
    let quantized = Matrix { rows: outputs, columns, numbers, rounded_to_f16: false };
    let mut decoded = vec![0.0; outputs * columns];
    decoded.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| {
        quantized.decode_row(Isa::Portable, row, 0, out);
    });
    let plain = Matrix { numbers: Numbers::F32(bytes_of(&decoded)), ..quantized };
    for isa in Isa::supported() {
        let rows = Rows { numbers: &x[..], step: columns };
        let from_codes = product(isa, count, &[Term::along(rows, quantized)]);
        assert_eq!(from_codes, product(isa, count, &[Term::along(rows, plain)]), "{isa:?}");
    }
}

/// (rows, columns) to (columns, rows).
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

fn across_agrees<E: Element>(count: usize, outputs: usize, depth: usize) {
    let (x, w) = (random(count * depth, 1), random(depth * outputs, 2));
    let x = activations::<E>(&x, count, depth);
    let rows = Rows { numbers: &x[..], step: padded::<E>(depth) };
    let matrix = |rows, columns, values| Matrix {
        rows,
        columns,
        numbers: Numbers::F32(bytes_of::<f32>(values)),
        rounded_to_f16: false,
    };
    let turned = turned(&w, outputs);
    for isa in Isa::supported() {
        let across = product(isa, count, &[Term::across(rows, matrix(depth, outputs, &w))]);
        let along = product(isa, count, &[Term::along(rows, matrix(outputs, depth, &turned))]);
        assert_eq!(across, along, "{isa:?} {count} {outputs} {depth}");
    }
}

#[test]
fn across_a_matrix_is_along_the_turned_one() {
    for count in [1, 7] {
        for outputs in [1, 63, 65, 130] {
            for depth in [1, 2, 5, 64, 129, 4 * DEPTH + 3] {
                across_agrees::<f32>(count, outputs, depth);
                across_agrees::<bf16>(count, outputs, depth);
            }
        }
    }
}

#[test]
fn across_four_bits_and_blocks_is_across_what_they_decode_to() {
    let (count, rows, columns) = (5, 66, 192);
    let x = activations::<bf16>(&random(count * rows, 5), count, rows);
    let x = Rows { numbers: &x[..], step: padded::<bf16>(rows) };
    let packed: Vec<u8> = (0..rows * columns / 2).map(|index| (index * 89 + 7) as u8).collect();
    let absmax: Vec<f32> = random(rows * columns / 64, 6).iter().map(|value| value.abs()).collect();
    let codes = Numbers::Nf4 { packed: &packed, absmax: nf4::Absmax::Plain(&absmax) };
    // Blocks of 96 bytes that are 96 numbers each.
    let decode = |bytes: &[u8], out: &mut [f32]| out.iter_mut().zip(bytes).for_each(|(out, b)| *out = f32::from(*b));
    let bytes: Vec<u8> = (0..rows * columns).map(|index| (index * 37) as u8).collect();
    let blocks = Numbers::Blocks { bytes: &bytes, blocks: crate::kernel::Blocks { count: 96, bytes: 96, decode } };
    for numbers in [codes, blocks] {
        let stored = Matrix { rows, columns, numbers, rounded_to_f16: false };
        let mut decoded = vec![0.0; rows * columns];
        let lines = decoded.chunks_exact_mut(columns).enumerate();
        lines.for_each(|(row, out)| stored.decode_row(Isa::Portable, row, 0, out));
        let plain = Matrix { numbers: Numbers::F32(bytes_of(&decoded)), ..stored };
        for isa in Isa::supported() {
            let found = product(isa, count, &[Term::across(x, stored)]);
            assert_eq!(found, product(isa, count, &[Term::across(x, plain)]), "{isa:?}");
        }
    }
}

#[test]
fn terms_add_up() {
    let (x, w) = ([1.0f32, 2.0, 3.0], [1.0, 1.0, 1.0, 0.5, 0.0, -1.0]);
    let first = Matrix { rows: 2, columns: 3, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
    let (low, b) = ([10.0f32], [1.0, 2.0]);
    let second = Matrix { rows: 2, columns: 1, numbers: Numbers::F32(bytes_of(&b)), rounded_to_f16: false };
    let terms = [
        Term::along(Rows { numbers: &x[..], step: 3 }, first),
        Term::along(Rows { numbers: &low[..], step: 1 }, second),
    ];
    assert_eq!(product(Isa::best(), 1, &terms), [6.0 + 10.0, 0.5 - 3.0 + 20.0]);
}

/// Heads of `together` columns, of three matrices of so many heads each: (rows, columns) by matrix.
fn beside(isa: Isa, count: usize, together: usize, matrices: &[Matrix; 3], x: &[bf16], step: usize) -> [Vec<f32>; 3] {
    let out = matrices.map(|matrix| Mutex::new(vec![f32::NAN; count * matrix.rows]));
    let terms = matrices.map(|matrix| [Term::along(Rows { numbers: x, step }, matrix)]);
    let sets = terms.each_ref().map(|terms| [&terms[..]]);
    Kernels::<bf16>::new(isa).multiply_beside(count, together, &sets, |which, mut sums| {
        assert_eq!((sums.columns.start % together, sums.columns.end % together), (0, 0), "whole heads");
        let mut out = out[which].lock().unwrap();
        for first in sums.columns.clone().step_by(together) {
            for row in sums.rows.clone() {
                let at = row * matrices[which].rows + first;
                out[at..at + together].copy_from_slice(sums.line(row, first..first + together));
            }
        }
    });
    out.map(|out| out.into_inner().unwrap())
}

#[test]
fn products_side_by_side_are_those_alone() {
    let (count, columns) = (101, 66);
    for (together, depth) in
        [(64, columns), (128, columns), (96, columns), (80, columns), (24, columns), (96, 5 * DEPTH)]
    {
        let x = activations::<bf16>(&random(count * depth, 7), count, depth);
        let heads = [5, 2, 2].map(|heads| heads * together);
        let numbers = [0, 1, 2].map(|which| random(heads[which] * depth, 8 + which as u64));
        let matrix = |which: usize| Matrix {
            rows: heads[which],
            columns: depth,
            numbers: Numbers::F32(bytes_of(&numbers[which])),
            rounded_to_f16: false,
        };
        let matrices = [0, 1, 2].map(matrix);
        for isa in Isa::supported() {
            let found = beside(isa, count, together, &matrices, &x, depth);
            for (found, matrix) in found.iter().zip(matrices) {
                let alone = product(isa, count, &[Term::along(Rows { numbers: &x[..], step: depth }, matrix)]);
                assert_eq!(*found, alone, "{isa:?}, heads of {together}");
            }
        }
    }
}
