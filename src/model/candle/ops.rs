//! The few operations a decoder needs beyond products, each with its gradient: RMS norm, rotary embedding, soft cap, gate,
//! causal softmax.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Shape, Tensor, bail};
use rayon::prelude::*;

use super::graft::graft;
use crate::model::config::Activation;

/// `weight * x / sqrt(mean(x^2) + eps)` over the last dimension; the gradient is by `x`, and by `weight` where that is
/// trained.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    // Gemma's weights are wider than its states: see `load::norm`.
    if weight.dtype() != x.dtype() {
        return Ok(rms_norm(&wide(x)?, weight, eps)?.to_dtype(x.dtype())?);
    }
    if weight.track_op() {
        // The same bits: the kernel multiplies by the weight last.
        return Ok(rms_norm(x, &weight.detach().ones_like()?, eps)?.broadcast_mul(weight)?);
    }
    let input = x.detach();
    let value = match input.device().is_cpu() && input.dtype() == DType::F32 {
        true => input.contiguous()?.apply_op2_no_bwd(weight, &RmsNorm { eps })?,
        false => candle_nn::ops::rms_norm(&input.contiguous()?, weight, eps as f32)?,
    };
    let weight = weight.clone();
    graft(x, value, move |_, gradient| rms_norm_backward(&input, &weight, eps, gradient))
}

/// In f32: squares of half-precision numbers of some hundreds overflow.
fn wide(x: &Tensor) -> candle_core::Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// The norm with its sum in f64: candle adds the squares one by one in f32, and 61 norms later that shows in the fourth
/// digit of a log-likelihood.
struct RmsNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(x, layout)?, contiguous(weight, weight_layout)?);
        let mut output = vec![0f32; x.len()];
        let columns = weight.len();
        output.par_chunks_mut(columns).zip(x.par_chunks(columns)).for_each(|(output, x)| {
            let squares: f64 = x.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            let inverse = (1.0 / (squares / columns as f64 + self.eps).sqrt()) as f32;
            for ((output, value), weight) in output.iter_mut().zip(x).zip(weight) {
                *output = value * inverse * weight;
            }
        });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }
}

/// The f32 numbers of a contiguous tensor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("this operation takes contiguous tensors"),
    }
}

/// With r = 1/sqrt(mean(x^2)+eps) and h = weight * g: dx = r*h - x * r^3 * mean(h*x).
fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, gradient: &Tensor) -> candle_core::Result<Tensor> {
    let dtype = x.dtype();
    let (x, weight, gradient) = (&wide(x)?, &wide(weight)?, &wide(gradient)?);
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.powf(-0.5)?; // (rows, 1)
    let scaled = gradient.broadcast_mul(weight)?;
    let projection = ((&scaled * x)?.mean_keepdim(D::Minus1)? * inverse.powf(3.0)?)?;
    (scaled.broadcast_mul(&inverse)? - x.broadcast_mul(&projection)?)?.to_dtype(dtype)
}

/// Rotary embedding of each token's heads by its position (half-split pairs, as the hub's checkpoints are trained).
/// `x`: (tokens, heads, head_dim); `cos`, `sin`: (tokens, rotary_dim / 2); numbers after the first `rotary_dim` of a head
/// pass as they are.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let value = rotate_value(&x.detach().contiguous()?, cos, sin)?;
    let (cos, back) = (cos.clone(), sin.neg()?);
    graft(x, value, move |_, gradient| rotate_value(&gradient.contiguous()?, &cos, &back))
}

fn rotate_value(x: &Tensor, cos: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
    let (rotated, size) = (2 * cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    if rotated < size {
        let first = rotate_value(&x.narrow(D::Minus1, 0, rotated)?.contiguous()?, cos, sin)?;
        return Tensor::cat(&[first, x.narrow(D::Minus1, rotated, size - rotated)?], D::Minus1);
    }
    candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, cos, sin)?.squeeze(0)
}

/// `cap * tanh(x / cap)`: leaves small numbers alone and keeps all of them within the cap.
pub fn softcap(x: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => Ok(((x / cap)?.tanh()? * cap)?),
        None => Ok(x.clone()),
    }
}

/// A feed-forward's gate; both have gradients in candle.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => Ok(x.silu()?),
        Activation::GeluTanh => Ok(x.gelu()?), // candle's `gelu` is the tanh approximation, `gelu_erf` the exact one
    }
}

/// Which keys a block of queries may see.
#[derive(Clone, Copy, Debug)]
pub struct Visible {
    /// Query rows of the block; score rows repeat them once per head of a group.
    pub queries: usize,
    /// Keys up to and including the first query's own.
    pub first: usize,
    /// Keys further back than this are not seen.
    pub window: Option<usize>,
}

