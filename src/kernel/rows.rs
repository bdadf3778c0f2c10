//! Row operations between products: norm, rotation, gates, residuals. Some work on whole rows, some on the block of sums
//! that a product has just finished ((rows, 64), see [`super::product::Block`]).

use super::element::fill;
use super::isa::for_every_isa;
use super::math::{gelu_tanh, silu};
use super::tile::WIDTH;
use super::{Element, Strip};

/// Sums that are made side by side: fixed, so that the order of additions is.
pub(super) const LANES: usize = 8;

for_every_isa! {
    /// `weight * x / sqrt(mean(x^2) + eps)` of one row, the mean in f64 (61 norms later an f32 sum shows in the fourth
    /// digit of a log-likelihood).
    pub fn rms_norm<E: Element>(x: &[f32], weight: &[f32], eps: f64, out: &mut [E]) {
        let inverse = inverse_rms(x, eps);
        fill::<ROUNDS, E>(out, x, weight, |x, weight| x * inverse * weight);
    }
}

for_every_isa! {
    /// The same in place.
    pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f64) {
        let inverse = inverse_rms(x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * inverse * weight;
        }
    }
}

#[inline(always)]
pub(super) fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    let mut squares = [0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in squares.iter_mut().zip(chunk) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    let tail: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    (1.0 / ((squares.iter().sum::<f64>() + tail) / x.len() as f64 + eps).sqrt()) as f32
}

for_every_isa! {
    /// Rotates one head: pairs (i, i + half) of its first numbers by the angles whose cosines and sines are given, (half)
    /// each.
    pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let (first, second) = head.split_at_mut(cosines.len());
        let (pairs, angles) = (first.iter_mut().zip(second), cosines.iter().zip(sines));
        for ((first, second), (cosine, sine)) in pairs.zip(angles) {
            let (a, b) = (*first, *second);
            *first = a * cosine - b * sine;
            *second = b * cosine + a * sine;
        }
    }
}

for_every_isa! {
    /// Rounds a row to the element.
    pub fn round<E: Element>(x: &[f32], out: &mut [E]) {
        fill::<ROUNDS, E>(out, x, x, |x, _| x);
    }
}

for_every_isa! {
    /// `scale * x`, rounded to the element.
    pub fn round_scaled<E: Element>(x: &[f32], scale: f32, out: &mut [E]) {
        fill::<ROUNDS, E>(out, x, x, |x, _| x * scale);
    }
}

