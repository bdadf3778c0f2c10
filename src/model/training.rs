//! What a training step asks of a decoder: the losses of micro-batches and their gradient by the adapter. Both homes
//! answer, each is the other's test.

use std::path::Path;

use anyhow::{Result, ensure};

use super::adapter::{Adapter, Matrix};
use super::neftune::Neftune;
use super::packed::Packed;

/// Dialogues whose mean loss is one term of a step's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    pub packed: Packed,
    /// What each row should predict; `None`: not counted.
    pub targets: Vec<Option<u32>>,
    /// Of what is drawn at random.
    pub seed: u64,
}

/// What a training step wants from its pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossOptions {
    /// Multiplies the router's load-balancing loss; 0 leaves it out.
    pub router_aux_loss_coef: f64,
    /// Keep only layer inputs and recompute each layer on the way back; else keep activations ([`Keep::Activations`]).
    pub recompute: bool,
    /// Probability of dropping an input of a LoRA pair.
    pub dropout: f64,
    /// Noise on embedded tokens (NEFTune).
    pub neftune_alpha: Option<f64>,
}

/// Loss of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross-entropy over the rows with a target, natural log.
    pub cross_entropy: f64,
    /// The load-balancing loss before its coefficient; `None` for a dense model.
    pub router_aux: Option<f64>,
    /// `cross_entropy + coefficient * router_aux`.
    pub total: f64,
    /// Rows with a target.
    pub targets: usize,
}

/// The gradient of one LoRA pair, shapes as in the pair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairGradient {
    pub a: Matrix,
    pub b: Matrix,
}

/// A sum of gradients, one for each of an adapter's pairs and whole tensors, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    pub pairs: Vec<PairGradient>,
    pub whole: Vec<Matrix>,
}

/// What a walk keeps of every layer until it is gone back through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Its input, from which it is computed again.
    #[default]
    Inputs,
    /// The same in a file, from which a portion at a time is read again.
    SpilledInputs,
    /// All that the way back needs: nothing is computed again.
    Activations,
}

/// A decoder whose adapter can be trained.
pub trait Trainable: Send + Sync {
    /// Puts `adapter` beside the weights, as [`super::decoder::Decoder::set_adapter`] does.
    fn adapt(&mut self, adapter: &Adapter) -> Result<()>;

    /// Bytes held as long as the decoder is: weights in memory, and a copy of the adapter's numbers if it has one.
    fn held_bytes(&self) -> u64;

    /// What [`Trainable::held_bytes`] would be with the layers streamed from disk, two at a time; `None`: they can't be.
    fn streamed_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes that a way through all layers reads where these are streamed.
    fn layers_bytes(&self) -> u64 {
        0
    }

    /// Bytes more in memory while micro-batches of so many `tokens` in all, `largest` in one of them, walk together.
    fn walk_bytes(&self, tokens: usize, largest: usize, keep: Keep) -> u64;

    /// Bytes on the disk of so many tokens' spilled inputs; `None`: this home keeps them in memory.
    fn spilled_bytes(&self, _tokens: usize) -> Option<u64> {
        None
    }

    /// Streams the layers from here on if `streams`, and spills their inputs into files in `spill` if that is a folder. No
    /// number depends on either.
    fn arrange(&mut self, streams: bool, spill: Option<&Path>) -> Result<()> {
        ensure!(!streams && spill.is_none(), "this home holds model and layer inputs in memory");
        Ok(())
    }

    /// The losses of some micro-batches, without dropout.
    fn losses(&self, batches: &[MicroBatch], options: &LossOptions) -> Result<Vec<Loss>>;

    /// The losses of some micro-batches that walk together; `factor` times the gradient of each's total is added to
    /// `sums`, in their order.
    fn gradients(
        &self,
        batches: &[MicroBatch],
        options: &LossOptions,
        factor: f32,
        sums: &mut Gradients,
    ) -> Result<Vec<Loss>>;
}

impl MicroBatch {
    /// Adds the noise that `options` ask for to its embedded tokens, (tokens, hidden).
    pub fn add_noise(&self, options: &LossOptions, hidden: &mut [f32]) {
        if let Some(alpha) = options.neftune_alpha {
            Neftune { alpha, seed: self.seed }.add(hidden, &self.packed);
        }
    }

    /// How many rows have a target; none is an error.
    pub fn target_count(&self) -> Result<usize> {
        ensure!(
            self.targets.len() == self.packed.len(),
            "{} targets for {} tokens",
            self.targets.len(),
            self.packed.len()
        );
        let count = self.targets.iter().flatten().count();
        ensure!(count > 0, "no token of this batch is trained on");
        Ok(count)
    }
}

impl Loss {
    /// From the mean cross-entropy over `targets` rows.
    pub fn new(cross_entropy: f64, balance: Option<&Balance>, coefficient: f64, targets: usize) -> Loss {
        let router_aux = balance.map(Balance::loss);
        let total = cross_entropy + coefficient * router_aux.unwrap_or(0.0);
        Loss { cross_entropy, router_aux, total, targets }
    }
}

impl Gradients {
    pub fn zeros(adapter: &Adapter) -> Gradients {
        let zeros = |matrix: &Matrix| Matrix::zeros(matrix.rows, matrix.columns);
        let pairs = adapter.pairs.iter().map(|pair| PairGradient { a: zeros(&pair.a), b: zeros(&pair.b) });
        let whole = adapter.whole.iter().map(|whole| zeros(&whole.values));
        Gradients { pairs: pairs.collect(), whole: whole.collect() }
    }

