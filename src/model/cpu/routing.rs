//! Where a mixture's tokens go.

use crate::model::config::Mixture;

/// The tokens that chose an expert, in order, with the weights they give it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    pub rows: Vec<usize>,
    pub weights: Vec<f32>,
}

/// The experts of a token with their weights: the `top_k` largest of the softmax (the first of equals, as torch's topk
/// answers on the CPU), made to sum to 1 where the model says so.
pub fn choose(logits: &[f32], mixture: Mixture) -> Vec<(usize, f32)> {
    let peak = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - peak).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(mixture.top_k);
    let sum: f64 = match mixture.normalize {
        true => order.iter().map(|&expert| powers[expert]).sum(),
        false => powers.iter().sum(),
    };
    order.into_iter().map(|expert| (expert, (powers[expert] / sum) as f32)).collect()
}

/// A token's probability of each expert.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let peak = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - peak).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_chosen_by_hand() {
        let mixture = |normalize| Mixture { experts: 4, top_k: 2, router_aux_loss_coef: 0.0, normalize };
        let logits = [0.0, (3f32).ln(), (3f32).ln(), 0.0]; // 1/8, 3/8, 3/8, 1/8
        let close = |found: Vec<(usize, f32)>, expected: [(usize, f32); 2]| {
            for ((expert, weight), (other, exact)) in found.into_iter().zip(expected) {
                assert_eq!(expert, other);
                assert!((weight - exact).abs() < 1e-6);
            }
        };
        close(choose(&logits, mixture(true)), [(1, 0.5), (2, 0.5)]);
        close(choose(&logits, mixture(false)), [(1, 0.375), (2, 0.375)]);
    }
}