impl Visible {
    /// The half-open range of keys that score row `row` sees.
    fn keys(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.first + row % self.queries;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// 0 for the keys that a query sees, and for others what leaves nothing of them in a softmax: (1, 1, queries, keys).
    /// Made where it is used, from the keys' and the queries' numbers.
    fn mask(&self, keys: usize, device: &Device) -> candle_core::Result<Tensor> {
        let numbers = |first: usize, count: usize| Tensor::arange(first as f32, (first + count) as f32, device);
        let key = numbers(0, keys)?.reshape((1, keys))?;
        let end = numbers(self.first, self.queries)?.reshape((self.queries, 1))?;
        let seen = key.broadcast_lt(&end)?.to_dtype(DType::F32)?;
        let seen = match self.window {
            None => seen,
            Some(window) => (seen * key.broadcast_ge(&(end - window as f64)?)?.to_dtype(DType::F32)?)?,
        };
        ((seen - 1.0)? * 1e30)?.reshape((1, 1, self.queries, keys))
    }
}

/// `softmax(scale * scores)` over the visible keys, 0 elsewhere. `scores`: (kv_heads, group * queries, keys).
pub fn causal_softmax(scores: &Tensor, scale: f64, visible: Visible) -> Result<Tensor> {
    let input = scores.detach();
    let value = match input.device().is_cpu() && input.dtype() == DType::F32 {
        true => input.contiguous()?.apply_op1_no_bwd(&CausalSoftmax { scale: scale as f32, visible })?,
        false => masked_softmax(&input, scale, visible)?,
    };
    graft(scores, value, move |output, gradient| {
        let dtype = output.dtype();
        let (output, gradient) = (&wide(output)?, &wide(gradient)?);
        let mean = (output * gradient)?.sum_keepdim(D::Minus1)?;
        ((gradient.broadcast_sub(&mean)? * output)? * scale)?.to_dtype(dtype)
    })
}

/// The same from candle's own operations, in f32 whatever the scores' type: for cards and for half precision.
fn masked_softmax(scores: &Tensor, scale: f64, visible: Visible) -> Result<Tensor> {
    let (kv_heads, rows, keys) = scores.dims3()?;
    let by_query = (kv_heads, rows / visible.queries, visible.queries, keys);
    let scaled = (wide(scores)? * scale)?.reshape(by_query)?.broadcast_add(&visible.mask(keys, scores.device())?)?;
    let weights = candle_nn::ops::softmax_last_dim(&scaled.contiguous()?)?;
    Ok(weights.reshape((kv_heads, rows, keys))?.to_dtype(scores.dtype())?)
}

struct CausalSoftmax {
    scale: f32,
    visible: Visible,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, rows, keys) = layout.shape().dims3()?;
        let scores = contiguous(storage, layout)?;
        let mut output = vec![0f32; scores.len()];
        output.par_chunks_mut(keys).zip(scores.par_chunks(keys)).enumerate().for_each(|(index, (output, scores))| {
            let seen = self.visible.keys(index % rows);
            softmax_row(&scores[seen.clone()], self.scale, &mut output[seen]);
        });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }
}

fn softmax_row(scores: &[f32], scale: f32, output: &mut [f32]) {
    let peak = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f64;
    for (out, score) in output.iter_mut().zip(scores) {
        *out = ((score - peak) * scale).exp();
        sum += f64::from(*out);
    }
    let inverse = (1.0 / sum) as f32;
    output.iter_mut().for_each(|out| *out *= inverse);
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..count as u64).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// Gradients of `sum(f(x) * probe)` by the graft and by candle's differentiable operations agree.
    fn same_gradient(x: &Tensor, grafted: impl Fn(&Tensor) -> Tensor, composed: impl Fn(&Tensor) -> Tensor) {
        let x = Var::from_tensor(x).unwrap();
        let gradient = |y: Tensor| {
            let probe = random(y.dims(), 3);
            (y * probe).unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone()
        };
        assert!(largest_difference(&grafted(&x), &composed(&x)) < 1e-5);
        assert!(largest_difference(&gradient(grafted(&x)), &gradient(composed(&x))) < 1e-5);
    }

    #[test]
    fn rms_norm_has_the_gradient_of_its_formula() {
        let weight = random(&[8], 1);
        same_gradient(
            &random(&[5, 8], 2),
            |x| rms_norm(x, &weight, 1e-5).unwrap(),
            |x| candle_nn::ops::rms_norm_slow(x, &weight, 1e-5).unwrap(),
        );
    }

    #[test]
    fn rotation_has_the_gradient_of_its_formula() {
        let (cos, sin) = (random(&[5, 4], 4), random(&[5, 4], 5));
        let composed = |x: &Tensor| {
            let heads_first = x.transpose(0, 1).unwrap().unsqueeze(0).unwrap();
            let rotated = candle_nn::rotary_emb::rope_slow(&heads_first, &cos, &sin).unwrap();
            rotated.squeeze(0).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
        };
        same_gradient(&random(&[5, 3, 8], 6), |x| rotate(x, &cos, &sin).unwrap(), composed);
    }

    #[test]
    fn softmax_sees_what_the_mask_shows() {
        for window in [None, Some(2)] {
            let visible = Visible { queries: 3, first: 4, window };
            let composed = |x: &Tensor| {
                let scaled = (x * 0.5).unwrap();
                let (_, rows, keys) = x.dims3().unwrap();
                let mask: Vec<f32> = (0..rows * keys)
                    .map(|i| if visible.keys(i / keys).contains(&(i % keys)) { 0.0 } else { -1e30 })
                    .collect();
                let mask = Tensor::from_vec(mask, (1, rows, keys), &Device::Cpu).unwrap();
                candle_nn::ops::softmax(&scaled.broadcast_add(&mask).unwrap(), D::Minus1).unwrap()
            };
            let scores = random(&[2, 6, 7], 7);
            same_gradient(&scores, |x| causal_softmax(x, 0.5, visible).unwrap(), composed);
            let portable = masked_softmax(&scores, 0.5, visible).unwrap();
            assert!(largest_difference(&portable, &composed(&scores)) < 1e-6);
        }
    }

    #[test]
    fn the_first_query_sees_its_own_key_and_all_before() {
        let visible = Visible { queries: 2, first: 1, window: None };
        let probabilities = causal_softmax(&random(&[1, 2, 3], 8), 1.0, visible).unwrap();
        assert_eq!(probabilities.to_vec3::<f32>().unwrap()[0][0], [1.0, 0.0, 0.0]);
        assert_eq!(probabilities.to_vec3::<f32>().unwrap()[0][1][2], 0.0);
    }
}
