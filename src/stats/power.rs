//! What a comparison can see before it is made.
//!
//! A difference whose error is `stderr` is found with a probability that the normal distribution gives; Miller (arXiv
//! 2411.00640, section 5) turns this around for the number of questions and for the smallest difference. The variance of a
//! paired difference of right and wrong answers is the share of flips less the square of the difference (Miettinen,
//! Biometrics 24, 1968; Connor, Biometrics 43, 1987).

use super::normal::{below, quantile};

/// The probability that a true `difference` is found different from zero, two-sided at `alpha`.
pub fn power(difference: f64, stderr: f64, alpha: f64) -> f64 {
    let limit = quantile(1.0 - alpha / 2.0);
    if stderr <= 0.0 {
        return if difference == 0.0 { 0.0 } else { 1.0 };
    }
    let shift = difference.abs() / stderr;
    below(shift - limit) + below(-shift - limit)
}

/// The probability that a true loss of `difference` is told from none, one-sided at `confidence`; as likely is a candidate that
/// lost nothing shown to have lost less than `difference` (non-inferiority).
pub fn one_sided(difference: f64, stderr: f64, confidence: f64) -> f64 {
    if stderr <= 0.0 {
        return if difference > 0.0 { 1.0 } else { 1.0 - confidence };
    }
    below(difference / stderr - quantile(confidence))
}

/// The smallest true difference that is found with probability `power`, two-sided at `alpha`.
pub fn smallest_visible(stderr: f64, alpha: f64, power: f64) -> f64 {
    (quantile(1.0 - alpha / 2.0) + quantile(power)) * stderr
}

/// Documents needed to find `difference` with probability `power`, two-sided at `alpha`, where the differences document by
/// document have `variance`.
pub fn documents(difference: f64, variance: f64, alpha: f64, power: f64) -> f64 {
    (smallest_visible(1.0, alpha, power) / difference).powi(2) * variance
}

/// The variance of right minus right, document by document, where a share of `flips` differ and the mean is `difference`.
pub fn variance_of_flips(flips: f64, difference: f64) -> f64 {
    flips - difference * difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn miller_s_example() {
        // Variance 1/9, three points, 80 % power at 5 %: 969 questions.
        let found = documents(0.03, 1.0 / 9.0, 0.05, 0.8);
        assert_eq!(found.round(), 969.0);
        let stderr = (1.0 / 9.0 / found).sqrt();
        assert!((smallest_visible(stderr, 0.05, 0.8) - 0.03).abs() < 1e-12);
        // The other tail adds next to nothing.
        assert!((power(0.03, stderr, 0.05) - 0.8).abs() < 1e-5);
    }

    #[test]
    fn one_side_by_hand() {
        // 2.5 errors less 1.96 are 0.54: 0.7054.
        assert!((one_sided(0.01, 0.004, 0.975) - 0.7054).abs() < 1e-4);
        assert!((one_sided(0.0, 0.004, 0.975) - 0.025).abs() < 1e-12);
        assert_eq!((one_sided(0.01, 0.0, 0.975), one_sided(0.0, 0.0, 0.75)), (1.0, 0.25));
    }

    #[test]
    fn the_edges() {
        assert!((power(0.0, 0.01, 0.05) - 0.05).abs() < 1e-12, "no difference is found as often as the level says");
        assert_eq!((power(0.01, 0.0, 0.05), power(0.0, 0.0, 0.05)), (1.0, 0.0));
        assert!((variance_of_flips(0.1, 0.1) - 0.09).abs() < 1e-12);
        assert_eq!(smallest_visible(0.0, 0.05, 0.8), 0.0);
    }
}
