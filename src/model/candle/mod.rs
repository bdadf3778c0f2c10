//! The decoder on candle tensors: any device, differentiable. Correct first; on CPUs it is also the second opinion.

use anyhow::Result;
use candle_core::Device;

use crate::model::adapter::{Adapter, Matrix};
use crate::model::config::ModelConfig;
use crate::model::packed::Packed;
use crate::weights::Checkpoint;

/// How weights are held and products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    F32,
    /// On candle's CPU: weights rounded to bf16, products in f32.
    BF16,
    /// As `BF16`, in f16.
    F16,
}

/// How a decoder is made from a checkpoint.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub device: Device,
    pub numerics: Numerics,
    /// Holds every linear of the layers (attention, experts, router) in NF4 with double quantisation.
    pub nf4: bool,
}

/// A loaded model.
pub struct CandleDecoder {}

/// What a training step wants from its pass over one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct LossOptions {
    /// Multiplies the router's load-balancing loss; 0 leaves it out.
    pub router_aux_loss_coef: f64,
    /// Keep only layer inputs and recompute each layer on the way back.
    pub recompute: bool,
    /// Probability of dropping an input of a LoRA pair, and the seed of this micro-batch's draws.
    pub dropout: f64,
    pub seed: u64,
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
#[derive(Clone, Debug, PartialEq)]
pub struct PairGradient {
    pub a: Matrix,
    pub b: Matrix,
}

impl CandleDecoder {
    pub fn load(_checkpoint: &Checkpoint, _config: &ModelConfig, _options: &LoadOptions) -> Result<CandleDecoder> {
        todo!()
    }

    /// Puts `adapter` beside the weights (replacing an earlier one). A pair whose module or shape the model does not
    /// have is an error that names it.
    pub fn set_adapter(&mut self, _adapter: &Adapter) -> Result<()> {
        todo!()
    }

    /// The loss of `packed`, where row i should predict `targets[i]` (`None`: not counted).
    pub fn loss(&self, _packed: &Packed, _targets: &[Option<u32>], _options: &LossOptions) -> Result<Loss> {
        todo!()
    }

    /// The loss and its gradient by every pair of the adapter, in the adapter's order.
    pub fn loss_and_gradients(
        &self,
        _packed: &Packed,
        _targets: &[Option<u32>],
        _options: &LossOptions,
    ) -> Result<(Loss, Vec<PairGradient>)> {
        todo!()
    }
}
