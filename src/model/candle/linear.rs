//! A frozen linear with, where an adapter says so, a LoRA pair beside it.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor, Var};

use super::graft::graft;
use super::nf4::{DeviceNf4, Tables};
use crate::model::dropout::Dropout;
use crate::weights::nf4::Nf4;

/// How the frozen matrix is held.
#[derive(Clone)]
pub enum Weight {
    Dense(Tensor), // (outputs, inputs)
    /// Decoded anew at each use, on the way back too: a layer is visited once per wave or step, so this costs little and
    /// holds 4 bits; a graph that kept the decoded matrices would hold a layer's worth of them. This one by the
    /// processor's kernels.
    Nf4(Arc<Nf4<'static>>),
    /// The same, in the device's memory and decoded there.
    Packed(DeviceNf4),
    /// Trained itself.
    Trained(Var), // (outputs, inputs)
}

/// The pair as tensors: `scale * (x A^T) B^T`.
#[derive(Clone)]
pub struct Lora {
    pub a: Var, // (rank, inputs)
    pub b: Var, // (outputs, rank)
    pub scale: f64,
}

/// What a pass wants of its linears.
#[derive(Clone, Copy, Default)]
pub struct Mode<'a> {
    /// Whether the result carries a graph back to its input and to the LoRA pairs.
    pub differentiable: bool,
    pub dropout: Option<&'a Dropout>,
}

/// `y = x W^T (+ bias) (+ scale * (x A^T) B^T)`.
#[derive(Clone)]
pub struct Linear {
    /// Module path as the checkpoint spells it.
    pub module: String,
    pub outputs: usize,
    pub inputs: usize,
    pub weight: Weight,
    pub bias: Option<Tensor>, // (outputs)
    pub lora: Option<Lora>,
}

impl Linear {
    /// `x`: (rows, inputs) -> (rows, outputs). The gradient goes to `x` and to what is trained, never to a frozen matrix.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let product = match &self.weight {
            Weight::Trained(weight) if mode.differentiable => x.matmul(&weight.t()?)?,
            _ => self.frozen(x)?,
        };
        let product = match &self.bias {
            Some(bias) => product.broadcast_add(bias)?,
            None => product,
        };
        match &self.lora {
            None => Ok(product),
            Some(lora) => Ok((product + self.update(x, lora, mode)?)?),
        }
    }

    fn frozen(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, shape) = (self.weight.clone(), (self.outputs, self.inputs));
        let value = x.detach().matmul(&weight.matrix(shape, x)?.t()?)?;
        graft(x, value, move |_, gradient| gradient.matmul(&weight.matrix(shape, gradient)?))
    }

    fn update(&self, x: &Tensor, lora: &Lora, mode: Mode) -> Result<Tensor> {
        let input = match mode.dropout {
            Some(dropout) => drop_some(x, dropout, &self.module)?,
            None => x.clone(),
        };
        let (a, b) = match mode.differentiable {
            true => (lora.a.as_tensor().clone(), lora.b.as_tensor().clone()),
            false => (lora.a.as_detached_tensor(), lora.b.as_detached_tensor()),
        };
        Ok((input.matmul(&a.t()?)?.matmul(&b.t()?)? * lora.scale)?)
    }
}

fn drop_some(x: &Tensor, dropout: &Dropout, module: &str) -> Result<Tensor> {
    let factors = dropout.factors(module);
    let factors: Vec<f32> = (0..x.elem_count()).map(|index| factors.at(index)).collect();
    Ok((x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?)?)
}

impl Weight {
    /// The matrix of `shape`, (outputs, inputs), as a tensor that `factor` can be multiplied with.
    fn matrix(&self, shape: (usize, usize), factor: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Weight::Dense(tensor) => Ok(tensor.clone()),
            Weight::Nf4(codes) => Tensor::from_vec(codes.dequantize(), shape, &Device::Cpu),
            Weight::Packed(codes) => codes.matrix(shape, factor.dtype()),
            Weight::Trained(weight) => Ok(weight.as_detached_tensor()),
        }
    }

    /// The same in the memory of the device that `tables` are on.
    pub fn moved(&self, tables: &Tables) -> Result<Weight> {
        Ok(match self {
            Weight::Dense(tensor) => Weight::Dense(tensor.to_device(tables.device())?),
            Weight::Nf4(codes) => Weight::Packed(DeviceNf4::new(codes, tables)?),
            Weight::Packed(codes) => Weight::Packed(codes.clone()),
            Weight::Trained(weight) => Weight::Trained(weight.clone()),
        })
    }
}