    /// Adds `weight` times the gradients of one micro-batch.
    pub fn add(&mut self, found: &Gradients, weight: f32) {
        for (sum, found) in self.matrices_mut().zip(found.matrices()) {
            debug_assert_eq!(sum.values.len(), found.values.len());
            sum.values.iter_mut().zip(&found.values).for_each(|(sum, value)| *sum += weight * value);
        }
    }

    /// The gradients of A and B of every pair, in order, and then of whole tensors.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.pairs.iter().flat_map(|pair| [&pair.a, &pair.b]).chain(&self.whole)
    }

    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        self.pairs.iter_mut().flat_map(|pair| [&mut pair.a, &mut pair.b]).chain(&mut self.whole)
    }

    /// The Euclidean norm over all of them.
    pub fn norm(&self) -> f64 {
        let values = self.matrices().flat_map(|matrix| &matrix.values);
        values.map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    }

    pub fn scale(&mut self, factor: f32) {
        self.matrices_mut().flat_map(|matrix| &mut matrix.values).for_each(|value| *value *= factor);
    }

    /// Scales a gradient of norm `norm` down to `longest` (torch's `clip_grad_norm_`).
    pub fn clip(&mut self, norm: f64, longest: f64) {
        self.scale(clip_factor(norm, longest) as f32);
    }
}

fn clip_factor(norm: f64, longest: f64) -> f64 {
    (longest / (norm + 1e-6)).min(1.0)
}

/// How the tokens of a micro-batch were spread over the experts, in all layers: what the load-balancing loss of
/// transformers' Mixtral looks at (Switch Transformers, arXiv 2101.03961, equations 4 to 6, over all layers at once).
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// How often expert e was chosen.
    chosen: Vec<f64>,
    /// Sums of expert e's probability.
    probabilities: Vec<f64>,
    /// Layers times tokens.
    rows: usize,
}

impl Balance {
    pub fn new(experts: usize) -> Balance {
        Balance { chosen: vec![0.0; experts], probabilities: vec![0.0; experts], rows: 0 }
    }

    /// Adds `rows` tokens of a layer: which experts were chosen, and each expert's summed probability.
    pub fn count(&mut self, rows: usize, chosen: impl Iterator<Item = usize>, probabilities: &[f64]) {
        self.rows += rows;
        chosen.for_each(|expert| self.chosen[expert] += 1.0);
        self.probabilities.iter_mut().zip(probabilities).for_each(|(sum, probability)| *sum += probability);
    }

    /// `E * sum_e f_e * P_e`: means over (layer, token) of the times e was chosen and of its probability.
    pub fn loss(&self) -> f64 {
        let rows = self.rows as f64;
        let terms = self.chosen.iter().zip(&self.probabilities);
        terms.map(|(chosen, probability)| chosen / rows * probability / rows).sum::<f64>() * self.chosen.len() as f64
    }

    /// The loss' derivative by one token's probability of each expert. f_e is counted, so it has none.
    pub fn gradient(&self) -> Vec<f64> {
        let rows = self.rows as f64;
        self.chosen.iter().map(|chosen| self.chosen.len() as f64 * chosen / rows / rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Matrix {
        Matrix { rows: 1, columns: values.len(), values: values.to_vec() }
    }

    #[test]
    fn micro_batches_are_averaged_and_a_long_gradient_is_cut() {
        let pair = |a: &[f32], b: &[f32]| Gradients {
            pairs: vec![PairGradient { a: row(a), b: row(b) }],
            whole: vec![row(&[0.0])],
        };
        let mut gradients = pair(&[0.0], &[0.0, 0.0]);
        gradients.add(&pair(&[6.0], &[0.0, 2.0]), 0.5);
        gradients.add(&pair(&[0.0], &[0.0, 6.0]), 0.5);
        assert_eq!(gradients.pairs[0], PairGradient { a: row(&[3.0]), b: row(&[0.0, 4.0]) });
        assert_eq!(gradients.norm(), 5.0);
        gradients.clip(5.0, 10.0);
        assert_eq!(gradients.norm(), 5.0, "short enough");
        gradients.clip(5.0, 0.5);
        // 0.5 / (5 + 1e-6), torch's formula, is a hair below a tenth.
        assert!((gradients.norm() - 0.5).abs() < 1e-6 && gradients.norm() < 0.5);
        assert!((clip_factor(5.0, 0.3) - 0.059_999_988).abs() < 1e-9);
        assert_eq!(clip_factor(0.0, 0.3), 1.0);
    }

    #[test]
    fn even_routing_costs_as_many_as_are_chosen() {
        let mut balance = Balance::new(4);
        balance.count(2, [0, 1, 2, 3].into_iter(), &[0.5; 4]);
        assert_eq!(balance.loss(), 2.0);
        assert_eq!(balance.gradient(), [1.0; 4]); // 4 * (1 / 2) / 2
        balance.count(2, [0, 0, 0, 0].into_iter(), &[2.0, 0.0, 0.0, 0.0]);
        assert_eq!(balance.loss(), 4.0 * (5.0 / 4.0 * 2.5 / 4.0 + 3.0 * (0.25 * 0.5 / 4.0)));
    }
}
