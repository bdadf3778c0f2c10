//! The loss of the last layer's rows and its gradient, in chunks of rows: a `tokens x vocabulary` matrix is never held.

use anyhow::Result;
use candle_core::{D, DType, Tensor, Var};

use super::head::CHUNK;
use super::whole::Sums;
use super::{CandleDecoder, ops};
use crate::model::names;

impl CandleDecoder {
    /// Mean cross-entropy over the rows with a target and, if asked for, `factor` times its gradient by `hidden`; that by
    /// head and final norm, where they are trained, goes to `sums`.
    pub(super) fn cross_entropy(
        &self,
        hidden: &Tensor,
        targets: &[Option<u32>],
        factor: Option<f64>,
        sums: &mut Sums,
    ) -> Result<(f64, Tensor)> {
        let rows: Vec<(u32, u32)> =
            targets.iter().enumerate().filter_map(|(row, target)| Some((row as u32, (*target)?))).collect();
        let mut sum = 0.0;
        let mut gradient = hidden.zeros_like()?;
        for chunk in rows.chunks(CHUNK) {
            let (at, targets): (Vec<u32>, Vec<u32>) = chunk.iter().copied().unzip();
            let at = Tensor::from_vec(at, chunk.len(), hidden.device())?;
            let targets = Tensor::from_vec(targets, (chunk.len(), 1), hidden.device())?;
            let picked = Var::from_tensor(&hidden.index_select(&at, 0)?)?;
            let factor = factor.map(|factor| factor / rows.len() as f64);
            let (losses, part) = self.chunk_loss(&picked, &targets, factor, sums)?;
            sum += losses;
            if let Some(part) = part {
                gradient = gradient.index_add(&at, &part, 0)?;
            }
        }
        Ok((sum / rows.len() as f64, gradient))
    }

    /// Summed cross-entropy of some rows and `factor` times the gradient of that sum by them: `softmax - one hot`, back
    /// through head and norm.
    fn chunk_loss(
        &self,
        hidden: &Var,
        targets: &Tensor,
        factor: Option<f64>,
        sums: &mut Sums,
    ) -> Result<(f64, Option<Tensor>)> {
        let normed = ops::rms_norm(hidden, &self.norm, self.config.rms_norm_eps)?;
        let logits = self.logits_of(&normed.detach())?;
        let losses = (logits.log_sum_exp(D::Minus1)? - logits.gather(targets, D::Minus1)?.squeeze(D::Minus1)?)?;
        let sum = losses.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        let Some(factor) = factor else { return Ok((sum, None)) };
        let minus_one = (targets.ones_like()?.to_dtype(DType::F32)? * -1.0)?;
        let gradient = candle_nn::ops::softmax_last_dim(&logits)?.scatter_add(targets, &minus_one, 1)?;
        let gradient = match self.config.final_softcap {
            Some(cap) => (gradient * (1.0 - (&logits / cap)?.sqr()?)?)?, // d/dz of cap * tanh(z / cap)
            None => gradient,
        };
        let gradient = (gradient * factor)?.to_dtype(normed.dtype())?;
        let head = if self.config.tie_word_embeddings { names::EMBEDDING } else { names::HEAD };
        if self.trains(head) {
            sums.add(head, gradient.t()?.matmul(&normed.detach())?)?;
        }
        let mut gradients = (normed * gradient.matmul(&self.head)?)?.sum_all()?.backward()?;
        self.collect_whole(&mut gradients, sums)?;
        Ok((sum, gradients.remove(hidden)))
    }
}
