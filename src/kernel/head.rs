//! The head: of each row's distribution over the vocabulary only the numbers that were asked for, panel by panel with a
//! running log-sum-exp, so that no `rows x vocabulary` matrix exists.

use super::isa::for_every_isa;
use super::math::{exp, largest, soft_cap};
use super::product::{Block, Kernels, Rows, Term};
use super::tile::WIDTH;
use super::{Element, Matrix, Shared};

/// What is kept of a row's distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// The token of the largest logit, the first of equals.
    pub greedy: u32,
    /// ln of the sum of e^logit over the vocabulary.
    pub log_sum_exp: f64,
}

/// The logit of `token` after row `row`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub row: usize,
    pub token: u32,
}

/// One panel's part of a row.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    peak: f32,
    greedy: u32,
    /// Sum of e^(logit - peak).
    sum: f32,
}

/// Rows whose parts are held at once (12 KB each at 49,152 entries).
pub const MOST_ROWS: usize = 1024;

impl<E: Element> Kernels<E> {
    /// The distributions of `count` rows (at most [`MOST_ROWS`]) and the logits of `picks`. Logits are squashed into
    /// `cap` where the model does that.
    pub fn distributions(
        &self,
        rows: Rows<E>,
        count: usize,
        head: Matrix,
        cap: Option<f32>,
        picks: &[Pick],
    ) -> (Vec<Distribution>, Vec<f32>) {
        let panels = head.rows.div_ceil(WIDTH);
        let mut of_panel: Vec<Vec<usize>> = vec![Vec::new(); panels];
        for (index, pick) in picks.iter().enumerate() {
            of_panel[pick.token as usize / WIDTH].push(index);
        }
        let (mut parts, mut logits) = (vec![Part::default(); panels * count], vec![0f32; picks.len()]);
        {
            let (parts, logits) = (Shared::new(&mut parts), Shared::new(&mut logits));
            self.multiply(count, [&[Term::along(rows, head)]], |block: Block<1>| {
                let panel = block.columns.start / WIDTH;
                let (first, width) = (block.rows.start, block.columns.len());
                let [sums] = block.sums;
                // SAFETY: each panel of each row is finished once.
                let parts = unsafe { parts.part(panel * count + first..panel * count + block.rows.end) };
                summarize(self.isa, sums, width, block.columns.start as u32, cap, parts);
                for &index in &of_panel[panel] {
                    let Pick { row, token } = picks[index];
                    if block.rows.contains(&row) {
                        // SAFETY: a pick belongs to one row and one panel.
                        let logit = unsafe { logits.part(index..index + 1) };
                        logit[0] = sums[(row - first) * WIDTH + token as usize % WIDTH];
                    }
                }
            });
        }
        let distribution = |row: usize| merge((0..panels).map(|panel| parts[panel * count + row]));
        ((0..count).map(distribution).collect(), logits)
    }

    /// All logits of `count` rows, (rows, vocabulary), squashed into `cap` where the model does that. For a few rows.
    pub fn logits(&self, rows: Rows<E>, count: usize, head: Matrix, cap: Option<f32>) -> Vec<f32> {
        let mut logits = vec![0f32; count * head.rows];
        {
            let logits = Shared::new(&mut logits);
            self.multiply(count, [&[Term::along(rows, head)]], |block: Block<1>| {
                for (row, sums) in block.each_row(0) {
                    let first = row * head.rows + block.columns.start;
                    // SAFETY: each panel of each row is finished once.
                    let part = unsafe { logits.part(first..first + sums.len()) };
                    part.copy_from_slice(sums);
                    if let Some(cap) = cap {
                        squash(self.isa, part, cap);
                    }
                }
            });
        }
        logits
    }
}

