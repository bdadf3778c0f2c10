//! The gradient of a step: the mean over its micro-batches, its norm, and clipping to a norm.
//!
//! A micro-batch's loss is the mean over its own tokens, and a step's gradient the plain mean of those, however many
//! tokens each had: so did transformers 4.36, which the post used (newer versions weigh by tokens).

use crate::model::adapter::{Adapter, Matrix};
use crate::model::candle::PairGradient;

/// One matrix for each of the adapter's, A and B of every pair in order.
pub struct Gradients(Vec<Vec<f32>>);

impl Gradients {
    pub fn zeros(adapter: &Adapter) -> Gradients {
        Gradients(adapter.matrices().map(|matrix| vec![0.0; matrix.values.len()]).collect())
    }

    /// Adds `weight` times the gradient of one micro-batch.
    pub fn add(&mut self, pairs: &[PairGradient], weight: f32) {
        let matrices = pairs.iter().flat_map(|pair| [&pair.a, &pair.b]);
        for (sum, Matrix { values, .. }) in self.0.iter_mut().zip(matrices) {
            debug_assert_eq!(sum.len(), values.len());
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
    }

    /// The Euclidean norm over all of them.
    pub fn norm(&self) -> f64 {
        self.0.iter().flatten().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    }

    /// Scales a gradient of norm `norm` down to `longest` (torch's `clip_grad_norm_`).
    pub fn clip(&mut self, norm: f64, longest: f64) {
        let factor = clip_factor(norm, longest) as f32;
        self.0.iter_mut().flatten().for_each(|value| *value *= factor);
    }

    pub fn matrices(&self) -> &[Vec<f32>] {
        &self.0
    }
}

fn clip_factor(norm: f64, longest: f64) -> f64 {
    (longest / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Matrix {
        Matrix { rows: 1, columns: values.len(), values: values.to_vec() }
    }

    #[test]
    fn micro_batches_are_averaged_and_a_long_gradient_is_cut() {
        let mut gradients = Gradients(vec![vec![0.0], vec![0.0, 0.0]]);
        gradients.add(&[PairGradient { a: row(&[6.0]), b: row(&[0.0, 2.0]) }], 0.5);
        gradients.add(&[PairGradient { a: row(&[0.0]), b: row(&[0.0, 6.0]) }], 0.5);
        assert_eq!(gradients.matrices(), [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(gradients.norm(), 5.0);
        gradients.clip(5.0, 10.0);
        assert_eq!(gradients.norm(), 5.0, "short enough");
        gradients.clip(5.0, 0.5);
        // 0.5 / (5 + 1e-6), torch's formula, is a hair below a tenth.
        assert!((gradients.norm() - 0.5).abs() < 1e-6 && gradients.norm() < 0.5);
        assert!((clip_factor(5.0, 0.3) - 0.059_999_988).abs() < 1e-9);
        assert_eq!(clip_factor(0.0, 0.3), 1.0);
    }
}
