//! The loss of a training step and its gradient by the adapter, layer by layer.
//!
//! Forwards, each layer leaves its input behind; backwards, each layer is recomputed from that input (or its kept graph
//! is used: the numbers are the same), gives the gradients of its LoRA pairs, and hands the gradient of its input to the
//! layer below. So at most one layer's activations are held, whatever the depth.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor, Var};

use super::attention::Pass;
use super::dropout::Dropout;
use super::feed_forward::Routing;
use super::head::CHUNK;
use super::linear::{Linear, Mode};
use super::{CandleDecoder, LayerOutput, ops};
use crate::model::adapter::Matrix;
use crate::model::decoder::Decoder;
use crate::model::packed::Packed;

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

/// How the tokens of all layers were spread over the experts.
struct Balance {
    /// Mean over (layer, token) of the times expert e was chosen: (experts).
    shares: Vec<f32>,
    /// Mean over (layer, token) of expert e's probability: (experts).
    probabilities: Vec<f32>,
    /// Layers times tokens.
    rows: usize,
}

/// A layer's input and, when nothing is recomputed, its graph.
struct Kept {
    input: Var,
    output: Option<LayerOutput>,
}

impl CandleDecoder {
    /// The loss of `packed`, where row i should predict `targets[i]` (`None`: not counted). No dropout.
    pub fn loss(&self, packed: &Packed, targets: &[Option<u32>], options: &LossOptions) -> Result<Loss> {
        let pass = self.pass(packed, Mode::default())?;
        let mut hidden = self.embed(packed)?;
        let mut balance = self.balance();
        for layer in 0..self.layers.len() {
            let output = self.run_layer(layer, &hidden, &pass, None)?;
            count(&mut balance, output.routing.as_ref())?;
            hidden = output.hidden;
        }
        let (cross_entropy, _) = self.cross_entropy(&hidden, targets, false)?;
        Ok(Loss::new(cross_entropy, balance.as_ref(), options, targets))
    }

    /// The loss and its gradient by every pair of the adapter, in the adapter's order.
    pub fn loss_and_gradients(
        &self,
        packed: &Packed,
        targets: &[Option<u32>],
        options: &LossOptions,
    ) -> Result<(Loss, Vec<PairGradient>)> {
        let dropout = Dropout::new(options.dropout, options.seed);
        let pass = self.pass(packed, Mode { differentiable: true, dropout: dropout.as_ref() })?;
        let (kept, hidden, balance) = self.forwards(packed, &pass, options.recompute)?;
        let (cross_entropy, gradient) = self.cross_entropy(&hidden, targets, true)?;
        let loss = Loss::new(cross_entropy, balance.as_ref(), options, targets);
        let gradients = self.backwards(kept, gradient, &pass, balance, options.router_aux_loss_coef)?;
        Ok((loss, gradients))
    }

    fn forwards(&self, packed: &Packed, pass: &Pass, recompute: bool) -> Result<(Vec<Kept>, Tensor, Option<Balance>)> {
        let plain = Pass { mode: Mode { differentiable: false, ..pass.mode }, ..pass.clone() };
        let mut hidden = self.embed(packed)?;
        let mut balance = self.balance();
        let mut kept = Vec::with_capacity(self.layers.len());
        for layer in 0..self.layers.len() {
            let input = Var::from_tensor(&hidden)?;
            let output = match recompute {
                true => self.run_layer(layer, &hidden, &plain, None)?,
                false => self.run_layer(layer, &input, pass, None)?,
            };
            count(&mut balance, output.routing.as_ref())?;
            hidden = output.hidden.detach();
            kept.push(Kept { input, output: (!recompute).then_some(output) });
        }
        Ok((kept, hidden, balance))
    }

    fn backwards(
        &self,
        mut kept: Vec<Kept>,
        mut gradient: Tensor,
        pass: &Pass,
        balance: Option<Balance>,
        coefficient: f64,
    ) -> Result<Vec<PairGradient>> {
        let mut found = HashMap::new();
        for layer in (0..self.layers.len()).rev() {
            let Kept { input, output } = kept.pop().expect("one is kept for every layer");
            let output = match output {
                Some(output) => output,
                None => self.run_layer(layer, &input, pass, None)?,
            };
            let mut objective = (output.hidden * gradient)?.sum_all()?;
            if let (Some(balance), Some(routing), true) = (&balance, &output.routing, coefficient != 0.0) {
                objective = (objective + (balance.objective(routing)? * coefficient)?)?;
            }
            let mut gradients = objective.backward()?;
            for linear in self.layers[layer].linears() {
                found.extend(pair_gradient(linear, &mut gradients)?);
            }
            gradient = gradients.remove(&input).expect("the residual path always reaches the input");
        }
        Ok(self.adapted.iter().map(|module| found.remove(module).expect("every pair sits on a linear")).collect())
    }

