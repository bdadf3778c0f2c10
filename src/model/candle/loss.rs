//! The loss of a training step and its gradient by what is trained, layer by layer.
//!
//! Forwards, each layer leaves its input behind; backwards, each layer is recomputed from that input (or its kept graph
//! is used: the numbers are the same), gives the gradients of its LoRA pairs or weights, and hands the gradient of its input to the
//! layer below. So at most one layer's activations are held, whatever the depth.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use super::attention::Pass;
use super::feed_forward::Routing;
use super::footprint::batch_bytes;
use super::linear::{Linear, Mode};
use super::residence::Residence;
use super::whole::Sums;
use super::{CandleDecoder, Layer, LayerOutput};
use crate::model::adapter::{Adapter, Matrix};
use crate::model::decoder::Decoder;
use crate::model::dropout::Dropout;
use crate::model::names;
use crate::model::packed::Packed;
use crate::model::training::{Balance, Gradients, Keep, Loss, LossOptions, MicroBatch, PairGradient, Trainable};

/// What the way back is multiplied by, and what its gradients are afterwards. Half precision goes back with the whole factor
/// (a step's scale of the loss is what keeps its gradients from vanishing); f32 is multiplied once it is there.
#[derive(Clone, Copy)]
struct Factor {
    inside: f64,
    outside: f32,
}

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
        let weights = match &self.residence {
            Residence::Machine => self.weight_bytes as u64,
            Residence::Device { split, .. } => split.waiting,
        };
        weights + 4 * numbers as u64
    }

    /// Those of the micro-batches that are computed side by side. In a device's memory their place is reserved.
    fn walk_bytes(&self, _: usize, largest: usize, keep: Keep) -> u64 {
        if self.residence.is_device() {
            return 0;
        }
        let at_once = if self.device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let whole: usize = self.whole.iter().map(|(_, var)| var.elem_count()).sum();
        // Of a whole tensor, its gradient as a tensor and as plain numbers.
        let graph = batch_bytes(&self.config, largest as u64, largest as u64, keep != Keep::Activations);
        at_once as u64 * (graph + 8 * whole as u64)
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
        let factor = self.factor(factor);
        let mut losses = Vec::with_capacity(batches.len());
        for together in batches.chunks(at_once) {
            let found: Result<Vec<(Loss, Gradients)>> =
                together.par_iter().map(|batch| self.loss_and_gradients(batch, options, factor.inside)).collect();
            for (loss, gradients) in found? {
                sums.add(&gradients, factor.outside);
                losses.push(loss);
            }
        }
        Ok(losses)
    }
}

impl CandleDecoder {
    fn factor(&self, factor: f32) -> Factor {
        match self.dtype {
            DType::F32 => Factor { inside: 1.0, outside: factor },
            _ => Factor { inside: f64::from(factor), outside: 1.0 },
        }
    }

    fn loss(&self, batch: &MicroBatch, options: &LossOptions) -> Result<Loss> {
        let targets = batch.target_count()?;
        let pass = self.pass(&batch.packed, Mode::default())?;
        let mut hidden = self.embed(&batch.packed)?;
        let mut balance = self.balance();
        for layer in 0..self.layers.len() {
            let output = self.run_layer(layer, &hidden, &pass, None)?;
            count(&mut balance, output.routing.as_ref())?;
            hidden = output.hidden.detach();
        }
        let (cross_entropy, _) = self.cross_entropy(&hidden, &batch.targets, None, &mut Sums::default())?;
        Ok(Loss::new(cross_entropy, balance.as_ref(), options.router_aux_loss_coef, targets))
    }

    /// The loss, and `factor` times its gradient by everything in the adapter, in the adapter's order.
    fn loss_and_gradients(&self, batch: &MicroBatch, options: &LossOptions, factor: f64) -> Result<(Loss, Gradients)> {
        let (coefficient, targets) = (options.router_aux_loss_coef, batch.target_count()?);
        let dropout = Dropout::new(options.dropout, batch.seed);
        let pass = self.pass(&batch.packed, Mode { differentiable: true, dropout: dropout.as_ref() })?;
        let (kept, hidden, balance) = self.forwards(batch, &pass, options)?;
        let mut sums = Sums::default();
        let (cross_entropy, gradient) = self.cross_entropy(&hidden, &batch.targets, Some(factor), &mut sums)?;
        let loss = Loss::new(cross_entropy, balance.as_ref(), coefficient, targets);
        let (pairs, gradient) = self.backwards(kept, gradient, &pass, balance, factor * coefficient, &mut sums)?;
        self.embedding_gradient(&batch.packed, gradient, &mut sums)?;
        Ok((loss, Gradients { pairs, whole: self.whole_gradients(sums)? }))
    }

    /// Adds the gradient by the embedding, where it is trained, from that by the hidden states before the first layer.
    fn embedding_gradient(&self, packed: &Packed, gradient: Tensor, sums: &mut Sums) -> Result<()> {
        if !self.trains(names::EMBEDDING) {
            return Ok(());
        }
        let gradient = match self.embedding_scale {
            Some(scale) => (gradient * scale)?,
            None => gradient,
        };
        let ids = Tensor::from_slice(&packed.ids, packed.len(), &self.device)?;
        sums.add(names::EMBEDDING, self.embedding.zeros_like()?.index_add(&ids, &gradient, 0)?)
    }

    fn forwards(
        &self,
        batch: &MicroBatch,
        pass: &Pass,
        options: &LossOptions,
    ) -> Result<(Vec<Kept>, Tensor, Option<Balance>)> {
        // What is kept would keep a layer that waits elsewhere in the device's memory.
        let recompute = options.recompute || self.residence.is_device();
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

    /// The gradients of the pairs, and that of the hidden states before the first layer.
    fn backwards(
        &self,
        mut kept: Vec<Kept>,
        mut gradient: Tensor,
        pass: &Pass,
        balance: Option<Balance>,
        coefficient: f64,
        sums: &mut Sums,
    ) -> Result<(Vec<PairGradient>, Tensor)> {
        let mut found = HashMap::new();
        for layer in (0..self.layers.len()).rev() {
            let Kept { input, output } = kept.pop().expect("one is kept for every layer");
            let output = match output {
                Some(output) => output,
                None => self.run_layer(layer, &input, pass, None)?,
            };
            let mut objective = (output.hidden * gradient)?.sum_all()?.to_dtype(DType::F32)?;
            if let (Some(balance), Some(routing), true) = (&balance, &output.routing, coefficient != 0.0) {
                objective = (objective + (objective_of(balance, routing)? * coefficient)?)?;
            }
            let mut gradients = objective.backward()?;
            for linear in self.layers[layer].linears() {
                found.extend(pair_gradient(linear, &mut gradients)?);
            }
            self.collect_whole(&mut gradients, sums)?;
            gradient = gradients.remove(&input).expect("the residual path always reaches the input").detach();
        }
        let pairs = self.adapted.iter().map(|module| found.remove(module).expect("every pair sits on a linear"));
        Ok((pairs.collect(), gradient))
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
    let gradient: Vec<f32> = balance.gradient().into_iter().map(|derivative| derivative as f32).collect();
    let gradient = Tensor::from_vec(gradient, (1, routing.probabilities.dim(1)?), routing.probabilities.device())?;
    Ok(routing.probabilities.broadcast_mul(&gradient)?.sum_all()?)
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
