//! Weights that are trained themselves: variables in place of the checkpoint's tensors, and sums of their gradients.
//!
//! Norms and linears stand in a layer's graph; embedding and head have their gradients made by hand, since their rows are
//! picked and their products made in chunks outside of it.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::CandleDecoder;
use super::linear::Weight;
use super::residence::Residence;
use crate::model::adapter::{Matrix, Whole};
use crate::model::names;

/// Gradients by tensor.
#[derive(Default)]
pub struct Sums(HashMap<String, Tensor>);

/// Those of an adapter's whole tensors that have found no place yet.
struct Unplaced<'a> {
    left: HashMap<&'a str, &'a Whole>,
    placed: HashMap<String, Var>,
    /// What numbers are rounded to, and what they are then held as.
    types: [DType; 2],
    device: Device,
}

impl Sums {
    pub fn add(&mut self, tensor: &str, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(tensor) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(tensor.to_owned(), sum.detach());
        Ok(())
    }
}

impl Unplaced<'_> {
    /// The variable for the tensor of that name, if it is trained.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Option<Var>> {
        let Some(Whole { values: Matrix { rows, columns, values }, .. }) = self.left.remove(name) else {
            return Ok(None);
        };
        let fits = match shape {
            [width] => *rows == 1 && columns == width,
            _ => shape == [*rows, *columns],
        };
        ensure!(fits, "`{name}` is trained as {rows} x {columns}, but the model has it as {shape:?}");
        let [rounded, held] = self.types;
        let tensor = Tensor::from_slice(values, shape, &self.device)?.to_dtype(rounded)?.to_dtype(held)?;
        let var = Var::from_tensor(&tensor)?;
        self.placed.insert(name.to_owned(), var.clone());
        Ok(Some(var))
    }
}

impl CandleDecoder {
    /// Puts variables in the places of `whole`. A tensor that the model does not have is an error, and so are layers that
    /// wait outside the device's memory: they would have to be brought back changed.
    pub(super) fn lay_in(&mut self, whole: &[Whole]) -> Result<()> {
        if let (Residence::Device { split, .. }, false) = (&self.residence, whole.is_empty()) {
            ensure!(
                split.resident == self.layers.len(),
                "weights are trained only where all of them fit into the card's memory: give more with --device-memory, or \
                 train a LoRA adapter"
            );
        }
        let mut unplaced = Unplaced {
            left: whole.iter().map(|whole| (whole.tensor.as_str(), whole)).collect(),
            placed: HashMap::new(),
            types: [self.rounding, self.dtype],
            device: self.device.clone(),
        };
        self.lay_in_ends(&mut unplaced)?;
        self.lay_in_layers(&mut unplaced)?;
        if let Some(name) = unplaced.left.keys().min() {
            bail!("the model has no tensor `{name}` to train");
        }
        let var = |whole: &Whole| unplaced.placed.remove(&whole.tensor).map(|var| (whole.tensor.clone(), var));
        self.whole = whole.iter().filter_map(var).collect();
        Ok(())
    }

    fn lay_in_ends(&mut self, unplaced: &mut Unplaced) -> Result<()> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        if let Some(embedding) = unplaced.take(names::EMBEDDING, &shape)? {
            self.embedding = embedding.as_detached_tensor();
            if self.config.tie_word_embeddings {
                self.head = self.embedding.clone();
            }
        }
        if !self.config.tie_word_embeddings
            && let Some(head) = unplaced.take(names::HEAD, &shape)?
        {
            self.head = head.as_detached_tensor();
        }
        if let Some(norm) = unplaced.take(names::NORM, &shape[1..])? {
            self.norm = multiplier(&norm, self.config.norm_plus_one)?;
        }
        Ok(())
    }

    fn lay_in_layers(&mut self, unplaced: &mut Unplaced) -> Result<()> {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            // The norms come in the order of their names.
            for ((name, shape), norm) in names::vectors(&self.config, index).iter().zip(layer.norms_mut()) {
                if let Some(var) = unplaced.take(name, shape)? {
                    *norm = multiplier(&var, self.config.norm_plus_one)?;
                }
            }
            for linear in layer.linears_mut() {
                let shape = [linear.outputs, linear.inputs];
                if let Some(var) = unplaced.take(&names::weight(&linear.module), &shape)? {
                    linear.weight = Weight::Trained(var);
                }
                if linear.bias.is_some()
                    && let Some(var) = unplaced.take(&names::bias(&linear.module), &shape[..1])?
                {
                    linear.bias = Some(var.as_tensor().clone());
                }
            }
        }
        Ok(())
    }

    /// Whether that tensor is trained.
    pub(super) fn trains(&self, tensor: &str) -> bool {
        self.whole.iter().any(|(name, _)| name == tensor)
    }

    /// Moves the gradients of whole tensors from `found` to `sums`.
    pub(super) fn collect_whole(&self, found: &mut GradStore, sums: &mut Sums) -> Result<()> {
        for (name, var) in &self.whole {
            if let Some(gradient) = found.remove(var) {
                sums.add(name, gradient)?;
            }
        }
        Ok(())
    }

    /// The sums as plain numbers, in the adapter's order; zeros for an expert that got no token.
    pub(super) fn whole_gradients(&self, mut sums: Sums) -> Result<Vec<Matrix>> {
        let matrix = |(name, var): &(String, Var)| {
            let columns = var.dims().last().copied().unwrap_or(1);
            let rows = var.elem_count() / columns;
            let values = match sums.0.remove(name) {
                Some(gradient) => gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
                None => vec![0.0; rows * columns],
            };
            Ok(Matrix { rows, columns, values })
        };
        self.whole.iter().map(matrix).collect()
    }
}

/// What a norm multiplies by: its weights, in some families one more than these.
fn multiplier(weights: &Var, plus_one: bool) -> Result<Tensor> {
    Ok(if plus_one { (weights.as_tensor().to_dtype(DType::F32)? + 1.0)? } else { weights.as_tensor().clone() })
}
