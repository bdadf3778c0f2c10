//! Row operations between products: norm, rotation, gates, residuals. Each works on whole rows, wherever they lie.

use super::Element;
use super::isa::for_every_isa;
use super::math::{gelu_tanh, silu};

/// Sums that are made side by side: fixed, so that the order of additions is.
const LANES: usize = 8;

for_every_isa! {
    /// `weight * x / sqrt(mean(x^2) + eps)` of one row, the mean in f64 (61 norms later an f32 sum shows in the fourth
    /// digit of a log-likelihood).
    pub fn rms_norm<E: Element>(x: &[f32], weight: &[f32], eps: f64, out: &mut [E]) {
        let _ = FUSED;
        let inverse = inverse_rms(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = E::from_f32(x * inverse * weight);
        }
    }
}

for_every_isa! {
    /// The same in place.
    pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f64) {
        let _ = FUSED;
        let inverse = inverse_rms(x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * inverse * weight;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f32 {
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
    /// Rotates one head: pairs (i, i + half) by the angles whose cosines and sines are given, (half) each.
    pub fn rotate<E: Element>(head: &[f32], cosines: &[f32], sines: &[f32], out: &mut [E]) {
        let _ = FUSED;
        let half = cosines.len();
        let (first, second) = head.split_at(half);
        let (out_first, out_second) = out.split_at_mut(half);
        for index in 0..half {
            let (a, b, cosine, sine) = (first[index], second[index], cosines[index], sines[index]);
            out_first[index] = E::from_f32(a * cosine - b * sine);
            out_second[index] = E::from_f32(b * cosine + a * sine);
        }
    }
}

for_every_isa! {
    /// Rounds a row to the element.
    pub fn round<E: Element>(x: &[f32], out: &mut [E]) {
        let _ = FUSED;
        for (out, x) in out.iter_mut().zip(x) {
            *out = E::from_f32(*x);
        }
    }
}

for_every_isa! {
    /// `out += x`.
    pub fn add(x: &[f32], out: &mut [f32]) {
        let _ = FUSED;
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

for_every_isa! {
    /// `out += scale * x`, product and sum rounded each.
    pub fn add_scaled(x: &[f32], scale: f32, out: &mut [f32]) {
        let _ = FUSED;
        for (out, x) in out.iter_mut().zip(x) {
            *out += scale * x;
        }
    }
}

for_every_isa! {
    /// `silu(gate) * up`.
    pub fn silu_gate<E: Element>(gate: &[f32], up: &[f32], out: &mut [E]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = E::from_f32(silu::<FUSED>(*gate) * up);
        }
    }
}

for_every_isa! {
    /// `gelu(gate) * up`, GELU by its tanh approximation.
    pub fn gelu_gate<E: Element>(gate: &[f32], up: &[f32], out: &mut [E]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = E::from_f32(gelu_tanh::<FUSED>(*gate) * up);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::Isa;

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
            let mut out = [0f32; 4];
            rotate(isa, &[1.0, 2.0, 3.0, 4.0], &[0.0, 1.0], &[1.0, 0.0], &mut out);
            assert_eq!(out, [-3.0, 2.0, 1.0, 4.0]);
        }
    }

    #[test]
    fn gates_and_sums() {
        for isa in Isa::supported() {
            let mut out = [0f32; 2];
            silu_gate(isa, &[0.0, 100.0], &[5.0, 2.0], &mut out);
            assert_eq!(out, [0.0, 200.0]);
            gelu_gate(isa, &[0.0, 100.0], &[5.0, 2.0], &mut out);
            assert_eq!(out, [0.0, 200.0]);
            add(isa, &[1.0, -1.0], &mut out);
            add_scaled(isa, &[2.0, 2.0], 0.25, &mut out);
            assert_eq!(out, [1.5, 199.5]);
            let mut rounded = [bf16::ZERO; 2];
            round(isa, &out, &mut rounded);
            assert_eq!(rounded.map(|value| value.to_f32()), [1.5, 199.0 + 1.0]);
        }
    }
}
