//! LoRA dropout whose draws depend on (seed, module, place) alone: a recomputed layer drops what it dropped before, and so
//! does the other home.

use crate::random::Random;

/// Drops each input of a LoRA pair with this probability and scales the rest up (inverted dropout, as torch's).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub probability: f64,
    /// Of a micro-batch.
    pub seed: u64,
}

/// What the inputs of one linear are multiplied by, in the order of its rows.
#[derive(Clone, Debug)]
pub struct Factors {
    random: Random,
    /// Draws below this drop.
    threshold: u64,
    keep: f32,
}

impl Dropout {
    /// `None` where nothing is dropped.
    pub fn new(probability: f64, seed: u64) -> Option<Dropout> {
        (probability > 0.0).then_some(Dropout { probability, seed })
    }

    /// The factors of the linear `module`.
    pub fn factors(&self, module: &str) -> Factors {
        Factors {
            random: Random::named(self.seed, module),
            threshold: (self.probability * (1u64 << 53) as f64).ceil() as u64,
            keep: (1.0 / (1.0 - self.probability)) as f32,
        }
    }
}

impl Factors {
    /// The factor of number `index`, counted through the rows: 0, or what keeps the mean.
    #[inline]
    pub fn at(&self, index: usize) -> f32 {
        if self.random.nth_u64(index) >> 11 < self.threshold { 0.0 } else { self.keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_dropped_and_the_mean_is_kept() {
        let factors = Dropout::new(0.25, 7).unwrap().factors("some.module");
        let drawn: Vec<f32> = (0..40_000).map(|index| factors.at(index)).collect();
        assert!(drawn.iter().all(|&factor| factor == 0.0 || factor == 4.0 / 3.0));
        let mean = drawn.iter().sum::<f32>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!(Dropout::new(0.0, 7).is_none());
    }

    #[test]
    fn modules_and_seeds_draw_by_themselves() {
        let drawn = |seed, module| -> Vec<f32> {
            let factors = Dropout { probability: 0.5, seed }.factors(module);
            (0..64).map(|index| factors.at(index)).collect()
        };
        assert_eq!(drawn(1, "a"), drawn(1, "a"));
        assert_ne!(drawn(1, "a"), drawn(1, "b"));
        assert_ne!(drawn(1, "a"), drawn(2, "a"));
    }
}
