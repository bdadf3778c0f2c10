//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) in torch's arithmetic (`torch/optim/adamw.py`, the loop over single
//! tensors): f32 moments, scalars in f64, decay apart from the gradient. bitsandbytes' paged 32-bit AdamW, which the post
//! used, does the same but for where it adds epsilon.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::moments::{AllMoments, Moments};
use crate::model::adapter::Adapter;
use crate::model::training::Gradients;

/// `[optimizer]` of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub learning_rate: f64,
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Not of norms and biases that are trained whole.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients with a longer norm, over all parameters, are scaled down to it; absent: never.
    #[serde(default)]
    pub max_grad_norm: Option<f64>,
    /// LoRA+ (Hayou and others, arXiv 2402.12354): B learns at so many times the rate of A.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lora_plus_ratio: f64,
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn epsilon() -> f64 {
    1e-8
}

fn one() -> f64 {
    1.0
}

fn is_one(number: &f64) -> bool {
    *number == 1.0
}

impl Settings {
    /// One update of `values` at `rate`; `step` counts from 1.
    pub fn update(&self, values: &mut [f32], gradient: &[f32], moments: &mut Moments, rate: f64, step: usize) {
        debug_assert!(values.len() == gradient.len() && values.len() == moments.mean.len());
        let [beta1, beta2] = self.betas;
        let size = rate / (1.0 - beta1.powf(step as f64));
        let root = (1.0 - beta2.powf(step as f64)).sqrt() as f32;
        let decay = (1.0 - rate * self.weight_decay) as f32;
        let (weight1, weight2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let (beta2, epsilon, size) = (beta2 as f32, self.epsilon as f32, size as f32);
        let rows = values.iter_mut().zip(gradient).zip(moments.mean.iter_mut().zip(moments.square.iter_mut()));
        for ((value, &gradient), (mean, square)) in rows {
            *mean += weight1 * (gradient - *mean);
            *square = *square * beta2 + weight2 * gradient * gradient;
            *value = *value * decay - size * (*mean / (square.sqrt() / root + epsilon));
        }
    }
}

/// The optimiser of an adapter.
#[derive(Debug)]
pub struct AdamW {
    pub settings: Settings,
    /// Of the adapter's matrices, in order.
    pub moments: AllMoments,
    /// Updates made.
    pub updates: usize,
}

impl AdamW {
    pub fn new(settings: Settings, adapter: &Adapter) -> AdamW {
        let moments = AllMoments::zeros(adapter.matrices().map(|matrix| matrix.values.len()));
        AdamW { settings, moments, updates: 0 }
    }

    /// Keeps the moments in a file in `folder` from here on.
    pub fn spill(&mut self, folder: &Path) -> Result<()> {
        self.moments.spill(folder, self.updates == 0)
    }

