//! NEFTune (Jain and others, arXiv 2310.05914): while a model is trained, uniform noise is added to its embedded tokens.
//!
//! The noise of a dialogue of `length` tokens lies within `alpha / sqrt(length * hidden)`. The paper's own code and trl
//! take the padded length of a batch; without padding a dialogue's noise depends on its own length alone. It is added
//! before the first layer, so it has no gradient of its own.
//!
//! Invariant: a dialogue's noise is named by the seed and its place in the micro-batch, so a step has the same noise
//! whether its activations are kept or computed again, on any number of threads, resumed or not.

use crate::model::packed::Packed;
use crate::random::Random;

/// The noise of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neftune {
    pub alpha: f64,
    /// Of the step and the micro-batch.
    pub seed: u64,
}

impl Neftune {
    /// Adds the noise to `hidden`, (tokens, hidden size): the tokens of `packed`, embedded. Segments are whole dialogues.
    pub fn add(&self, hidden: &mut [f32], packed: &Packed) {
        let width = hidden.len() / packed.len().max(1);
        for (place, segment) in packed.segments.iter().enumerate() {
            let rows = &mut hidden[segment.start * width..(segment.start + segment.len) * width];
            let bound = self.alpha / (rows.len() as f64).sqrt();
            let mut random = Random::named(self.seed, &format!("noise on dialogue {place}"));
            rows.iter_mut().for_each(|value| *value += ((2.0 * random.uniform() - 1.0) * bound) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 8;

    fn noise(neftune: Neftune, lengths: &[usize]) -> Vec<Vec<f32>> {
        let dialogues: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
        let packed = Packed::rows(&dialogues);
        let mut hidden = vec![0.0; packed.len() * WIDTH];
        neftune.add(&mut hidden, &packed);
        packed.segments.iter().map(|s| hidden[s.start * WIDTH..(s.start + s.len) * WIDTH].to_vec()).collect()
    }

    #[test]
    fn noise_fills_the_bound_of_each_dialogues_own_length() {
        // 5 / sqrt(200 * 8) = 0.125 and 5 / sqrt(50 * 8) = 0.25.
        let found = noise(Neftune { alpha: 5.0, seed: 1 }, &[200, 50]);
        for (noise, bound) in found.iter().zip([0.125f32, 0.25]) {
            let largest = noise.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest <= bound && largest > 0.95 * bound, "{largest} of {bound}");
            let mean = noise.iter().sum::<f32>() / noise.len() as f32;
            let square = noise.iter().map(|value| value * value).sum::<f32>() / noise.len() as f32;
            // A uniform's variance is bound^2 / 3.
            assert!(mean.abs() < 0.1 * bound && (square / (bound * bound / 3.0) - 1.0).abs() < 0.15, "{mean} {square}");
        }
    }

    #[test]
    fn noise_is_that_of_the_seed_and_the_place() {
        let of = |seed, lengths: &[usize]| noise(Neftune { alpha: 5.0, seed }, lengths);
        let [first, second] = <[Vec<f32>; 2]>::try_from(of(1, &[4, 4])).unwrap();
        assert_eq!(of(1, &[4])[0], first, "whatever else is there");
        assert_ne!(first, second);
        assert_ne!(of(2, &[4])[0], first);
    }

    #[test]
    fn noise_is_added() {
        let packed = Packed::rows(&[vec![0u32; 3]]);
        let (mut zeros, mut ones) = (vec![0f32; 24], vec![1f32; 24]);
        let neftune = Neftune { alpha: 1.0, seed: 3 };
        neftune.add(&mut zeros, &packed);
        neftune.add(&mut ones, &packed);
        assert!(zeros.iter().zip(&ones).all(|(zero, one)| (one - zero - 1.0).abs() < 1e-6));
    }
}
