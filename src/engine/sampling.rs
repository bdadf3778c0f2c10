//! Drawing the next token instead of taking the likeliest: temperature, then the nucleus (Holtzman et al., "The Curious Case
//! of Neural Text Degeneration", arXiv 1904.09751).
//!
//! What is drawn depends on the seed, the prompt's tokens and the place in the answer, never on what is generated beside
//! it: every row's probabilities have the same bits in any company, and its random number is its own.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides logits; above zero.
    pub temperature: f64,
    /// Only the likeliest tokens that together have this probability are drawn; in 0..=1, above zero.
    pub top_p: f64,
    pub seed: u64,
}

impl Sampling {
    /// A token by these logits, the `place`th of an answer to the tokens `prompt`.
    pub fn next(&self, logits: &[f32], prompt: &[u32], place: usize) -> u32 {
        let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        self.draw(&logits, self.uniform(prompt, place))
    }

    /// In [0, 1).
    fn uniform(&self, prompt: &[u32], place: usize) -> f64 {
        let stream = Random::named(self.seed, &format!("{prompt:?}"));
        (stream.nth_u64(place) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The token that `uniform` falls on, where the kept ones share [0, 1) by their probabilities, the likeliest first and
    /// of equals the first.
    fn draw(&self, logits: &[f64], uniform: f64) -> u32 {
        let peak = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weight = |logit: &f64| ((logit - peak) / self.temperature).exp();
        let mut tokens: Vec<(f64, u32)> = logits.iter().map(weight).zip(0..).collect();
        tokens.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
        let all: f64 = tokens.iter().map(|(weight, _)| weight).sum();
        let (mut kept, mut sum) = (0, 0.0);
        while kept < tokens.len() && (kept == 0 || sum < self.top_p * all) {
            sum += tokens[kept].0;
            kept += 1;
        }
        let mut rest = uniform * sum;
        for (weight, token) in &tokens[..kept - 1] {
            if rest < *weight {
                return *token;
            }
            rest -= weight;
        }
        tokens[kept - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 1/8, 1/2, 1/4, 1/8.
    fn logs() -> Vec<f64> {
        [0.125f64, 0.5, 0.25, 0.125].map(f64::ln).to_vec()
    }

    fn drawn(temperature: f64, top_p: f64, uniforms: &[f64]) -> Vec<u32> {
        let sampling = Sampling { temperature, top_p, seed: 1 };
        uniforms.iter().map(|&uniform| sampling.draw(&logs(), uniform)).collect()
    }

    #[test]
    fn tokens_share_the_line_by_their_probabilities() {
        assert_eq!(drawn(1.0, 1.0, &[0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.999]), [1, 1, 2, 2, 0, 0, 3, 3]);
        // At temperature 1/2 probabilities are squared: 16, 4, 1 and 1 of 22.
        assert_eq!(drawn(0.5, 1.0, &[0.72, 0.73, 0.90, 0.92, 0.96]), [1, 2, 2, 0, 3]);
        assert_eq!(drawn(1e-6, 1.0, &[0.0, 0.999]), [1, 1]);
    }

    #[test]
    fn the_nucleus_is_the_smallest_that_is_large_enough() {
        assert_eq!(drawn(1.0, 0.5, &[0.0, 0.999]), [1, 1]);
        // 1/2 and 1/4, of which the first has two thirds.
        assert_eq!(drawn(1.0, 0.6, &[0.66, 0.67, 0.999]), [1, 2, 2]);
        assert_eq!(drawn(1.0, 1e-9, &[0.999]), [1]);
    }

    #[test]
    fn the_number_is_the_seed_s_the_prompt_s_and_the_place_s() {
        let sampling = |seed| Sampling { temperature: 1.0, top_p: 1.0, seed };
        let uniform = |seed, prompt: &[u32], place| sampling(seed).uniform(prompt, place);
        let one = uniform(1, &[1, 2], 0);
        assert!((0.0..1.0).contains(&one) && one == uniform(1, &[1, 2], 0));
        for other in [uniform(2, &[1, 2], 0), uniform(1, &[1, 3], 0), uniform(1, &[1, 2], 1)] {
            assert_ne!(one, other);
        }
        let mean = (0..4000).map(|place| uniform(1, &[1], place)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
