//! The end of a walk: wanted rows through the last norm and the head.

use anyhow::Result;

use super::{CpuDecoder, Hidden};
use crate::kernel::Element;
use crate::kernel::head::{Distribution, MOST_ROWS, Pick};
use crate::kernel::product::Rows;
use crate::model::decoder::{TokenScore, Wanted};

impl<E: Element> CpuDecoder<E> {
    /// Scores of the wanted tokens, in their order; a row wanted for several tokens is computed once.
    pub(super) fn score_rows(&self, hidden: &Hidden, wanted: &[Wanted]) -> Result<Vec<TokenScore>> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|&index| wanted[index]);
        let by_row: Vec<&[usize]> = order.chunk_by(|&a, &b| wanted[a].row == wanted[b].row).collect();
        let mut scores = vec![TokenScore { log_probability: 0.0, is_greedy: false }; wanted.len()];
        for chunk in by_row.chunks(MOST_ROWS) {
            let rows: Vec<usize> = chunk.iter().map(|group| wanted[group[0]].row).collect();
            let indices =
                || chunk.iter().enumerate().flat_map(|(row, group)| group.iter().map(move |&index| (row, index)));
            let picks: Vec<Pick> = indices().map(|(row, index)| Pick { row, token: wanted[index].token }).collect();
            let (distributions, logits) = self.distributions(hidden, &rows, &picks)?;
            for ((row, index), logit) in indices().zip(logits) {
                let Distribution { greedy, log_sum_exp } = distributions[row];
                let log_probability = f64::from(logit) - log_sum_exp;
                scores[index] = TokenScore { log_probability, is_greedy: greedy == wanted[index].token };
            }
        }
        Ok(scores)
    }

    /// The most probable next token after each of `rows`.
    pub(super) fn greedy_rows(&self, hidden: &Hidden, rows: &[usize]) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(MOST_ROWS) {
            let (distributions, _) = self.distributions(hidden, chunk, &[])?;
            tokens.extend(distributions.iter().map(|distribution| distribution.greedy));
        }
        Ok(tokens)
    }

    /// All logits after each of `rows`.
    pub(super) fn logit_rows(&self, hidden: &Hidden, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        let normed = self.normed(hidden, rows);
        let head = self.weights.head()?;
        let head = head.matrix(self.weights.rounded_to_f16());
        let logits = self.kernels.logits(Rows { numbers: &normed, step: self.width() }, rows.len(), head, self.cap());
        Ok(logits.chunks_exact(head.rows).map(<[f32]>::to_vec).collect())
    }

    fn distributions(&self, hidden: &Hidden, rows: &[usize], picks: &[Pick]) -> Result<(Vec<Distribution>, Vec<f32>)> {
        let normed = self.normed(hidden, rows);
        let head = self.weights.head()?;
        let head = head.matrix(self.weights.rounded_to_f16());
        let of_head = Rows { numbers: &normed, step: self.width() };
        Ok(self.kernels.distributions(of_head, rows.len(), head, self.cap(), picks))
    }

    /// What the head multiplies, (rows, hidden).
    fn normed(&self, hidden: &Hidden, rows: &[usize]) -> Vec<E> {
        let width = self.width();
        let states: Vec<f32> = rows.iter().flat_map(|&row| &hidden.states[row * width..][..width]).copied().collect();
        let mut normed = vec![E::default(); states.len()];
        self.norm_rows(&states, &self.norm, &mut normed);
        normed
    }

    fn cap(&self) -> Option<f32> {
        self.config.final_softcap.map(|cap| cap as f32)
    }
}