    /// Mean cross-entropy over the rows with a target and, if asked for, its gradient by `hidden`.
    fn cross_entropy(&self, hidden: &Tensor, targets: &[Option<u32>], wants_gradient: bool) -> Result<(f64, Tensor)> {
        ensure!(targets.len() == hidden.dim(0)?, "{} targets for {} tokens", targets.len(), hidden.dim(0)?);
        let rows: Vec<(u32, u32)> =
            targets.iter().enumerate().filter_map(|(row, target)| Some((row as u32, (*target)?))).collect();
        ensure!(!rows.is_empty(), "no token of this batch is trained on");
        let mut sum = 0.0;
        let mut gradient = hidden.zeros_like()?;
        for chunk in rows.chunks(CHUNK) {
            let (at, targets): (Vec<u32>, Vec<u32>) = chunk.iter().copied().unzip();
            let at = Tensor::from_vec(at, chunk.len(), hidden.device())?;
            let targets = Tensor::from_vec(targets, (chunk.len(), 1), hidden.device())?;
            let picked = Var::from_tensor(&hidden.index_select(&at, 0)?)?;
            let (losses, part) = self.chunk_loss(&picked, &targets, wants_gradient)?;
            sum += losses;
            if let Some(part) = part {
                gradient = gradient.index_add(&at, &(part / rows.len() as f64)?, 0)?;
            }
        }
        Ok((sum / rows.len() as f64, gradient))
    }

    /// Summed cross-entropy of some rows and the gradient of that sum by them: `softmax - one hot`, back through head
    /// and norm.
    fn chunk_loss(&self, hidden: &Var, targets: &Tensor, wants_gradient: bool) -> Result<(f64, Option<Tensor>)> {
        let normed = ops::rms_norm(hidden, &self.norm, self.config.rms_norm_eps)?;
        let logits = self.logits_of(&normed.detach())?;
        let losses = (logits.log_sum_exp(D::Minus1)? - logits.gather(targets, D::Minus1)?.squeeze(D::Minus1)?)?;
        let sum = losses.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        if !wants_gradient {
            return Ok((sum, None));
        }
        let minus_one = (targets.ones_like()?.to_dtype(DType::F32)? * -1.0)?;
        let gradient = candle_nn::ops::softmax_last_dim(&logits)?.scatter_add(targets, &minus_one, 1)?;
        let gradient = match self.config.final_softcap {
            Some(cap) => (gradient * (1.0 - (&logits / cap)?.sqr()?)?)?, // d/dz of cap * tanh(z / cap)
            None => gradient,
        };
        let gradient = gradient.to_dtype(normed.dtype())?.matmul(&self.head)?;
        let mut gradients = (normed * gradient)?.sum_all()?.backward()?;
        Ok((sum, gradients.remove(hidden)))
    }

    fn balance(&self) -> Option<Balance> {
        let experts = self.config.mixture?.experts;
        Some(Balance { shares: vec![0.0; experts], probabilities: vec![0.0; experts], rows: 0 })
    }
}

impl Loss {
    fn new(cross_entropy: f64, balance: Option<&Balance>, options: &LossOptions, targets: &[Option<u32>]) -> Loss {
        let router_aux = balance.map(Balance::loss);
        let total = cross_entropy + options.router_aux_loss_coef * router_aux.unwrap_or(0.0);
        Loss { cross_entropy, router_aux, total, targets: targets.iter().flatten().count() }
    }
}

/// The load-balancing loss of transformers' Mixtral (Switch Transformers, arXiv 2101.03961, equations 4 to 6, over all
/// layers at once): `E * sum_e f_e * P_e`.
impl Balance {
    fn loss(&self) -> f64 {
        let rows = self.rows as f64;
        let terms = self.shares.iter().zip(&self.probabilities);
        let sum: f64 =
            terms.map(|(&share, &probability)| f64::from(share) / rows * f64::from(probability) / rows).sum();
        sum * self.shares.len() as f64
    }

    /// The part of the loss that one layer's probabilities can change: f_e is counted, so it has no gradient.
    fn objective(&self, routing: &Routing) -> Result<Tensor> {
        let shares: Vec<f32> = self.shares.iter().map(|share| share / self.rows as f32).collect();
        let shares = Tensor::from_vec(shares, (1, self.shares.len()), routing.probabilities.device())?;
        let scale = self.shares.len() as f64 / self.rows as f64;
        Ok((routing.probabilities.broadcast_mul(&shares)?.sum_all()? * scale)?)
    }
}

/// Adds a layer's routing to the counts.
fn count(balance: &mut Option<Balance>, routing: Option<&Routing>) -> Result<()> {
    let (Some(balance), Some(routing)) = (balance, routing) else { return Ok(()) };
    balance.rows += routing.probabilities.dim(0)?;
    routing.chosen.iter().for_each(|&expert| balance.shares[expert as usize] += 1.0);
    let sums = routing.probabilities.detach().sum(0)?.to_vec1::<f32>()?;
    balance.probabilities.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    Ok(())
}

/// The gradient of a linear's pair; zeros for an expert that got no token. `None` without a pair.
fn pair_gradient(
    linear: &Linear,
    gradients: &mut candle_core::backprop::GradStore,
) -> Result<Option<(String, PairGradient)>> {
    let Some(lora) = &linear.lora else { return Ok(None) };
    let mut matrix = |var: &Var| -> Result<Matrix> {
        let (rows, columns) = var.dims2()?;
        let values = match gradients.remove(var) {
            Some(gradient) => gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
            None => vec![0.0; rows * columns],
        };
        Ok(Matrix { rows, columns, values })
    };
    Ok(Some((linear.module.clone(), PairGradient { a: matrix(&lora.a)?, b: matrix(&lora.b)? })))
}
