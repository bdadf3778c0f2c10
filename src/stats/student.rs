//! Student's t distribution: what a mean's error is drawn from where it was estimated from few values.

use std::f64::consts::FRAC_2_PI;

/// Two-sided p value of `t` with `freedom` degrees of freedom (Abramowitz and Stegun, 26.7.3 for odd ones, 26.7.4 for even
/// ones).
pub fn two_sided(t: f64, freedom: usize) -> f64 {
    let angle = (t.abs() / (freedom as f64).sqrt()).atan();
    let (is_odd, square) = (freedom % 2 == 1, angle.cos().powi(2));
    let (mut sum, mut term) = (0.0, if is_odd { angle.cos() } else { 1.0 });
    for step in (usize::from(is_odd)..freedom.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= square * (step + 1) as f64 / (step + 2) as f64;
    }
    let within = if is_odd { FRAC_2_PI * (angle + angle.sin() * sum) } else { angle.sin() * sum };
    1.0 - within
}

/// The `t` above 0 with [`two_sided`]`(t) == p`, by halving.
pub fn quantile(p: f64, freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, 1e9);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if two_sided(middle, freedom) > p { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_values() {
        // Abramowitz and Stegun, table 26.10, at 0.95.
        for (freedom, t) in [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)] {
            assert!((quantile(0.05, freedom) - t).abs() < 5.1e-4, "{freedom}: {}", quantile(0.05, freedom));
            assert!((two_sided(-t, freedom) - 0.05).abs() < 1e-4, "{freedom}: {}", two_sided(t, freedom));
        }
        assert_eq!(two_sided(0.0, 7), 1.0);
    }

    #[test]
    fn many_degrees_are_the_normal_distribution() {
        assert!((quantile(0.05, 100_000) - crate::stats::Z).abs() < 1e-4);
    }
}
