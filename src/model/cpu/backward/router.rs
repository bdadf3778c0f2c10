//! Back through a mixture's router, in f32 as it was computed: from the gradients of the weights that tokens give their
//! experts, and of the load-balancing loss, to the logits and to what the router read.

use super::linear::{self, Seen};
use crate::kernel::Element;
use crate::kernel::Lines;
use crate::kernel::product::Rows;
use crate::model::config::Mixture;
use crate::model::cpu::CpuDecoder;
use crate::model::cpu::feed_forward::ROUTER;
use crate::model::cpu::layer::Visit;
use crate::model::cpu::linear::add_to;
use crate::model::cpu::routing::{Routed, softmax};
use crate::model::cpu::workspace::Low;
use crate::model::training::PairGradient;

/// Where the tokens went, and what is known of the gradient there.
pub struct Routes<'a> {
    pub mixture: Mixture,
    pub logits: &'a [f32], // (rows, experts)
    pub routed: &'a [Routed],
    /// By expert, of its rows in order.
    pub of_weights: &'a [Vec<f32>],
    /// By micro-batch: of the load-balancing loss, by a token's probability of each expert.
    pub balance_gradient: &'a [Vec<f64>],
}

/// Buffers of one walk.
#[derive(Default)]
pub struct Scratch {
    of_logits: Lines<f32>, // (rows, experts)
    low: Low<f32>,
    v: Lines<f32>,
    pairs: linear::Scratch<f32>,
}

/// One token's choice: its expert, the weight, and the weight's gradient.
#[derive(Clone, Copy, Debug)]
struct Choice {
    expert: usize,
    weight: f64,
    gradient: f64,
}

impl<E: Element> CpuDecoder<E> {
    /// Adds to `of_normed`, (rows, hidden), what comes back through the router. `x`: what it read; `sums`: the layer's.
    pub(super) fn router_back(
        &self,
        visit: &Visit,
        routes: Routes,
        x: &[f32],
        of_normed: &mut [f32],
        scratch: &mut Scratch,
        sums: &mut [Option<PairGradient>],
    ) {
        let (count, width, experts) = (visit.packed.len(), self.width(), routes.mixture.experts);
        let Scratch { of_logits, low, v, pairs: pair_scratch } = scratch;
        let of_logits = of_logits.take(count * experts);
        routes.of_logits(visit, of_logits);
        let (kernels, pairs) = (&self.f32_kernels, &visit.layer.pairs.router);
        let x = Rows { numbers: &x[..count * width], step: width };
        let g = [Rows { numbers: &of_logits[..], step: experts }];
        let u = pairs.project(kernels, x, count, visit.spans, low);
        let v = pairs.back(kernels, &g, count, v);
        let terms = pairs.terms_back(&[visit.weights.matrix(ROUTER)], &g, v, visit.spans);
        add_to(kernels, count, &terms, of_normed, width);
        pairs.add_dropped(kernels, v, count, visit.spans, None, of_normed);
        let seen = Seen { x, u, g: &g, v, spans: visit.spans };
        pairs.collect(kernels, seen, &mut sums[ROUTER..=ROUTER], pair_scratch);
    }
}

impl Routes<'_> {
    fn of_logits(&self, visit: &Visit, out: &mut [f32]) {
        let experts = self.mixture.experts;
        let choices = self.choices(out.len() / experts);
        for (batch, span) in visit.spans.iter().enumerate() {
            let balance_gradient = self.balance_gradient.get(batch).map(Vec::as_slice);
            for row in span.rows.clone() {
                let part = row * experts..(row + 1) * experts;
                let found = of_row(&self.logits[part.clone()], &choices[row], balance_gradient, self.mixture.normalize);
                out[part].iter_mut().zip(found).for_each(|(out, value)| *out = value as f32);
            }
        }
    }

    /// By token.
    fn choices(&self, rows: usize) -> Vec<Vec<Choice>> {
        let mut choices = vec![Vec::with_capacity(self.mixture.top_k); rows];
        for (expert, (routed, gradients)) in self.routed.iter().zip(self.of_weights).enumerate() {
            for ((&row, &weight), &gradient) in routed.rows.iter().zip(&routed.weights).zip(gradients) {
                choices[row].push(Choice { expert, weight: f64::from(weight), gradient: f64::from(gradient) });
            }
        }
        choices
    }
}

/// The gradient of one token's logits. With probabilities `p` and, of those chosen, the sum `S`: a weight is `p / S` where
/// they are made to sum to 1, else `p`; and `logit'_e = p_e (p'_e - sum_i p_i p'_i)`.
fn of_row(logits: &[f32], choices: &[Choice], balance_gradient: Option<&[f64]>, normalize: bool) -> Vec<f64> {
    let probabilities = softmax(logits);
    let mut of_probabilities = balance_gradient.map_or(vec![0.0; logits.len()], <[f64]>::to_vec);
    let chosen: f64 = choices.iter().map(|choice| probabilities[choice.expert]).sum();
    let common: f64 = choices.iter().map(|choice| choice.gradient * choice.weight).sum();
    for Choice { expert, gradient, .. } in choices {
        of_probabilities[*expert] += if normalize { (gradient - common) / chosen } else { *gradient };
    }
    let mean: f64 = probabilities.iter().zip(&of_probabilities).map(|(p, of)| p * of).sum();
    probabilities.iter().zip(&of_probabilities).map(|(p, of)| p * (of - mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_logits_get_their_gradient() {
        let logits = [0.3f32, -0.7, 1.1, 0.2];
        let (gradients, balance_gradient) = ([0.5, -2.0], [0.1, 0.2, -0.3, 0.4]);
        for normalize in [true, false] {
            let weights = |logits: &[f32]| -> [f64; 2] {
                let p = softmax(logits);
                let sum = if normalize { p[0] + p[2] } else { 1.0 };
                [p[0] / sum, p[2] / sum]
            };
            let objective = |logits: &[f32]| -> f64 {
                let [first, second] = weights(logits);
                let balance: f64 =
                    softmax(logits).iter().zip(balance_gradient).map(|(p, derivative)| p * derivative).sum();
                first * gradients[0] + second * gradients[1] + balance
            };
            let [first, second] = weights(&logits);
            let choices = [
                Choice { expert: 0, weight: first, gradient: gradients[0] },
                Choice { expert: 2, weight: second, gradient: gradients[1] },
            ];
            let found = of_row(&logits, &choices, Some(&balance_gradient), normalize);
            for index in 0..4 {
                let moved = |by: f32| {
                    let mut logits = logits;
                    logits[index] += by;
                    objective(&logits)
                };
                let derivative = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((found[index] - derivative).abs() < 1e-4, "{normalize} {index}: {} {derivative}", found[index]);
            }
        }
    }
}
