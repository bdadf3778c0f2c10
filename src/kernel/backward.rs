//! The way back through the row operations of [`super::rows`], and the gradient of the loss by logits.

use super::isa::for_every_isa;
use super::math::{exp, largest, multiply_add, soft_cap};
use super::rows::{LANES, inverse_rms};
use super::{Element, element};

/// Numbers that are worked on side by side; fixed, as the order of additions is.
const WIDE: usize = element::LANES;

/// Which gate an MLP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Silu,
    GeluTanh,
}

/// A row that should predict `target`, and what its loss is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub token: u32,
    pub factor: f32,
}

for_every_isa! {
    /// Adds to `out` the gradient of a row that was normed (`rows::rms_norm`), from that of its norm:
    /// `inverse * w g - x * inverse^3 * mean(w g x)`.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64, gradient: &[f32], out: &mut [f32]) {
        let inverse = inverse_rms(x, eps);
        let mut products = [0f64; LANES];
        for ((x, weight), gradient) in x.chunks(LANES).zip(weight.chunks(LANES)).zip(gradient.chunks(LANES)) {
            for (((product, x), weight), gradient) in products.iter_mut().zip(x).zip(weight).zip(gradient) {
                *product += f64::from(x * weight * gradient);
            }
        }
        let mean = products.iter().sum::<f64>() / x.len() as f64;
        let inward = (mean * f64::from(inverse).powi(3)) as f32;
        for (((out, x), weight), gradient) in out.iter_mut().zip(x).zip(weight).zip(gradient) {
            *out += multiply_add::<FUSED>(weight * gradient, inverse, -(x * inward));
        }
    }
}

for_every_isa! {
    /// Turns the gradient of a rotated head into that of the head before, in place. What is longer than twice the angles
    /// was not rotated.
    pub fn rotate(gradient: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let (first, second) = gradient.split_at_mut(cosines.len());
        let (pairs, angles) = (first.iter_mut().zip(second), cosines.iter().zip(sines));
        for ((first, second), (cosine, sine)) in pairs.zip(angles) {
            let (a, b) = (*first, *second);
            *first = a * cosine + b * sine;
            *second = b * cosine - a * sine;
        }
    }
}

/// A stretch of an MLP's inner row.
pub struct Inner<'a, E> {
    /// What the row made: `w1 x` and `w3 x`.
    pub gate: &'a [f32],
    pub up: &'a [f32],
    /// The gradient of `activation(gate) * up`, before the row's weight.
    pub gradient: &'a [f32],
    /// What the row's output is multiplied by.
    pub weight: f32,
    /// `activation(gate) * up`.
    pub hidden: &'a mut [E],
    /// Gradients of gate and up.
    pub of_gate: &'a mut [E],
    pub of_up: &'a mut [E],
}

for_every_isa! {
    /// Back through a gate; `product` becomes `gradient . hidden`, the gradient of the row's weight.
    pub fn gate<E: Element>(activation: Gate, inner: Inner<E>, product: &mut f32) {
        *product = match activation {
            Gate::Silu => gate_by::<ROUNDS, E>(silu::<FUSED>, inner),
            Gate::GeluTanh => gate_by::<ROUNDS, E>(gelu_tanh::<FUSED>, inner),
        };
    }
}

