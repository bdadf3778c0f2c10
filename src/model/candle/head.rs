//! The last step of the walk: only the wanted rows go through the final norm and the head, in chunks, and only the few
//! numbers that were asked for come out. A `tokens x vocabulary` matrix is never held.

use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{CandleDecoder, ops};
use crate::model::decoder::{TokenScore, Wanted};

/// Rows of logits held at once (at 49,152 entries: 25 MB).
pub(super) const CHUNK: usize = 128;

impl CandleDecoder {
    /// Logits of some rows of the last layer's hidden states: (rows, vocab), f32.
    pub fn logits(&self, hidden: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let count = rows.len();
        let picked = hidden.index_select(&Tensor::from_vec(rows, count, hidden.device())?, 0)?;
        let normed = ops::rms_norm(&picked, &self.norm, self.config.rms_norm_eps)?;
        self.logits_of(&normed)
    }

    /// Of rows after the final norm.
    pub(super) fn logits_of(&self, normed: &Tensor) -> Result<Tensor> {
        ops::softcap(&normed.matmul(&self.head.t()?)?.to_dtype(DType::F32)?, self.config.final_softcap)
    }

    /// Scores of the wanted tokens, in their order. A row wanted for several tokens is computed once.
    pub(super) fn score_rows(&self, hidden: &Tensor, wanted: &[Wanted]) -> Result<Vec<TokenScore>> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|&index| wanted[index]);
        let by_row: Vec<&[usize]> = order.chunk_by(|&a, &b| wanted[a].row == wanted[b].row).collect();
        let mut scores = vec![TokenScore { log_probability: 0.0, is_greedy: false }; wanted.len()];
        for chunk in by_row.chunks(CHUNK) {
            let rows: Vec<usize> = chunk.iter().map(|group| wanted[group[0]].row).collect();
            let logits = self.logits(hidden, &rows)?.to_vec2::<f32>()?;
            let found: Vec<Vec<(usize, TokenScore)>> = (chunk.par_iter().zip(&logits))
                .map(|(group, row)| {
                    let distribution = Distribution::of(row);
                    group.iter().map(|&index| (index, distribution.score(row, wanted[index].token))).collect()
                })
                .collect();
            found.into_iter().flatten().for_each(|(index, score)| scores[index] = score);
        }
        Ok(scores)
    }

    /// The most probable next token after each of `rows`, the first of equals.
    pub(super) fn greedy_rows(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(CHUNK) {
            let logits = self.logits(hidden, chunk)?.to_vec2::<f32>()?;
            tokens.extend(logits.iter().map(|row| first_largest(row) as u32));
        }
        Ok(tokens)
    }

    /// All logits after each of `rows`.
    pub(super) fn logit_rows(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        Ok(self.logits(hidden, rows)?.to_vec2()?)
    }
}

/// One row's softmax, as far as it is needed.
struct Distribution {
    greedy: usize,
    log_sum_exp: f64,
}

impl Distribution {
    fn of(logits: &[f32]) -> Distribution {
        let greedy = first_largest(logits);
        let peak = logits[greedy];
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - peak).exp())).sum();
        Distribution { greedy, log_sum_exp: f64::from(peak) + sum.ln() }
    }

    fn score(&self, logits: &[f32], token: u32) -> TokenScore {
        let log_probability = f64::from(logits[token as usize]) - self.log_sum_exp;
        TokenScore { log_probability, is_greedy: self.greedy == token as usize }
    }
}

fn first_largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, index| if row[index] > row[best] { index } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_worked_by_hand() {
        let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
        let distribution = Distribution::of(&logits);
        let expected = 3.0 - (3.0 + (2.0 + (-2.0f64).exp()).ln());
        assert!((distribution.score(&logits, 2).log_probability - expected).abs() < 1e-7);
        assert!(distribution.score(&logits, 1).is_greedy && !distribution.score(&logits, 2).is_greedy);
        assert_eq!(distribution.score(&logits, 3).log_probability, f64::NEG_INFINITY);
    }
}