for_every_isa! {
    /// `out += x`.
    pub fn add(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

for_every_isa! {
    /// `out += scale * x`, product and sum rounded each.
    pub fn add_scaled(x: &[f32], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += scale * x;
        }
    }
}

for_every_isa! {
    /// Adds a block's sums to rows of `out`.
    pub fn add_block(sums: &[f32], out: Strip<f32>) {
        let mut out = out;
        for (row, sums) in sums.chunks_exact(WIDTH).enumerate() {
            for (out, sum) in out.row(row).iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}

for_every_isa! {
    /// Puts a block's sums into rows of `out`.
    pub fn put_block(sums: &[f32], out: Strip<f32>) {
        let mut out = out;
        for (row, sums) in sums.chunks_exact(WIDTH).enumerate() {
            let out = out.row(row);
            match (out.first_chunk_mut::<WIDTH>(), sums.first_chunk::<WIDTH>()) {
                (Some(out), Some(sums)) => *out = *sums, // four moves, where a loop becomes a call
                _ => out.copy_from_slice(&sums[..out.len()]),
            }
        }
    }
}

for_every_isa! {
    /// `silu(gate) * up` of two blocks.
    pub fn silu_block<E: Element>(gate: &[f32], up: &[f32], out: Strip<E>) {
        let mut out = out;
        for (row, (gate, up)) in gate.chunks_exact(WIDTH).zip(up.chunks_exact(WIDTH)).enumerate() {
            fill::<ROUNDS, E>(out.row(row), gate, up, |gate, up| silu::<FUSED>(gate) * up);
        }
    }
}

for_every_isa! {
    /// `gelu(gate) * up` of two blocks, GELU by its tanh approximation.
    pub fn gelu_block<E: Element>(gate: &[f32], up: &[f32], out: Strip<E>) {
        let mut out = out;
        for (row, (gate, up)) in gate.chunks_exact(WIDTH).zip(up.chunks_exact(WIDTH)).enumerate() {
            fill::<ROUNDS, E>(out.row(row), gate, up, |gate, up| gelu_tanh::<FUSED>(gate) * up);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::{Isa, Shared};

    #[test]
    fn a_norm_by_hand() {
        let x = [3.0, -4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]; // mean of squares 2.5
        let weight = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        for isa in Isa::supported() {
            let mut out = [0f32; 10];
            rms_norm(isa, &x, &weight, 1.5, &mut out); // / sqrt(4)
            assert_eq!(out[..3], [1.5, -4.0, 0.0]);
            let mut in_place = x;
            rms_norm_in_place(isa, &mut in_place, &weight, 1.5);
            assert_eq!(in_place, out);
            let mut rounded = [bf16::ZERO; 10];
            rms_norm(isa, &x, &weight, 1.5, &mut rounded);
            assert_eq!(rounded[1].to_f32(), -4.0);
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        for isa in Isa::supported() {
            let mut head = [1.0, 2.0, 3.0, 4.0, 5.0]; // the last is not rotated
            rotate(isa, &mut head, &[0.0, 1.0], &[1.0, 0.0]);
            assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 5.0]);
        }
    }

    #[test]
    fn every_level_rounds_as_the_half_package_does() {
        let normal = |bits: &u32| f32::from_bits(*bits).is_normal() || f32::from_bits(*bits) == 0.0;
        let values: Vec<f32> = (0..=u32::MAX)
            .step_by(65_521)
            .filter(normal)
            .chain([0x7f80_0000, 0xff80_0000])
            .map(f32::from_bits)
            .collect();
        let expected: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
        for isa in Isa::supported() {
            let mut out = vec![bf16::ZERO; values.len() + 1];
            round(isa, &values, &mut out[..values.len()]);
            assert_eq!(out[..values.len()], expected, "{isa:?}");
            round(isa, &[f32::NAN; 17], &mut out[..17]);
            assert!(out[..17].iter().all(|value| value.is_nan()), "{isa:?}");
        }
    }

    #[test]
    fn sums_and_scaled_sums() {
        for isa in Isa::supported() {
            let mut out = [0f32, 200.0];
            add(isa, &[1.0, -1.0], &mut out);
            add_scaled(isa, &[2.0, 2.0], 0.25, &mut out);
            assert_eq!(out, [1.5, 199.5]);
            let mut rounded = [bf16::ZERO; 2];
            round(isa, &out, &mut rounded);
            assert_eq!(rounded.map(|value| value.to_f32()), [1.5, 200.0]);
        }
    }

    /// Two rows of a block, of which the first two columns exist, in rows of four from the second number on.
    fn in_block(work: impl FnOnce(&[f32], &[f32], Strip<f32>)) -> [f32; 8] {
        let (mut gate, mut up) = ([7f32; 2 * WIDTH], [5f32; 2 * WIDTH]);
        gate[..2].copy_from_slice(&[0.0, 100.0]);
        gate[WIDTH..WIDTH + 2].copy_from_slice(&[200.0, 0.0]);
        (up[1], up[WIDTH]) = (2.0, 3.0);
        let mut out = [1f32; 8];
        let shared = Shared::new(&mut out);
        // SAFETY: this is the only part.
        work(&gate, &up, unsafe { shared.strip(1, 4, 2, 2) });
        out
    }

    #[test]
    fn blocks_go_where_they_belong() {
        for isa in Isa::supported() {
            assert_eq!(
                in_block(|sums, _, out| add_block(isa, sums, out)),
                [1.0, 1.0, 101.0, 1.0, 1.0, 201.0, 1.0, 1.0]
            );
            let put = in_block(|sums, _, out| put_block(isa, sums, out));
            assert_eq!(put, [1.0, 0.0, 100.0, 1.0, 1.0, 200.0, 0.0, 1.0]);
            let gated = [1.0, 0.0, 200.0, 1.0, 1.0, 600.0, 0.0, 1.0];
            assert_eq!(in_block(|gate, up, out| silu_block(isa, gate, up, out)), gated);
            assert_eq!(in_block(|gate, up, out| gelu_block(isa, gate, up, out)), gated);
        }
    }
}
