//! Loss and gradients of the LoRA pairs, in both homes, against transformers + peft (tests/fixtures/lora), on the tiny
//! Mixtral.

mod fixture;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use fireval::kernel::Isa;
use fireval::model::adapter::Adapter;
use fireval::model::candle::{self, CandleDecoder};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, Loss, LossOptions, MicroBatch, PairGradient, Trainable};
use fireval::weights::{Checkpoint, Dtype};
use fixture::fixture;
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("lora/ref.json")).unwrap()).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Home {
    Candle,
    Cpu,
}

struct Case {
    decoder: Box<dyn Trainable>,
    adapter: Adapter,
    batch: MicroBatch,
}

impl Case {
    fn gradients(&self, options: &LossOptions) -> (Loss, Gradients) {
        let mut sums = Gradients::zeros(&self.adapter);
        let losses = self.decoder.gradients(std::slice::from_ref(&self.batch), options, 1.0, &mut sums).unwrap();
        (losses[0], sums)
    }
}

fn case(home: Home, nf4: bool) -> Case {
    let checkpoint = Checkpoint::open(&fixture("tiny-mixtral")).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let adapter = fireval::model::adapter::peft::read(&fixture("lora"), &config).unwrap();
    let mut decoder: Box<dyn Trainable> = match home {
        Home::Candle => {
            let options = candle::LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4 };
            Box::new(CandleDecoder::load(&checkpoint, &config, &options).unwrap())
        }
        Home::Cpu => {
            let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4, memory: u64::MAX };
            Box::new(CpuDecoder::<f32>::load(checkpoint, &config, &options).unwrap())
        }
    };
    decoder.adapt(&adapter).unwrap();
    let batch = &reference()["batch"];
    let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(batch[key].clone()).unwrap() };
    let (mut packed, mut targets) = (Packed::default(), Vec::new());
    for ((ids, mask), labels) in rows("input_ids").iter().zip(rows("attention_mask")).zip(rows("labels")) {
        let len = mask.iter().sum::<i64>() as usize;
        packed.push(&ids[..len].iter().map(|&id| id as u32).collect::<Vec<u32>>(), None);
        let next = labels[1..len].iter().map(|&label| u32::try_from(label).ok());
        targets.extend(next.chain([None]));
    }
    Case { decoder, adapter, batch: MicroBatch { packed, targets, seed: 1 } }
}

fn options(router_aux_loss_coef: f64, recompute: bool) -> LossOptions {
    LossOptions { router_aux_loss_coef, recompute, ..LossOptions::default() }
}

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1e-3), "{what}: {found}, reference {expected}");
}

/// (name as peft spells it, values) of every gradient.
fn named<'a>(adapter: &'a Adapter, gradients: &'a [PairGradient]) -> Vec<(String, &'a [f32])> {
    let both = |(pair, gradient): (&'a fireval::model::adapter::LoraPair, &'a PairGradient)| {
        let name = |side| format!("base_model.model.{}.lora_{side}.weight", pair.module);
        [(name("A"), gradient.a.values.as_slice()), (name("B"), gradient.b.values.as_slice())]
    };
    adapter.pairs.iter().zip(gradients).flat_map(both).collect()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn agrees(home: Home, key: &str, coefficient: f64, recompute: bool) {
    let (case, reference) = (case(home, false), reference());
    let (loss, gradients) = case.gradients(&options(coefficient, recompute));
    let expected = &reference[key];
    near(loss.total, expected["loss"].as_f64().unwrap(), "loss");
    if let Some(aux) = expected["aux_loss"].as_f64() {
        near(loss.router_aux.unwrap(), aux, "router loss");
    }
    let named = named(&case.adapter, &gradients.pairs);
    let norms = expected["grad_norms"].as_object().unwrap();
    assert_eq!(norms.len(), named.len());
    for (name, values) in &named {
        near(norm(values), norms[name].as_f64().unwrap(), name);
    }
    let total = named.iter().map(|(_, values)| norm(values).powi(2)).sum::<f64>().sqrt();
    near(total, expected["grad_norm"].as_f64().unwrap(), "norm of all gradients");
    let tensors: HashMap<String, Tensor> = Tensor::read_npz(fixture("lora/ref.npz")).unwrap().into_iter().collect();
    let mut compared = 0;
    for (name, values) in named {
        let Some(expected) = tensors.get(&format!("grad.{key}.{name}")) else { continue };
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in values.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-4 * scale, "{name}: {found}, reference {expected}");
        }
        compared += 1;
    }
    assert_eq!(compared, 18);
}

#[test]
fn cross_entropy_and_its_gradients_agree() {
    agrees(Home::Cpu, "ce", 0.0, true);
    agrees(Home::Cpu, "ce", 0.0, false);
    agrees(Home::Candle, "ce", 0.0, true);
    agrees(Home::Candle, "ce", 0.0, false);
}

#[test]
fn the_router_s_loss_and_its_gradients_agree() {
    agrees(Home::Cpu, "aux", 0.02, true);
    agrees(Home::Cpu, "aux", 0.02, false);
    agrees(Home::Candle, "aux", 0.02, true);
    agrees(Home::Candle, "aux", 0.02, false);
}

#[test]
fn recomputed_gradients_have_the_bits_of_kept_ones() {
    let mut case = case(Home::Candle, true);
    let mut options = options(0.02, true);
    options.dropout = 0.1;
    let recomputed = case.gradients(&options);
    options.recompute = false;
    assert_eq!(recomputed, case.gradients(&options));
    case.batch.seed = 2;
    assert_ne!(recomputed.0, case.gradients(&options).0, "another seed drops other inputs");
}

#[test]
fn the_loss_on_a_base_in_nf4_agrees() {
    for home in [Home::Candle, Home::Cpu] {
        let case = case(home, true);
        let expected = &reference()["qlora_nf4dq"];
        let loss = case.decoder.losses(std::slice::from_ref(&case.batch), &options(0.02, true)).unwrap()[0];
        near(loss.total, expected["loss_with_aux"].as_f64().unwrap(), "loss");
        near(loss.router_aux.unwrap(), expected["aux_loss"].as_f64().unwrap(), "router loss");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_named() {
    for home in [Home::Candle, Home::Cpu] {
        let Case { mut decoder, mut adapter, .. } = case(home, false);
        adapter.pairs[0].module = "model.layers.9.self_attn.q_proj".to_owned();
        let error = decoder.adapt(&adapter).unwrap_err().to_string();
        assert!(error.contains("model.layers.9.self_attn.q_proj"), "{error}");
        adapter.pairs.remove(0);
        adapter.pairs[0].a.columns -= 1;
        assert!(decoder.adapt(&adapter).unwrap_err().to_string().contains(&adapter.pairs[0].module));
    }
}