/// Parts of a row from the first panel to the last.
fn merge(parts: impl Iterator<Item = Part> + Clone) -> Distribution {
    let mut best = Part { peak: f32::NEG_INFINITY, ..Part::default() };
    for part in parts.clone() {
        if part.peak > best.peak {
            best = part;
        }
    }
    let peak = f64::from(best.peak);
    let sum: f64 = parts.map(|part| f64::from(part.sum) * (f64::from(part.peak) - peak).exp()).sum();
    Distribution { greedy: best.greedy, log_sum_exp: peak + sum.ln() }
}

for_every_isa! {
    /// Squashes the logits of a panel in place and makes a part of each row.
    fn summarize(sums: &mut [f32], width: usize, first: u32, cap: Option<f32>, parts: &mut [Part]) {
        for (logits, part) in sums.chunks_exact_mut(WIDTH).zip(parts) {
            if let Some(cap) = cap {
                logits.iter_mut().for_each(|logit| *logit = soft_cap::<FUSED>(*logit, cap));
            }
            logits[width..].fill(f32::NEG_INFINITY);
            *part = part_of::<FUSED>(logits, first);
        }
    }
}

for_every_isa! {
    /// Squashes logits in place.
    fn squash(logits: &mut [f32], cap: f32) {
        logits.iter_mut().for_each(|logit| *logit = soft_cap::<FUSED>(*logit, cap));
    }
}

#[inline(always)]
fn part_of<const FUSED: bool>(logits: &[f32], first: u32) -> Part {
    const LANES: usize = 16;
    let (chunks, _) = logits.as_chunks::<LANES>();
    let peak = largest(logits);
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for (sum, logit) in sums.iter_mut().zip(chunk) {
            *sum += exp::<FUSED>(logit - peak);
        }
    }
    let place = logits.iter().position(|logit| *logit == peak).unwrap_or(0);
    Part { peak, greedy: first + place as u32, sum: sums.iter().sum() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::element::bytes_of;
    use crate::kernel::{Isa, Numbers};
    use crate::random::Random;

    #[test]
    fn distributions_agree_with_whole_rows() {
        let (count, vocabulary, hidden) = (70, 200, 8);
        let mut random = Random::named(1, "head");
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal() as f32).collect() };
        let (x, mut w) = (draw(count * hidden), draw(vocabulary * hidden));
        w.copy_within(0..hidden, 150 * hidden); // token 150 always ties with token 0, which comes first
        let head =
            Matrix { rows: vocabulary, columns: hidden, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
        let picks: Vec<Pick> = (0..count).flat_map(|row| [0, 63, 64, 199].map(|token| Pick { row, token })).collect();
        for (isa, cap) in Isa::supported().into_iter().flat_map(|isa| [(isa, None), (isa, Some(2.0f32))]) {
            let rows = Rows { numbers: &x[..], step: hidden };
            let (found, logits) = Kernels::<f32>::new(isa).distributions(rows, count, head, cap, &picks);
            let all = Kernels::<f32>::new(isa).logits(rows, count, head, cap);
            let picked: Vec<f32> = picks.iter().map(|pick| all[pick.row * vocabulary + pick.token as usize]).collect();
            assert_eq!(picked, logits, "{isa:?} {cap:?}");
            for row in 0..count {
                let exact: Vec<f64> = (0..vocabulary)
                    .map(|token| {
                        let w = &w[token * hidden..][..hidden];
                        let dot: f64 =
                            x[row * hidden..].iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        cap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh())
                    })
                    .collect();
                let greedy = (1..vocabulary)
                    .filter(|&t| t != 150)
                    .fold(0, |best, t| if exact[t] > exact[best] { t } else { best });
                assert_eq!(found[row].greedy as usize, greedy, "{isa:?} {cap:?}");
                let log_sum_exp = exact.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                assert!((found[row].log_sum_exp - log_sum_exp).abs() < 2e-6, "{isa:?} {cap:?}");
                for (pick, logit) in picks.iter().zip(&logits).filter(|(pick, _)| pick.row == row) {
                    assert!((f64::from(*logit) - exact[pick.token as usize]).abs() < 3e-6);
                }
            }
        }
    }
}
