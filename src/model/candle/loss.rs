//! The loss of a training step and its gradient by the adapter, layer by layer.
//!
//! Forwards, each layer leaves its input behind; backwards, each layer is recomputed from that input (or its kept graph
//! is used: the numbers are the same), gives the gradients of its LoRA pairs, and hands the gradient of its input to the
//! layer below. So at most one layer's activations are held, whatever the depth.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{D, DType, Tensor, Var};
use rayon::prelude::*;

use super::attention::Pass;
use super::feed_forward::Routing;
use super::footprint::batch_bytes;
use super::head::CHUNK;
use super::linear::{Linear, Mode};
use super::{CandleDecoder, Layer, LayerOutput, ops};
use crate::model::adapter::{Adapter, Matrix};
use crate::model::decoder::Decoder;
use crate::model::dropout::Dropout;
use crate::model::training::{Balance, Gradients, Inputs, Loss, LossOptions, MicroBatch, PairGradient, Trainable};

/// A layer's input and, when nothing is recomputed, its graph.
struct Kept {
    input: Var,
    output: Option<LayerOutput>,
}

impl Trainable for CandleDecoder {
    fn adapt(&mut self, adapter: &Adapter) -> Result<()> {
        self.set_adapter(adapter)
    }

    fn held_bytes(&self) -> u64 {
        let pairs = self.layers.iter().flat_map(Layer::linears).filter_map(|linear| linear.lora.as_ref());
        let numbers: usize = pairs.map(|lora| lora.a.elem_count() + lora.b.elem_count()).sum();
        (self.weight_bytes + 4 * numbers) as u64
    }

    /// Those of the micro-batches that are computed side by side.
    fn walk_bytes(&self, _: usize, largest: usize, _: Inputs) -> u64 {
        let at_once = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        at_once as u64 * batch_bytes(&self.config, largest as u64, largest as u64, true)
    }

    fn losses(&self, batches: &[MicroBatch], options: &LossOptions) -> Result<Vec<Loss>> {
        batches.iter().map(|batch| self.loss(batch, options)).collect()
    }

    /// On a CPU micro-batches are computed side by side, one a thread (so no more gradients are held than there are
    /// threads), and added in order.
    fn gradients(
        &self,
        batches: &[MicroBatch],
        options: &LossOptions,
        factor: f32,
        sums: &mut Gradients,
    ) -> Result<Vec<Loss>> {
        let at_once = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let mut losses = Vec::with_capacity(batches.len());
        for together in batches.chunks(at_once) {
            let found: Result<Vec<(Loss, Vec<PairGradient>)>> =
                together.par_iter().map(|batch| self.loss_and_gradients(batch, options)).collect();
            for (loss, pairs) in found? {
                sums.add(&pairs, factor);
                losses.push(loss);
            }
        }
        Ok(losses)
    }
}

impl CandleDecoder {
    fn loss(&self, batch: &MicroBatch, options: &LossOptions) -> Result<Loss> {
        let targets = batch.target_count()?;
        let pass = self.pass(&batch.packed, Mode::default())?;
        let mut hidden = self.embed(&batch.packed)?;
        let mut balance = self.balance();
        for layer in 0..self.layers.len() {
            let output = self.run_layer(layer, &hidden, &pass, None)?;
            count(&mut balance, output.routing.as_ref())?;
            hidden = output.hidden;
        }
        let (cross_entropy, _) = self.cross_entropy(&hidden, &batch.targets, false)?;
        Ok(Loss::new(cross_entropy, balance.as_ref(), options.router_aux_loss_coef, targets))
    }

    /// The loss and its gradient by every pair of the adapter, in the adapter's order.
    fn loss_and_gradients(&self, batch: &MicroBatch, options: &LossOptions) -> Result<(Loss, Vec<PairGradient>)> {
        let (coefficient, targets) = (options.router_aux_loss_coef, batch.target_count()?);
        let dropout = Dropout::new(options.dropout, batch.seed);
        let pass = self.pass(&batch.packed, Mode { differentiable: true, dropout: dropout.as_ref() })?;
        let (kept, hidden, balance) = self.forwards(batch, &pass, options)?;
        let (cross_entropy, gradient) = self.cross_entropy(&hidden, &batch.targets, true)?;
        let loss = Loss::new(cross_entropy, balance.as_ref(), coefficient, targets);
        Ok((loss, self.backwards(kept, gradient, &pass, balance, coefficient)?))
    }

    fn forwards(
        &self,
        batch: &MicroBatch,
        pass: &Pass,
        options: &LossOptions,
    ) -> Result<(Vec<Kept>, Tensor, Option<Balance>)> {
        let recompute = options.recompute;
        let plain = Pass { mode: Mode { differentiable: false, ..pass.mode }, ..pass.clone() };
        let mut hidden = self.embed(&batch.packed)?;
        if options.neftune_alpha.is_some() {
            hidden = noisy(hidden, batch, options)?;
        }
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
                objective = (objective + (objective_of(balance, routing)? * coefficient)?)?;
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
        let rows: Vec<(u32, u32)> =
            targets.iter().enumerate().filter_map(|(row, target)| Some((row as u32, (*target)?))).collect();
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
        Some(Balance::new(self.config.mixture?.experts))
    }
}

/// Embedded tokens with noise on them.
fn noisy(hidden: Tensor, batch: &MicroBatch, options: &LossOptions) -> Result<Tensor> {
    let mut values = hidden.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    batch.add_noise(options, &mut values);
    Ok(Tensor::from_vec(values, hidden.shape(), hidden.device())?.to_dtype(hidden.dtype())?)
}

/// The part of the load-balancing loss that one layer's probabilities can change.
fn objective_of(balance: &Balance, routing: &Routing) -> Result<Tensor> {
    let slopes: Vec<f32> = balance.slopes().into_iter().map(|slope| slope as f32).collect();
    let slopes = Tensor::from_vec(slopes, (1, routing.probabilities.dim(1)?), routing.probabilities.device())?;
    Ok(routing.probabilities.broadcast_mul(&slopes)?.sum_all()?)
}

/// Adds a layer's routing to the counts.
fn count(balance: &mut Option<Balance>, routing: Option<&Routing>) -> Result<()> {
    let (Some(balance), Some(routing)) = (balance, routing) else { return Ok(()) };
    let probabilities = routing.probabilities.detach();
    let sums = probabilities.to_dtype(DType::F64)?.sum(0)?.to_vec1::<f64>()?;
    balance.count(probabilities.dim(0)?, routing.chosen.iter().map(|&expert| expert as usize), &sums);
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