#[inline(always)]
fn gate_by<const ROUNDS: bool, E: Element>(activation: impl Fn(f32) -> (f32, f32), inner: Inner<E>) -> f32 {
    let Inner { gate, up, gradient, weight, hidden, of_gate, of_up } = inner;
    let mut products = [0f32; WIDE];
    let mut chunk = |gate: &[f32; WIDE], up: &[f32; WIDE], gradient: &[f32; WIDE]| {
        let [mut hidden, mut of_gate, mut of_up] = [[0f32; WIDE]; 3];
        for lane in 0..WIDE {
            let (value, derivative) = activation(gate[lane]);
            let weighted = weight * gradient[lane];
            products[lane] += gradient[lane] * value * up[lane];
            hidden[lane] = value * up[lane];
            of_gate[lane] = weighted * up[lane] * derivative;
            of_up[lane] = weighted * value;
        }
        [hidden, of_gate, of_up].map(E::from_f32s::<ROUNDS>)
    };
    let ((gates, gate), (ups, up), (gradients, gradient)) = (gate.as_chunks(), up.as_chunks(), gradient.as_chunks());
    let [hidden, of_gate, of_up] = [hidden, of_gate, of_up].map(<[E]>::as_chunks_mut);
    let out = hidden.0.iter_mut().zip(of_gate.0).zip(of_up.0);
    for (((hidden, of_gate), of_up), ((gate, up), gradient)) in out.zip(gates.iter().zip(ups).zip(gradients)) {
        [*hidden, *of_gate, *of_up] = chunk(gate, up, gradient);
    }
    // What is left is filled up with 0, which adds nothing to the products.
    let made = chunk(&filled_up(gate), &filled_up(up), &filled_up(gradient));
    for (out, made) in [hidden.1, of_gate.1, of_up.1].into_iter().zip(&made) {
        out.copy_from_slice(&made[..out.len()]);
    }
    products.iter().sum()
}

fn filled_up(rest: &[f32]) -> [f32; WIDE] {
    let mut whole = [0f32; WIDE];
    whole[..rest.len()].copy_from_slice(rest);
    whole
}

/// silu and its derivative, `s (1 + x (1 - s))` with `s = 1 / (1 + e^-x)`.
#[inline(always)]
fn silu<const FUSED: bool>(x: f32) -> (f32, f32) {
    let share = 1.0 / (1.0 + exp::<FUSED>(-x));
    (x * share, share * multiply_add::<FUSED>(x, 1.0 - share, 1.0))
}

/// GELU by its tanh approximation, `x s` with `s = 1 / (1 + e^-2u)`, and its derivative, `s + 2 u' x s (1 - s)`.
#[inline(always)]
fn gelu_tanh<const FUSED: bool>(x: f32) -> (f32, f32) {
    let square = 0.044_715 * x * x;
    let inner = 0.797_884_6 * multiply_add::<FUSED>(square, x, x);
    let share = 1.0 / (1.0 + exp::<FUSED>(-2.0 * inner));
    let inner_derivative = 0.797_884_6 * multiply_add::<FUSED>(3.0, square, 1.0);
    (x * share, multiply_add::<FUSED>(2.0 * inner_derivative * x * share, 1.0 - share, share))
}