    /// Moves `adapter` against `gradients` (as they are: clipped before). `rate` is that of A and of whole tensors. An error
    /// is one of the moments' file, and leaves the adapter half moved.
    pub fn step(&mut self, adapter: &mut Adapter, gradients: &Gradients, rate: f64) -> Result<()> {
        self.updates += 1;
        let (settings, updates, of_pairs) = (self.settings, self.updates, 2 * adapter.pairs.len());
        let decays: Vec<bool> = adapter.whole.iter().map(|whole| decays(&whole.tensor)).collect();
        let matrices = adapter.matrices_mut().zip(gradients.matrices()).collect();
        self.moments.change(matrices, |index, (matrix, gradient), moments| {
            // A and B take turns.
            let is_b = index < of_pairs && index % 2 == 1;
            let rate = if is_b { rate * settings.lora_plus_ratio } else { rate };
            let stays = index >= of_pairs && !decays[index - of_pairs];
            let weight_decay = if stays { 0.0 } else { settings.weight_decay };
            let settings = Settings { weight_decay, ..settings };
            settings.update(&mut matrix.values, &gradient.values, moments, rate, updates);
        })
    }
}

/// Whether weight decay is for that tensor: for norms and biases it is not (transformers' `get_decay_parameter_names`).
fn decays(tensor: &str) -> bool {
    !tensor.ends_with("norm.weight") && !tensor.ends_with(".bias")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::{LoraPair, Matrix, Whole};
    use crate::model::training::PairGradient;
    use crate::train::moments::Half;

    const PLAIN: Settings = Settings {
        learning_rate: 0.1,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: None,
        lora_plus_ratio: 1.0,
    };

    #[test]
    fn the_first_step_is_the_rate_against_the_gradients_sign() {
        let (mut values, mut moments) = (vec![1.0, 1.0], Moments::zeros(2));
        PLAIN.update(&mut values, &[0.5, -3.0], &mut moments, 0.1, 1);
        // m = 0.1 g, v = 0.001 g^2; corrected: m = g, v = g^2; so each moves by 0.1.
        assert!((values[0] - 0.9).abs() < 1e-6 && (values[1] - 1.1).abs() < 1e-6, "{values:?}");
        assert!((moments.mean[0] - 0.05).abs() < 1e-8 && (moments.square[1] - 0.009).abs() < 1e-8);
    }

    #[test]
    fn two_steps_with_decay_by_hand() {
        let settings = Settings { betas: [0.5, 0.5], epsilon: 1.0, weight_decay: 0.1, ..PLAIN };
        let (mut values, mut moments) = (vec![2.0], Moments::zeros(1));
        // Step 1: m = 2, v = 8; corrected 4 and 16. 2 * 0.95 - 0.5 * 4 / (4 + 1) = 1.5.
        settings.update(&mut values, &[4.0], &mut moments, 0.5, 1);
        assert!((values[0] - 1.5).abs() < 1e-6, "{values:?}");
        // Step 2, gradient 2: m = 2, v = 6; corrected by 0.75: 8/3 and 8.
        // 1.5 * 0.95 - 0.5 * (8/3) / (sqrt 8 + 1) = 1.425 - 0.348272 = 1.076728.
        settings.update(&mut values, &[2.0], &mut moments, 0.5, 2);
        assert!((values[0] - 1.076_728).abs() < 1e-6, "{values:?}");
    }

    #[test]
    fn under_lora_plus_b_moves_so_many_times_as_far() {
        let ones = |rows, columns| Matrix { rows, columns, values: vec![1.0; rows * columns] };
        let pair = |module: &str| LoraPair { module: module.to_owned(), scale: 1.0, a: ones(1, 2), b: ones(3, 1) };
        let mut adapter = Adapter { pairs: vec![pair("q"), pair("v")], whole: Vec::new() };
        let gradient = |pair: &LoraPair| PairGradient { a: pair.a.clone(), b: pair.b.clone() };
        let gradients = Gradients { pairs: adapter.pairs.iter().map(gradient).collect(), whole: Vec::new() };
        AdamW::new(Settings { lora_plus_ratio: 4.0, ..PLAIN }, &adapter).step(&mut adapter, &gradients, 0.1).unwrap();
        // The first step moves each number by its rate.
        for pair in &adapter.pairs {
            assert!(pair.a.values.iter().all(|value| (value - 0.9).abs() < 1e-6), "{pair:?}");
            assert!(pair.b.values.iter().all(|value| (value - 0.6).abs() < 1e-6), "{pair:?}");
        }
    }

    #[test]
    fn norms_and_biases_of_whole_tensors_do_not_decay() {
        let one = || Matrix { rows: 1, columns: 1, values: vec![1.0] };
        let whole = |tensor: &str| Whole { tensor: tensor.to_owned(), values: one() };
        let stay =
            ["model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_norm.weight"];
        let tensors =
            ["lm_head.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"];
        let whole: Vec<Whole> = tensors.into_iter().chain(stay).map(whole).collect();
        let pair = LoraPair { module: "model.norm".to_owned(), scale: 1.0, a: one(), b: one() };
        let mut adapter = Adapter { pairs: vec![pair], whole };
        let gradients = Gradients::zeros(&adapter);
        let settings = Settings { weight_decay: 0.5, ..PLAIN };
        AdamW::new(settings, &adapter).step(&mut adapter, &gradients, 0.1).unwrap();
        let values: Vec<f32> = adapter.matrices().map(|matrix| matrix.values[0]).collect();
        assert_eq!(values, [0.95, 0.95, 0.95, 0.95, 1.0, 1.0, 1.0, 1.0], "A, B, head, projection, and what stays");
    }

    #[test]
    fn a_rate_of_0_moves_nothing_but_the_moments() {
        let (mut values, mut moments) = (vec![1.0], Moments::zeros(1));
        PLAIN.update(&mut values, &[1.0], &mut moments, 0.0, 1);
        assert_eq!(values, [1.0]);
        assert!(moments.mean[0] > 0.0);
    }

    #[test]
    fn moments_in_a_file_give_the_same_bits() {
        let matrix = |rows: usize, columns: usize, first: f32| Matrix {
            rows,
            columns,
            values: (0..rows * columns).map(|index| (first + index as f32).sin()).collect(),
        };
        let pair = |module: &str, first| LoraPair {
            module: module.to_owned(),
            scale: 1.0,
            a: matrix(2, 7, first),
            b: matrix(5, 2, first + 3.0),
        };
        let mut adapter = Adapter { pairs: vec![pair("q", 0.5), pair("v", 9.0)], whole: Vec::new() };
        let mut other = adapter.clone();
        let folder = tempfile::tempdir().unwrap();
        let (mut held, mut spilled) = (AdamW::new(PLAIN, &adapter), AdamW::new(PLAIN, &adapter));
        spilled.spill(folder.path()).unwrap();
        for step in 0..6 {
            let gradient = |pair: &LoraPair| PairGradient {
                a: matrix(2, 7, pair.a.values[0] + step as f32),
                b: matrix(5, 2, step as f32),
            };
            let gradients = Gradients { pairs: adapter.pairs.iter().map(gradient).collect(), whole: Vec::new() };
            held.step(&mut adapter, &gradients, 0.01).unwrap();
            spilled.step(&mut other, &gradients, 0.01).unwrap();
            assert_eq!(adapter, other, "step {step}");
            if step == 2 {
                held.spill(folder.path()).unwrap(); // with what it has learnt
                assert!(held.moments.are_spilled());
            }
        }
        for index in 0..4 {
            for half in [Half::Mean, Half::Square] {
                assert_eq!(held.moments.numbers(index, half).unwrap(), spilled.moments.numbers(index, half).unwrap());
            }
        }
        assert_ne!(held.moments.numbers(3, Half::Square).unwrap()[9], 0.0);
    }
}
