//! LoRA dropout whose draws depend on (seed, module) alone, so that a recomputed layer drops what it dropped before.

use anyhow::Result;
use candle_core::Tensor;

use crate::random::Random;

/// Drops each input of a LoRA pair with this probability and scales the rest up (inverted dropout, as torch's).
pub struct Dropout {
    pub probability: f64,
    pub seed: u64,
}

impl Dropout {
    /// `None` where nothing is dropped.
    pub fn new(probability: f64, seed: u64) -> Option<Dropout> {
        (probability > 0.0).then_some(Dropout { probability, seed })
    }

    pub fn apply(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let mut random = Random::named(self.seed, module);
        let keep = (1.0 / (1.0 - self.probability)) as f32;
        let mask: Vec<f32> =
            (0..x.elem_count()).map(|_| if random.uniform() < self.probability { 0.0 } else { keep }).collect();
        Ok((x * Tensor::from_vec(mask, x.shape(), x.device())?)?)
    }
}
