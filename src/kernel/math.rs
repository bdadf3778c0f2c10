//! Scalar functions written so that a loop over them becomes wide: no branch, no table, no call.

/// `a * b + c`, rounded once where the processor can.
#[inline(always)]
pub fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The largest number, as many side by side as a register holds; NaNs are passed over.
#[inline(always)]
pub fn largest(numbers: &[f32]) -> f32 {
    let (chunks, rest) = numbers.as_chunks::<16>();
    let mut largest = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (largest, number) in largest.iter_mut().zip(chunk) {
            *largest = if number > largest { *number } else { *largest };
        }
    }
    for width in [8, 4, 2, 1] {
        let (low, high) = largest.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = if *high > *low { *high } else { *low });
    }
    rest.iter().fold(largest[0], |a, b| a.max(*b))
}

/// Below this e^x has no f32 of full precision.
const LOWEST: f32 = -87.3;

/// e^x within 2 units of the last place; 0 below -87.3, and finite above 88.3.
/// Cody and Waite's reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Comparisons, not `clamp`: each is one instruction, and a NaN goes through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > 88.3 { 88.3 } else { clamped };
    if x < LOWEST { 0.0 } else { power::<FUSED>(clamped) }
}

/// The same of an x that is not above 0, for a softmax: nothing can overflow, so nothing is clamped.
#[inline(always)]
pub fn exp_to_1<const FUSED: bool>(x: f32) -> f32 {
    if x < LOWEST { 0.0 } else { power::<FUSED>(x) }
}

/// e^x from [`LOWEST`] to 88.3; anything elsewhere.
#[inline(always)]
fn power<const FUSED: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let shifted = multiply_add::<FUSED>(x, LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<FUSED>(whole, -LN_2_HIGH, x);
    let rest = multiply_add::<FUSED>(whole, -LN_2_LOW, rest);
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = multiply_add::<FUSED>(sum, rest, coefficient);
    }
    let mantissa = multiply_add::<FUSED>(sum, rest * rest, rest) + 1.0;
    // The low bits of `shifted` are the whole number itself.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    mantissa * scale
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
        assert!(worst(exp::<true>, f64::exp, -20.0, 20.0) < 2.5e-7);
        assert!(worst(exp::<false>, f64::exp, -20.0, 20.0) < 4e-7);
        assert!(worst(silu::<true>, |x| x / (1.0 + (-x).exp()), -30.0, 30.0) < 4e-7);
        let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        assert!(worst(gelu_tanh::<true>, gelu, -6.0, 6.0) < 2e-6);
        assert!(worst(|x| soft_cap::<true>(x, 30.0), |x| 30.0 * (x / 30.0).tanh(), -200.0, 200.0) < 3e-3);
        assert!((soft_cap::<true>(0.5, 30.0) - 0.499_953_7).abs() < 4e-6);
    }

    #[test]
    fn the_largest_of_any_count() {
        let numbers: Vec<f32> = (0..40).map(|index| ((index * 17) % 41) as f32 - 50.0).collect();
        for count in 1..=40 {
            let expected = numbers[..count].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&numbers[..count]), expected);
        }
        assert_eq!(largest(&[f32::NAN; 16]), f32::NEG_INFINITY);
    }

    #[test]
    fn the_ends_of_exp() {
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-88.0), 0.0);
        assert!(exp::<true>(1000.0).is_finite() && exp::<true>(f32::NAN).is_nan());
        assert_eq!((exp::<true>(0.0), exp::<false>(0.0)), (1.0, 1.0));
        for x in [0.0, -1e-30, -0.7, -87.2, -87.4, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp_to_1::<true>(x).to_bits(), exp::<true>(x).to_bits(), "{x}");
        }
        assert!(exp_to_1::<true>(f32::NAN).is_nan());
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
