//! Means over strata: MMLU's 57 subjects, the suite's six tasks.
//!
//! Each stratum is a sample of its own, so variances add up as squares of weights (Cochran, Sampling Techniques, 1977,
//! section 5.3). A stratum of one document has no variance of its own; then all strata are collapsed into one (section
//! 5A.12), which is cautious. Intervals of parts are joined by the squares of their sides (Zou and Donner, Statistics in
//! Medicine 27, 2008, pages 1693 to 1702), which keeps what is lopsided about them.

use super::{Interval, Z};

/// How strata count in a mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighing {
    /// Each stratum alike: leaderboard-v1's MMLU.
    Alike,
    /// Each document alike.
    BySize,
}

/// A part of a weighted sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub weight: f64,
    pub value: f64,
    pub interval: Interval,
}

/// The interval of `sum(weight * value)` of independent parts: from the sum, on each side, the root of the squares of the
/// parts' weighted sides. A negative weight turns a part around.
pub fn joined(parts: &[Part]) -> Interval {
    let sum: f64 = parts.iter().map(|part| part.weight * part.value).sum();
    let side = |upper: bool| -> f64 {
        let square = |part: &Part| {
            let side = match (part.weight >= 0.0) == upper {
                true => part.interval.high - part.value,
                false => part.value - part.interval.low,
            };
            (part.weight * side).powi(2)
        };
        parts.iter().map(square).sum::<f64>().sqrt()
    };
    Interval { low: sum - side(false), high: sum + side(true) }
}

/// The interval of the weighted mean of paired differences of right and wrong answers, `strata` by stratum; none for fewer
/// than two documents.
///
/// As where nothing flipped there would be no width at all, one flip each way is added to the whole, spread over the strata,
/// without moving the mean (after Bonett and Price, Statistics in Medicine 31, 2012, pages 479 to 488, whose interval adds
/// as much to one table). Among a thousand real flips it is not seen.
pub fn interval_of_difference(strata: &[Vec<f64>], weighing: Weighing) -> Option<Interval> {
    let documents: usize = strata.iter().map(Vec::len).sum();
    if documents < 2 || strata.iter().any(Vec::is_empty) {
        return None;
    }
    let weights: Vec<f64> = strata.iter().map(|stratum| weight(stratum, strata.len(), documents, weighing)).collect();
    let value: f64 = strata.iter().zip(&weights).map(|(stratum, weight)| weight * mean(stratum)).sum();
    let half = Z * variance(strata, &weights, value).sqrt();
    Some(Interval { low: value - half, high: value + half }.clipped(-1.0, 1.0))
}

fn weight(stratum: &[f64], strata: usize, documents: usize, weighing: Weighing) -> f64 {
    match weighing {
        Weighing::Alike => 1.0 / strata as f64,
        Weighing::BySize => stratum.len() as f64 / documents as f64,
    }
}

/// The variance of the weighted mean, `value`.
fn variance(strata: &[Vec<f64>], weights: &[f64], value: f64) -> f64 {
    let collapsed = strata.iter().any(|stratum| stratum.len() < 2);
    let documents = strata.iter().map(Vec::len).sum::<usize>() as f64;
    let added = 2.0 / strata.len() as f64;
    let of_stratum = |(stratum, weight): (&Vec<f64>, &f64)| {
        let n = stratum.len() as f64;
        let (centre, spare) =
            if collapsed { (value, documents / (documents - 1.0)) } else { (mean(stratum), n / (n - 1.0)) };
        let squares: f64 = stratum.iter().map(|difference| (difference - centre).powi(2)).sum();
        (weight / n).powi(2) * (squares + added) * spare
    };
    strata.iter().zip(weights).map(of_stratum).sum()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::proportion::wilson;

    #[test]
    fn newcombe_s_unpaired_example() {
        // Newcombe, Statistics in Medicine 17, 1998, pages 873 to 890, example (a): 56/70 less 48/80, method 10.
        let part = |weight, count: f64, n: f64| Part { weight, value: count / n, interval: wilson(count / n, n, Z) };
        let found = joined(&[part(1.0, 56.0, 70.0), part(-1.0, 48.0, 80.0)]);
        assert!((found.low - 0.0524).abs() < 5e-5 && (found.high - 0.3339).abs() < 5e-5, "{found:?}");
    }

    #[test]
    fn symmetric_parts_add_up_as_squares() {
        let part =
            |value, half| Part { weight: 0.5, value, interval: Interval { low: value - half, high: value + half } };
        let found = joined(&[part(0.2, 0.06), part(0.4, 0.08)]);
        assert!((found.low - 0.25).abs() < 1e-12 && (found.high - 0.35).abs() < 1e-12, "sqrt(36 + 64) / 2 hundredths");
    }

    #[test]
    fn two_strata_by_hand() {
        // x: 1, 0: squares 1/2; y: 1, 0, 0, 0: squares 3/4; one more flip each way is 2 / 2 = 1 more square in each.
        // x: (1/2 / 2)^2 * 3/2 * 2 = 3/16; y: (1/2 / 4)^2 * 7/4 * 4/3 = 7/192; the mean is (1/2 + 1/4) / 2 = 3/8.
        let strata = [vec![1.0, 0.0], vec![1.0, 0.0, 0.0, 0.0]];
        let half = Z * (3.0_f64 / 16.0 + 7.0 / 192.0).sqrt();
        let found = interval_of_difference(&strata, Weighing::Alike).unwrap();
        assert!((found.low - (0.375 - half)).abs() < 1e-12 && (found.high - 1.0_f64.min(0.375 + half)).abs() < 1e-12);
        // By size: x weighs 1/3, y 2/3: (1/6)^2 * 3 + (1/6)^2 * 7/3 = 4/27; the mean is 1/3.
        let half = Z * (4.0_f64 / 27.0).sqrt();
        let found = interval_of_difference(&strata, Weighing::BySize).unwrap();
        assert!((found.low - (1.0 / 3.0 - half)).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn the_edges() {
        let still = interval_of_difference(&vec![vec![0.0; 100]; 57], Weighing::Alike).unwrap();
        assert!(still.low < 0.0 && still.low > -0.002 && still.low == -still.high, "{still:?}");
        let singles = interval_of_difference(&[vec![1.0], vec![0.0], vec![-1.0]], Weighing::Alike).unwrap();
        // Collapsed: (1/3)^2 * (2 + 2) * 3/2 = 2/3.
        assert!((singles.high - (Z * (2.0_f64 / 3.0).sqrt()).min(1.0)).abs() < 1e-12);
        assert_eq!(interval_of_difference(&[vec![1.0]], Weighing::Alike), None);
        assert_eq!(interval_of_difference(&[], Weighing::Alike), None);
        assert_eq!(interval_of_difference(&[vec![], vec![0.0, 1.0]], Weighing::Alike), None);
    }
}
