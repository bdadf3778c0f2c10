//! Intervals of one score.
//!
//! Wilson's score interval (JASA 22, 1927, pages 209 to 212): of the seven that Newcombe compared (Statistics in Medicine
//! 17, 1998, pages 857 to 872) the simple one that keeps its level from 0 to n right answers and for n = 1. Where a score
//! is a weighted mean of strata the number of documents is replaced by the effective one, the number whose plain mean would
//! vary as much (Korn and Graubard, Survey Methodology 24, 1998, pages 193 to 201).

use super::Interval;

/// Wilson's interval for a share `value` of `n` documents, at `z` standard errors; all of 0..1 for none.
pub fn wilson(value: f64, n: f64, z: f64) -> Interval {
    if n <= 0.0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let square = z * z / n;
    let middle = value + square / 2.0;
    let half = z * (value * (1.0 - value) / n + square / (4.0 * n)).sqrt();
    Interval { low: (middle - half) / (1.0 + square), high: (middle + half) / (1.0 + square) }.clipped(0.0, 1.0)
}

/// How many documents of one simple sample would give a share `value` the variance `stderr` squared. Strata take away at
/// most half of the variance, so that a few subjects that are all right or all wrong do not make a score exact.
pub fn effective_size(value: f64, stderr: Option<f64>, n: usize) -> f64 {
    let n = n as f64;
    match stderr {
        Some(stderr) if stderr > 0.0 => (value * (1.0 - value) / (stderr * stderr)).clamp(1.0, 2.0 * n),
        Some(_) | None => n,
    }
}

/// The right answers nearest to a rounded percentage, `half` of whose last digit was left open; none if no count rounds to
/// it.
pub fn recovered_count(percent: f64, half: f64, n: usize) -> Option<usize> {
    let count = (percent / 100.0 * n as f64).round();
    // A billionth is what binary numbers add.
    ((count / n as f64 * 100.0 - percent).abs() <= half + 1e-9).then_some(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Z;

    fn near(found: Interval, low: f64, high: f64) {
        assert!((found.low - low).abs() < 5.1e-5 && (found.high - high).abs() < 5.1e-5, "{found:?}: {low} {high}");
    }

    #[test]
    fn newcombe_s_four_examples() {
        // Newcombe 1998, table I, method 3 (score, without continuity correction).
        near(wilson(81.0 / 263.0, 263.0, Z), 0.2553, 0.3662);
        near(wilson(15.0 / 148.0, 148.0, Z), 0.0624, 0.1605);
        near(wilson(0.0, 20.0, Z), 0.0, 0.1611);
        near(wilson(1.0 / 29.0, 29.0, Z), 0.0061, 0.1718);
    }

    #[test]
    fn the_edges() {
        near(wilson(1.0, 1.0, Z), 0.2065, 1.0); // n / (n + z^2)
        assert_eq!(wilson(0.5, 0.0, Z), Interval { low: 0.0, high: 1.0 });
        let exact = wilson(1.0, 40.0, Z);
        assert!(exact.high == 1.0 && exact.low < 1.0);
    }

    #[test]
    fn strata_change_the_number_of_documents() {
        // A plain sample of 100 at 0.8 has variance 0.0016.
        assert!((effective_size(0.8, Some(0.04), 100) - 100.0).abs() < 1e-9);
        assert!((effective_size(0.8, Some(0.08), 100) - 25.0).abs() < 1e-9);
        assert_eq!(effective_size(0.8, Some(0.001), 100), 200.0);
        assert_eq!((effective_size(1.0, Some(0.0), 7), effective_size(0.5, None, 3)), (7.0, 3.0));
    }

    #[test]
    fn percentages_give_their_counts_back() {
        // 774 of 1,172 is 66.0410 %, 775 is 66.1263 %.
        assert_eq!(recovered_count(66.04, 0.005, 1172), Some(774));
        assert_eq!(recovered_count(66.08, 0.005, 1172), None, "between two counts");
        assert_eq!(recovered_count(66.1, 0.05, 1172), Some(775), "both round to it, this is nearer");
        assert_eq!((recovered_count(0.0, 0.005, 5), recovered_count(100.0, 0.005, 5)), (Some(0), Some(5)));
    }
}
