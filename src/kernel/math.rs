//! Scalar functions written so that a loop over them becomes wide: no branch, no table, no call.

use std::f32::consts::LOG2_E;

/// `a * b + c`, rounded once where the processor can.
#[inline(always)]
pub fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The largest number, as many side by side as a register holds; NaNs are passed over.
#[inline(always)]
pub fn largest(numbers: &[f32]) -> f32 {
    let (blocks, rest) = numbers.as_chunks::<64>();
    let (chunks, rest) = rest.as_chunks::<16>();
    let mut largest = [f32::NEG_INFINITY; 64];
    blocks.iter().for_each(|block| raise(&mut largest, block));
    chunks.iter().for_each(|chunk| raise(&mut largest[..16], chunk));
    for width in [32, 16, 8, 4, 2, 1] {
        let (low, high) = largest.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = if *high > *low { *high } else { *low });
    }
    rest.iter().fold(largest[0], |a, b| a.max(*b))
}

/// Each to the number beside it where that is larger.
#[inline(always)]
fn raise(largest: &mut [f32], numbers: &[f32]) {
    for (largest, number) in largest.iter_mut().zip(numbers) {
        *largest = if number > largest { *number } else { *largest };
    }
}

/// The sum, halves added to each other.
#[inline(always)]
pub fn sum_of(mut numbers: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        let (low, high) = numbers.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    numbers[0]
}

/// Adding it rounds to a whole number, which is left in the low bits, 127 more than it is: 1.5 * 2^23 + 127.
const ROUND: f32 = 12_583_039.0;

/// e^x, from -20 to 20 within 5e-7 of itself (1.1e-6 where products are rounded); 0 below -87.7, and finite above 88.3.
#[inline(always)]
pub fn exp<const FUSED: bool>(x: f32) -> f32 {
    // A comparison, not `min`: it is one instruction, and a NaN goes through.
    power_of_2::<FUSED>(if x > 88.3 { 88.3 } else { x }, LOG2_E, 0.0)
}

/// `2^(x * factor - less)` where that is from 2^-126 to 2^127, 0 where it is less: what a softmax makes of a score, in as few
/// instructions as can be. `factor` is above 0, `less` a whole number; as `x * factor` it is at most 2^22. The product is
/// not rounded before its whole part is taken from it.
#[inline(always)]
#[allow(clippy::approx_constant)] // near ln 2, but the polynomial's own
pub fn power_of_2<const FUSED: bool>(x: f32, factor: f32, less: f32) -> f32 {
    let lowest = (less - 127.0) / factor;
    let x = if x < lowest { lowest } else { x }; // a NaN stays
    let shift = ROUND - less;
    let shifted = multiply_add::<FUSED>(x, factor, shift);
    let rest = multiply_add::<FUSED>(x, factor, shift - shifted);
    // 2^rest from -1/2 to 1/2, 1 at 0, by the polynomial of the least relative error (9e-8).
    let mut power = 1.326_465_8e-3;
    for coefficient in [9.671_566e-3, 5.550_734_3e-2, 2.402_224e-1, 6.931_47e-1, 1.0] {
        power = multiply_add::<FUSED>(power, rest, coefficient);
    }
    power * f32::from_bits(shifted.to_bits() << 23)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub fn silu<const FUSED: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FUSED>(-x))
}

/// GELU with the tanh approximation: `x / (1 + e^-2u)`, u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
pub fn gelu_tanh<const FUSED: bool>(x: f32) -> f32 {
    let inner = 0.797_884_6 * multiply_add::<FUSED>(0.044_715 * x * x, x, x);
    x / (1.0 + exp::<FUSED>(-2.0 * inner))
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub fn soft_cap<const FUSED: bool>(x: f32, cap: f32) -> f32 {
    cap - 2.0 * cap / (1.0 + exp::<FUSED>(2.0 * x / cap))
}

/// To bf16, to the nearest, ties to even; a NaN stays one.
#[inline(always)]
pub fn to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { (bits >> 16) | 0x40 } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(function: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let steps = 100_000;
        (0..=steps)
            .map(|step| from + (to - from) * step as f32 / steps as f32)
            .map(|x| (f64::from(function(x)) - exact(f64::from(x))).abs() / exact(f64::from(x)).abs().max(1e-3))
            .fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_exact_to_a_few_last_places() {
        assert!(worst(exp::<true>, f64::exp, -20.0, 20.0) < 5e-7);
        assert!(worst(exp::<false>, f64::exp, -20.0, 20.0) < 1.1e-6);
        assert!(worst(silu::<true>, |x| x / (1.0 + (-x).exp()), -30.0, 30.0) < 4e-7);
        let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        assert!(worst(gelu_tanh::<true>, gelu, -6.0, 6.0) < 2e-6);
        assert!(worst(|x| soft_cap::<true>(x, 30.0), |x| 30.0 * (x / 30.0).tanh(), -200.0, 200.0) < 3e-3);
        assert!((soft_cap::<true>(0.5, 30.0) - 0.499_953_7).abs() < 4e-6);
    }

    #[test]
    fn the_largest_of_any_count() {
        let numbers: Vec<f32> = (0..200).map(|index| ((index * 17) % 41) as f32 - 50.0).collect();
        for count in 1..=200 {
            let expected = numbers[..count].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&numbers[..count]), expected);
        }
        assert_eq!(largest(&[f32::NAN; 16]), f32::NEG_INFINITY);
    }

    #[test]
    fn powers_of_two_of_scores() {
        let power = |x: f32| power_of_2::<true>(x, 0.18, 5.0);
        let exact = |x: f64| (x * f64::from(0.18f32) - 5.0).exp2();
        let off = |x: f32| (f64::from(power(x)) / exact(f64::from(x)) - 1.0).abs();
        let scores = (-6_700..=2_777).map(|tenth| tenth as f32 / 10.0);
        assert!(scores.map(off).fold(0.0, f64::max) < 2.5e-7);
        assert_eq!([-680.0, -1e30, f32::NEG_INFINITY].map(power), [0.0; 3]);
        assert!(power(f32::NAN).is_nan());
        assert_eq!((power_of_2::<true>(0.0, 0.18, 0.0), power_of_2::<false>(3.0, 1.0, 2.0)), (1.0, 2.0));
    }

    #[test]
    fn sums_of_halves() {
        assert_eq!(sum_of(std::array::from_fn(|index| index as f32)), 120.0);
    }

    #[test]
    fn the_ends_of_exp() {
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-88.0), 0.0);
        assert!(exp::<true>(1000.0).is_finite() && exp::<true>(f32::NAN).is_nan());
        assert_eq!((exp::<true>(0.0), exp::<false>(0.0)), (1.0, 1.0));
        assert!(silu::<true>(-1000.0).abs() < 1e-30 && silu::<true>(1000.0) == 1000.0);
    }

    #[test]
    fn bf16_rounds_as_the_half_package_rounds() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            assert_eq!(to_bf16_bits(value), half::bf16::from_f32(value).to_bits(), "{value} ({bits:x})");
        }
    }
}
