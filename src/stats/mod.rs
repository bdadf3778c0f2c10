//! Statistics of scores and of their differences: plain numbers in and out, fractions everywhere.
//!
//! Intervals are two-sided at [`LEVEL`]. What is asked of a model are documents that were drawn once and answered by both
//! sides, so differences are taken document by document (Miller, "Adding Error Bars to Evals", arXiv 2411.00640). Each
//! file cites the source of its formula, and its tests hold the source's worked numbers.

pub mod bootstrap;
pub mod holm;
pub mod normal;
pub mod paired;
pub mod power;
pub mod proportion;
pub mod strata;
pub mod student;

use serde::{Deserialize, Serialize};

/// What an interval covers.
pub const LEVEL: f64 = 0.95;

/// The normal quantile of [`LEVEL`]: a standard normal number lies within plus or minus this in 95 of 100 cases.
pub const Z: f64 = 1.959_963_984_540_054;

/// Where a true value lies, in fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    pub fn contains(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// The part inside `low..=high`.
    pub fn clipped(self, low: f64, high: f64) -> Interval {
        Interval { low: self.low.clamp(low, high), high: self.high.clamp(low, high) }
    }
}

/// A measured fraction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// In 0..1.
    pub value: f64,
    /// Standard error of the value; none for fewer than two documents.
    pub stderr: Option<f64>,
    /// Documents.
    pub n: usize,
}

impl Estimate {
    /// The mean of `values` with `sqrt(sum((x - mean)^2) / (n - 1)) / sqrt(n)`; none for no values.
    pub fn mean(values: &[f64]) -> Option<Estimate> {
        let n = values.len();
        let value = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
        let stderr = (n > 1).then(|| (squares / (n - 1) as f64).sqrt() / (n as f64).sqrt());
        (n > 0).then_some(Estimate { value, stderr, n })
    }

    /// The unweighted mean of parts, as the leaderboard averaged MMLU's subjects and its six tasks. The parts are strata:
    /// `sqrt(sum se^2) / parts` (the leaderboard published none); none if a part has none.
    pub fn macro_mean(parts: &[Estimate]) -> Option<Estimate> {
        let count = parts.len() as f64;
        let squares: Option<f64> = parts.iter().map(|part| part.stderr.map(|se| se * se)).sum();
        let value = parts.iter().map(|part| part.value).sum::<f64>() / count;
        let n = parts.iter().map(|part| part.n).sum();
        (!parts.is_empty()).then(|| Estimate { value, stderr: squares.map(|sum| sum.sqrt() / count), n })
    }

    /// The mean weighted by size, with lm-eval's pooled error `sqrt(sum((n_s - 1) se_s^2 n_s) / (N - S) / N)`
    /// (`lm_eval/api/metrics.py`, `pooled_sample_stderr`).
    pub fn micro_mean(parts: &[Estimate]) -> Option<Estimate> {
        let n: usize = parts.iter().map(|part| part.n).sum();
        let value = parts.iter().map(|part| part.value * part.n as f64).sum::<f64>() / n as f64;
        let pooled: Option<f64> =
            parts.iter().map(|part| part.stderr.map(|se| (part.n - 1) as f64 * se * se * part.n as f64)).sum();
        let spare = n.saturating_sub(parts.len());
        let stderr = pooled.filter(|_| spare > 0).map(|sum| (sum / spare as f64 / n as f64).sqrt());
        (n > 0).then_some(Estimate { value, stderr, n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?}, expected {expected}");
    }

    #[test]
    fn a_mean_worked_by_hand() {
        // 1, 0, 1, 1: mean 3/4, sum of squares 3/4, variance 1/4, error sqrt(1/4) / 2 = 1/4.
        let estimate = Estimate::mean(&[1.0, 0.0, 1.0, 1.0]).unwrap();
        assert_eq!((estimate.value, estimate.n), (0.75, 4));
        near(estimate.stderr, 0.25);
        assert_eq!(Estimate::mean(&[0.5]).unwrap().stderr, None);
        assert_eq!(Estimate::mean(&[]), None);
    }

    #[test]
    fn parts_are_weighted_as_their_protocols_say() {
        let parts =
            [Estimate { value: 0.5, stderr: Some(0.3), n: 2 }, Estimate { value: 0.8, stderr: Some(0.4), n: 4 }];
        let unweighted = Estimate::macro_mean(&parts).unwrap();
        near(Some(unweighted.value), 0.65);
        near(unweighted.stderr, 0.25); // sqrt(0.09 + 0.16) / 2
        let weighted = Estimate::micro_mean(&parts).unwrap();
        near(Some(weighted.value), 0.7); // (1.0 + 3.2) / 6
        near(weighted.stderr, ((0.09 * 2.0 + 3.0 * 0.16 * 4.0) / 4.0 / 6.0_f64).sqrt());
        assert_eq!((unweighted.n, weighted.n), (6, 6));
    }

    #[test]
    fn one_document_a_subject_has_no_error() {
        let parts = [Estimate { value: 1.0, stderr: None, n: 1 }; 3];
        assert_eq!(Estimate::macro_mean(&parts).unwrap().stderr, None);
        assert_eq!(Estimate::micro_mean(&parts).unwrap().stderr, None);
    }
}
