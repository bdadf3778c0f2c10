//! The loss: cross-entropy over the rows with a target, and its gradient by the hidden states, some hundred rows at a time.

use anyhow::Result;
use rayon::prelude::*;

use super::Portion;
use crate::kernel::backward::{self, Target};
use crate::kernel::product::{Block, Rows, Term, padded};
use crate::kernel::{Element, Lines, Shared, rows};
use crate::model::config::ModelConfig;
use crate::model::cpu::CpuDecoder;

/// Numbers of a chunk's logits: 64 MiB in f32.
const LOGITS: usize = 16 << 20;

/// Buffers of one walk.
#[derive(Default)]
pub struct Scratch<E> {
    states: Lines<f32>,        // (rows, hidden)
    normed: Lines<E>,          // (rows, hidden)
    logits: Lines<f32>,        // (rows, vocabulary)
    logit_gradients: Lines<E>, // (rows, vocabulary filled up to whole groups)
    gradients: Lines<f32>,     // (rows, hidden)
    losses: Lines<f64>,        // (rows)
}

/// Bytes of the buffers for so many tokens.
pub fn bytes<E: Element>(config: &ModelConfig, tokens: usize) -> usize {
    let rows = tokens.min((LOGITS / config.vocab_size).max(1));
    let width = size_of::<E>();
    rows * (config.vocab_size * (4 + width) + config.hidden_size * (8 + width))
}

/// A row with a target.
#[derive(Clone, Copy)]
struct Wanted {
    row: usize,
    batch: usize,
    target: Target,
}

impl<E: Element> CpuDecoder<E> {
    /// The mean cross-entropy of each micro-batch of a portion. With `out`, (tokens, hidden), the gradient of `factor` times
    /// their sum is left there.
    pub(super) fn cross_entropy(
        &self,
        portion: &Portion,
        states: &[f32],
        factor: f32,
        mut out: Option<&mut [f32]>,
        scratch: &mut Scratch<E>,
    ) -> Result<Vec<f64>> {
        if let Some(out) = &mut out {
            out.fill(0.0);
        }
        let wanted = wanted(portion, factor);
        let mut means = vec![0.0; portion.spans.len()];
        for chunk in wanted.chunks((LOGITS / self.config.vocab_size).max(1)) {
            self.chunk_loss(chunk, states, out.as_deref_mut(), scratch)?;
            for (wanted, loss) in chunk.iter().zip(&*scratch.losses) {
                means[wanted.batch] += loss / portion.targets_of[wanted.batch] as f64;
            }
        }
        Ok(means)
    }

    fn chunk_loss(
        &self,
        chunk: &[Wanted],
        states: &[f32],
        out: Option<&mut [f32]>,
        scratch: &mut Scratch<E>,
    ) -> Result<()> {
        let (count, width, vocabulary) = (chunk.len(), self.width(), self.config.vocab_size);
        let Scratch { states: picked, normed, logits, logit_gradients, gradients, losses } = scratch;
        let (picked, normed) = (picked.take(count * width), normed.take(count * width));
        let rows_of = picked.chunks_exact_mut(width).zip(chunk);
        rows_of.for_each(|(to, wanted)| to.copy_from_slice(&states[wanted.row * width..][..width]));
        self.norm_rows(picked, &self.norm, normed);
        let head = self.weights.head()?;
        let head = head.matrix(self.weights.rounded_to_f16());
        let logits = logits.take(count * vocabulary);
        let shared = Shared::new(logits);
        let normed = Rows { numbers: &normed[..], step: width };
        self.kernels.multiply(count, [&[Term::along(normed, head)]], |block: Block<1>| {
            let Block { rows, columns, sums: [sums] } = block;
            let start = rows.start * vocabulary + columns.start;
            // SAFETY: every row and column is finished once.
            let out = unsafe { shared.strip(start, vocabulary, rows.len(), columns.len()) };
            rows::put_block(self.kernels.isa, sums, out);
        });
        let (step, cap) = (padded::<E>(vocabulary), self.config.final_softcap.map(|cap| cap as f32));
        let (logit_gradients, losses) = (logit_gradients.take(count * step), losses.take(count));
        let rows_of =
            logits.par_chunks_mut(vocabulary).zip(logit_gradients.par_chunks_mut(step)).zip(chunk).zip(losses);
        rows_of.for_each(|(((logits, logit_gradients), wanted), loss)| {
            logit_gradients[vocabulary..].fill(E::default());
            backward::cross_entropy(
                self.kernels.isa,
                logits,
                cap,
                wanted.target,
                loss,
                &mut logit_gradients[..vocabulary],
            );
        });
        let Some(out) = out else { return Ok(()) };
        let gradients = gradients.take(count * width);
        let logit_gradients = Rows { numbers: &logit_gradients[..], step };
        self.put(count, &[Term::across(logit_gradients, head)], gradients, width);
        for ((wanted, gradient), state) in
            chunk.iter().zip(gradients.chunks_exact(width)).zip(picked.chunks_exact(width))
        {
            let out = &mut out[wanted.row * width..][..width];
            backward::rms_norm(self.kernels.isa, state, &self.norm, self.config.rms_norm_eps, gradient, out);
        }
        Ok(())
    }
}

/// The rows with a target, each with what its loss adds to the whole.
fn wanted(portion: &Portion, factor: f32) -> Vec<Wanted> {
    let of_batch = |(batch, span): (usize, &crate::model::cpu::linear::Span)| {
        let share = factor / portion.targets_of[batch] as f32;
        span.rows.clone().filter_map(move |row| {
            Some(Wanted { row, batch, target: Target { token: portion.targets[row]?, factor: share } })
        })
    };
    portion.spans.iter().enumerate().flat_map(of_batch).collect()
}
