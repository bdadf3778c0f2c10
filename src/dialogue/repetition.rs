//! Answers that say the same thing again and again.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::words::{Hashed, grams, words};

/// Words a run.
const RUN: usize = 5;
/// Answers of fewer words repeat by chance.
const FEWEST: usize = 50;

/// The share of an answer's runs of five words that it has had before; 0 for an answer of fewer than 50 words.
pub fn repeated_share(answer: &str) -> f64 {
    let words = words(answer);
    if words.len() < FEWEST {
        return 0.0;
    }
    let mut seen: HashSet<u64, BuildHasherDefault<Hashed>> = HashSet::default();
    let (mut repeated, mut count) = (0, 0);
    for run in grams(&words, RUN) {
        repeated += usize::from(!seen.insert(run));
        count += 1;
    }
    repeated as f64 / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_runs_are_counted_over_all_runs() {
        let fresh = |count: usize| (0..count).map(|word| format!("w{word} ")).collect::<String>();
        assert_eq!(repeated_share(&fresh(200)), 0.0);
        // 100 words, then the same again: 96 of 196 runs were there before.
        assert_eq!(repeated_share(&fresh(100).repeat(2)), 96.0 / 196.0);
        assert_eq!(repeated_share(&"no ".repeat(49)), 0.0, "too short");
        assert_eq!(repeated_share(&"no ".repeat(50)), 45.0 / 46.0);
    }
}
