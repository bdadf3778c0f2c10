//! The normal distribution: its function and quantiles.

use std::f64::consts::{PI, SQRT_2};

/// The probability of a standard normal number below `z`; right to the last digits far out in the tails too.
pub fn below(z: f64) -> f64 {
    0.5 * libm::erfc(-z / SQRT_2)
}

/// Two-sided p value of a standard normal `z`.
pub fn two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() / SQRT_2)
}

/// The `z` with [`below`]`(z) == probability`; infinite at 0 and 1.
pub fn quantile(probability: f64) -> f64 {
    match probability {
        p if p <= 0.0 => f64::NEG_INFINITY,
        p if p >= 1.0 => f64::INFINITY,
        p if p > 0.5 => -lower_quantile(1.0 - p),
        p => lower_quantile(p),
    }
}

/// For 0 < p <= 1/2: Abramowitz and Stegun's 26.2.23 (good to 0.0005), then Newton's steps on the logarithm, which is
/// nearly a parabola and so converges from there in any tail.
fn lower_quantile(p: f64) -> f64 {
    let t = (-2.0 * p.ln()).sqrt();
    let start =
        t - (2.515_517 + t * (0.802_853 + t * 0.010_328)) / (1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308)));
    (0..4).fold(-start, |z, _| {
        let density = (-0.5 * z * z).exp() / (2.0 * PI).sqrt();
        z - (below(z).ln() - p.ln()) * below(z) / density
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_values() {
        // Abramowitz and Stegun, table 26.1, and the 2.5 % point every textbook prints.
        assert!((below(1.0) - 0.841_344_746_068_543).abs() < 1e-14);
        assert!((below(-2.0) - 0.022_750_131_948_179).abs() < 1e-14);
        assert!((below(-10.0) / 7.619_853_024_160_527e-24 - 1.0).abs() < 1e-10);
        assert!((quantile(0.975) - crate::stats::Z).abs() < 1e-13);
        assert!((quantile(0.8) - 0.841_621_233_572_914).abs() < 1e-13);
        assert!((two_sided(1.959_963_984_540_054) - 0.05).abs() < 1e-14);
    }

    #[test]
    fn quantiles_undo_probabilities_to_the_ends() {
        for p in [1e-200, 1e-12, 0.001, 0.3, 0.5, 0.7, 0.999_999] {
            assert!((below(quantile(p)) / p - 1.0).abs() < 1e-9, "{p}");
        }
        assert_eq!((quantile(0.0), quantile(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
    }
}
