//! The feed-forward of a layer: one gated MLP, or a mixture of them of which each token uses a few.

use anyhow::Result;
use candle_core::{D, Tensor};

use super::linear::{Linear, Mode};
use super::ops::activate;
use crate::model::config::Activation;

/// `w2(activation(w1 x) * w3 x)`, with the mixture's names (dense checkpoints say gate, down and up).
#[derive(Clone)]
pub struct Mlp {
    pub activation: Activation,
    pub w1: Linear,
    pub w2: Linear,
    pub w3: Linear,
}

impl Mlp {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let gated = (activate(&self.w1.forward(x, mode)?, self.activation)? * self.w3.forward(x, mode)?)?;
        self.w2.forward(&gated, mode)
    }
}

#[derive(Clone)]
pub enum FeedForward {
    Dense(Box<Mlp>),
    Mixture(Mixture),
}

#[derive(Clone)]
pub struct Mixture {
    pub router: Linear,
    pub experts: Vec<Mlp>,
    pub top_k: usize,
    /// The chosen experts' probabilities are divided by their sum.
    pub normalize: bool,
}

/// What the router decided, for the load-balancing loss and for tests.
pub struct Routing {
    /// Softmax over the experts, in the graph: (tokens, experts).
    pub probabilities: Tensor,
    /// The chosen experts of every token, best first, flat: (tokens * top_k).
    pub chosen: Vec<u32>,
}

impl FeedForward {
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Option<Routing>)> {
        match self {
            FeedForward::Dense(mlp) => Ok((mlp.forward(x, mode)?, None)),
            FeedForward::Mixture(mixture) => {
                let (y, routing) = mixture.forward(x, mode)?;
                Ok((y, Some(routing)))
            }
        }
    }
}

impl Mixture {
    /// Tokens are grouped by expert, each expert makes one product over its tokens, and each token sums its experts'
    /// outputs by its routing weights (Mixtral of Experts, arXiv 2401.04088, section 2.1).
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Routing)> {
        let (tokens, hidden) = x.dims2()?;
        let routing = self.route(x, mode)?;
        let chosen = Tensor::from_slice(&routing.chosen, (tokens, self.top_k), x.device())?;
        let weights = routing.probabilities.gather(&chosen, D::Minus1)?; // (tokens, top_k)
        let weights = match self.normalize {
            true => weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?,
            false => weights,
        };

        let slots = by_expert(&routing.chosen, self.experts.len());
        let outputs: Result<Vec<Tensor>> = (slots.iter().zip(&self.experts))
            .filter(|(slots, _)| !slots.is_empty())
            .map(|(slots, expert)| {
                let rows: Vec<u32> = slots.iter().map(|slot| slot / self.top_k as u32).collect();
                let count = rows.len();
                expert.forward(&x.index_select(&Tensor::from_vec(rows, count, x.device())?, 0)?, mode)
            })
            .collect();
        let place = Tensor::from_vec(inverse(&slots.concat()), tokens * self.top_k, x.device())?;
        let spread = Tensor::cat(&outputs?, 0)?.index_select(&place, 0)?.reshape((tokens, self.top_k, hidden))?;
        let y = spread.broadcast_mul(&weights.to_dtype(x.dtype())?.unsqueeze(2)?)?.sum(1)?;
        Ok((y, routing))
    }

    fn route(&self, x: &Tensor, mode: Mode) -> Result<Routing> {
        let logits = self.router.forward(x, mode)?.to_dtype(candle_core::DType::F32)?; // (tokens, experts)
        let probabilities = candle_nn::ops::softmax(&logits, D::Minus1)?;
        let rows = probabilities.detach().to_vec2::<f32>()?;
        Ok(Routing { chosen: rows.iter().flat_map(|row| largest(row, self.top_k)).collect(), probabilities })
    }
}

/// Indices of the `count` largest, best first; the first of equals wins, as torch's topk answers on the CPU.
fn largest(row: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    order.truncate(count);
    order
}

/// For each expert the slots (token * top_k + rank) that chose it, in order.
fn by_expert(chosen: &[u32], experts: usize) -> Vec<Vec<u32>> {
    let mut slots = vec![Vec::new(); experts];
    for (slot, &expert) in chosen.iter().enumerate() {
        slots[expert as usize].push(slot as u32);
    }
    slots
}

/// The permutation that undoes `order`.
fn inverse(order: &[u32]) -> Vec<u32> {
    let mut place = vec![0; order.len()];
    for (position, &slot) in order.iter().enumerate() {
        place[slot as usize] = position as u32;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_to_experts_and_come_back() {
        let chosen = [2, 0, 0, 1, 2, 1]; // three tokens, top 2 of 3
        let slots = by_expert(&chosen, 3);
        assert_eq!(slots, [vec![1, 2], vec![3, 5], vec![0, 4]]);
        assert_eq!(inverse(&slots.concat()), [4, 0, 1, 2, 5, 3]);
    }

    #[test]
    fn the_first_of_equals_is_chosen_first() {
        assert_eq!(largest(&[0.1, 0.4, 0.4, 0.1], 2), [1, 2]);
        assert_eq!(largest(&[0.2, 0.1, 0.3, 0.4], 2), [3, 2]);
    }
}