for_every_isa! {
    /// The cross-entropy of a row of logits (squashed into `cap` where the model does that), before its factor, and the
    /// gradient by the logits, with it: `softmax - one hot`.
    pub fn cross_entropy<E: Element>(logits: &mut [f32], cap: Option<f32>, target: Target, loss: &mut f64, out: &mut [E]) {
        if let Some(cap) = cap {
            logits.iter_mut().for_each(|logit| *logit = soft_cap::<FUSED>(*logit, cap));
        }
        let (chunks, rest) = logits.as_chunks::<WIDE>();
        let peak = largest(logits);
        let mut sums = [0f64; WIDE];
        for chunk in chunks {
            for (sum, logit) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(exp::<FUSED>(logit - peak));
            }
        }
        let sum = sums.into_iter().chain(rest.iter().map(|logit| f64::from(exp::<FUSED>(logit - peak)))).sum::<f64>();
        *loss = f64::from(peak) + sum.ln() - f64::from(logits[target.token as usize]);
        let scale = (f64::from(target.factor) / sum) as f32;
        let squash = |logit: f32| cap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap));
        for (out, logit) in out.iter_mut().zip(logits.iter()) {
            *out = E::from_f32(exp::<FUSED>(logit - peak) * scale * squash(*logit));
        }
        let at = target.token as usize;
        out[at] = E::from_f32((exp::<FUSED>(logits[at] - peak) * scale - target.factor) * squash(logits[at]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, rows};
    use crate::random::Random;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::named(seed, "backward");
        (0..count).map(|_| random.normal() as f32).collect()
    }

    /// The derivative of `value` by number `index` of `x`, from both sides.
    fn derivative(x: &[f32], index: usize, value: impl Fn(&[f32]) -> f64) -> f64 {
        let step = 1e-2;
        let moved = |by: f32| {
            let mut x = x.to_vec();
            x[index] += by;
            value(&x)
        };
        (moved(step) - moved(-step)) / f64::from(2.0 * step)
    }

    fn near(found: f32, expected: f64, what: &str) {
        assert!((f64::from(found) - expected).abs() < 2e-4 + 2e-3 * expected.abs(), "{what}: {found}, {expected}");
    }

    #[test]
    fn a_norms_gradient_is_its_derivative() {
        let (x, weight, gradient) = (random(21, 1), random(21, 2), random(21, 3));
        for isa in Isa::supported() {
            let objective = |x: &[f32]| -> f64 {
                let mut normed = vec![0f32; 21];
                rows::rms_norm(isa, x, &weight, 1e-5, &mut normed);
                normed.iter().zip(&gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let mut out = vec![1f32; 21];
            rms_norm(isa, &x, &weight, 1e-5, &gradient, &mut out);
            (0..21).for_each(|index| near(out[index] - 1.0, derivative(&x, index, objective), "norm"));
        }
    }

    #[test]
    fn rotating_back_undoes_a_rotation() {
        let head = random(8, 1);
        let angles = random(3, 2);
        let (cosines, sines): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        for isa in Isa::supported() {
            let mut turned = head.clone();
            rows::rotate(isa, &mut turned, &cosines, &sines);
            assert_ne!(turned, head);
            rotate(isa, &mut turned, &cosines, &sines);
            for (found, expected) in turned.iter().zip(&head) {
                assert!((found - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_gates_gradients_are_its_derivatives() {
        let (gates, ups, gradient) = (random(13, 1), random(13, 2), random(13, 3));
        for isa in Isa::supported() {
            for activation in [Gate::Silu, Gate::GeluTanh] {
                let value = |gate: f32, up: f32| match activation {
                    Gate::Silu => f64::from(gate) / (1.0 + f64::from(-gate).exp()) * f64::from(up),
                    Gate::GeluTanh => f64::from(gelu_tanh::<false>(gate).0) * f64::from(up),
                };
                let [mut hidden, mut of_gate, mut of_up] = [vec![0f32; 13], vec![0f32; 13], vec![0f32; 13]];
                let inner = Inner {
                    gate: &gates,
                    up: &ups,
                    gradient: &gradient,
                    weight: 0.5,
                    hidden: &mut hidden,
                    of_gate: &mut of_gate,
                    of_up: &mut of_up,
                };
                let mut product = 0.0;
                gate(isa, activation, inner, &mut product);
                let mut expected = 0.0;
                for index in 0..13 {
                    let weighted = 0.5 * f64::from(gradient[index]);
                    near(hidden[index], value(gates[index], ups[index]), "hidden");
                    near(of_gate[index], weighted * derivative(&gates, index, |g| value(g[index], ups[index])), "gate");
                    near(of_up[index], weighted * derivative(&ups, index, |u| value(gates[index], u[index])), "up");
                    expected += f64::from(gradient[index]) * value(gates[index], ups[index]);
                }
                near(product, expected, "product");
            }
        }
    }

    #[test]
    fn the_loss_and_its_derivatives() {
        let logits = random(37, 4);
        for isa in Isa::supported() {
            for cap in [None, Some(1.5f32)] {
                let value = |logits: &[f32]| -> f64 {
                    let (mut loss, mut out) = (0.0, vec![0f32; 37]);
                    let target = Target { token: 5, factor: 0.25 };
                    cross_entropy(isa, &mut logits.to_vec(), cap, target, &mut loss, &mut out);
                    loss
                };
                let squashed =
                    |x: f32| cap.map_or(f64::from(x), |c| f64::from(c) * (f64::from(x) / f64::from(c)).tanh());
                let sum: f64 = logits.iter().map(|&logit| squashed(logit).exp()).sum();
                assert!((value(&logits) - (sum.ln() - squashed(logits[5]))).abs() < 1e-5);
                let (mut loss, mut out) = (0.0, vec![0f32; 37]);
                let target = Target { token: 5, factor: 0.25 };
                cross_entropy(isa, &mut logits.clone(), cap, target, &mut loss, &mut out);
                (0..37).for_each(|index| near(out[index], 0.25 * derivative(&logits, index, value), "logit"));
            }
        }
    }
}
