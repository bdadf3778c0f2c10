//! Weights that are trained themselves, on candle's tensors: gradients and steps of the tiny Mixtral beside an independent
//! program's (tests/fixtures/full), and of what it does not have (norms of heads and around both parts, biases, one more than
//! the weight, a head that is the embedding, soft caps) beside differences of the loss.

mod fixture;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use fireval::kernel::Isa;
use fireval::model::adapter::{Adapter, Matrix, Whole};
use fireval::model::candle::{CandleDecoder, LoadOptions, Room};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::names;
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, Loss, LossOptions, MicroBatch, Trainable};
use fireval::random::Random;
use fireval::train::adamw::{AdamW, Settings};
use fireval::weights::{Checkpoint, Dtype};
use fixture::{fixture, open};
use serde_json::Value;

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// Every tensor of the checkpoint, to be trained.
fn all(checkpoint: &Checkpoint, config: &ModelConfig) -> Adapter {
    let whole = |(tensor, shape): (String, Vec<usize>)| {
        let values = checkpoint.tensor(&tensor, &shape).unwrap().to_f32().unwrap();
        let columns = *shape.last().unwrap();
        Whole { tensor, values: Matrix { rows: values.len() / columns, columns, values } }
    };
    Adapter { pairs: Vec::new(), whole: names::tensors(config).into_iter().map(whole).collect() }
}

const OPTIONS: LoadOptions = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };

fn options(router_aux_loss_coef: f64, recompute: bool) -> LossOptions {
    LossOptions { router_aux_loss_coef, recompute, ..LossOptions::default() }
}

fn reference_batch() -> MicroBatch {
    let batch = &json("lora/ref.json")["batch"];
    let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(batch[key].clone()).unwrap() };
    let (mut packed, mut targets) = (Packed::default(), Vec::new());
    for ((ids, mask), labels) in rows("input_ids").iter().zip(rows("attention_mask")).zip(rows("labels")) {
        let len = mask.iter().sum::<i64>() as usize;
        packed.push(&ids[..len].iter().map(|&id| id as u32).collect::<Vec<u32>>(), None);
        targets.extend(labels[1..len].iter().map(|&label| u32::try_from(label).ok()).chain([None]));
    }
    MicroBatch { packed, targets, seed: 1 }
}

fn gradients(
    decoder: &CandleDecoder,
    adapter: &Adapter,
    batch: &MicroBatch,
    options: &LossOptions,
) -> (Loss, Gradients) {
    let mut sums = Gradients::zeros(adapter);
    let losses = decoder.gradients(std::slice::from_ref(batch), options, 1.0, &mut sums).unwrap();
    (losses[0], sums)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1e-3), "{what}: {found}, reference {expected}");
}

#[test]
fn every_gradient_of_the_tiny_mixtral_agrees() {
    let (checkpoint, config) = open(&fixture("tiny-mixtral"));
    let adapter = all(&checkpoint, &config);
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
    decoder.adapt(&adapter).unwrap();
    let reference = json("full/ref.json");
    let tensors: HashMap<String, Tensor> = Tensor::read_npz(fixture("full/ref.npz")).unwrap().into_iter().collect();
    for (key, coefficient, recompute) in
        [("ce", 0.0, true), ("ce", 0.0, false), ("aux", 0.02, true), ("aux", 0.02, false)]
    {
        let (loss, found) = gradients(&decoder, &adapter, &reference_batch(), &options(coefficient, recompute));
        let expected = &reference[key];
        near(loss.total, expected["loss"].as_f64().unwrap(), "loss");
        near(found.norm(), expected["grad_norm"].as_f64().unwrap(), "norm of all gradients");
        let norms = expected["grad_norms"].as_object().unwrap();
        assert_eq!((norms.len(), found.whole.len()), (adapter.whole.len(), adapter.whole.len()));
        let mut compared = 0;
        for (Whole { tensor, .. }, found) in adapter.whole.iter().zip(&found.whole) {
            near(norm(&found.values), norms[tensor].as_f64().unwrap(), tensor);
            let Some(numbers) = tensors.get(&format!("grad.{key}.{tensor}")) else { continue };
            let numbers: Vec<f32> = numbers.flatten_all().unwrap().to_vec1().unwrap();
            let scale = numbers.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in found.values.iter().zip(&numbers) {
                assert!((found - expected).abs() <= 1e-4 * scale, "{tensor}: {found}, reference {expected}");
            }
            compared += 1;
        }
        assert_eq!(compared, if key == "ce" { 8 } else { 7 });
    }
}

#[test]
fn five_steps_of_adamw_lose_what_the_reference_loses() {
    let (checkpoint, config) = open(&fixture("tiny-mixtral"));
    let mut adapter = all(&checkpoint, &config);
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
    let reference = &json("full/ref.json")["adamw"];
    let number = |key: &str| reference[key].as_f64().unwrap();
    let settings = Settings {
        learning_rate: number("lr"),
        betas: [0.9, 0.999],
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
        max_grad_norm: None,
        lora_plus_ratio: 8.0, // not for whole tensors
    };
    let mut optimizer = AdamW::new(settings, &adapter);
    let step = |decoder: &CandleDecoder, adapter: &Adapter| {
        gradients(decoder, adapter, &reference_batch(), &options(0.0, true))
    };
    for expected in reference["steps"].as_array().unwrap() {
        decoder.adapt(&adapter).unwrap();
        let (loss, mut found) = step(&decoder, &adapter);
        near(loss.total, expected["loss"].as_f64().unwrap(), "loss");
        let before = found.norm();
        near(before, expected["grad_norm_before_clip"].as_f64().unwrap(), "norm");
        found.clip(before, number("max_grad_norm"));
        optimizer.step(&mut adapter, &found, settings.learning_rate).unwrap();
    }
    decoder.adapt(&adapter).unwrap();
    near(step(&decoder, &adapter).0.total, number("loss_after"), "loss after the last step");
}

/// Along a tensor's own gradient the loss changes as fast as that gradient is long.
#[test]
fn gradients_are_what_the_loss_changes_by_in_other_families() {
    for name in ["families/qwen2", "families/qwen3", "families/gemma2", "families/gemma3"] {
        let (checkpoint, config) = open(&fixture(name));
        let adapter = all(&checkpoint, &config);
        let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
        let batch = random_batch(&config);
        decoder.adapt(&adapter).unwrap();
        let (_, found) = gradients(&decoder, &adapter, &batch, &options(0.0, true));
        for (index, gradient) in found.whole.iter().enumerate() {
            let length = norm(&gradient.values);
            assert!(length > 0.0, "{name}: {} has no gradient", adapter.whole[index].tensor);
            let reach = (2e-3 / length).min(0.05); // so far that the loss moves by much more than its rounding
            let mut loss_at = |distance: f64| {
                let mut moved = adapter.clone();
                let values = moved.whole[index].values.values.iter_mut().zip(&gradient.values);
                values.for_each(|(value, gradient)| *value += (distance / length * f64::from(*gradient)) as f32);
                decoder.adapt(&moved).unwrap();
                decoder.losses(std::slice::from_ref(&batch), &options(0.0, true)).unwrap()[0].total
            };
            let slope = (loss_at(reach) - loss_at(-reach)) / (2.0 * reach);
            // The loss itself is rounded.
            let is_near = (slope - length).abs() < 0.02 * length + 2e-5;
            assert!(is_near, "{name}: {} changes the loss by {slope}, not {length}", adapter.whole[index].tensor);
        }
    }
}

fn random_batch(config: &ModelConfig) -> MicroBatch {
    let mut random = Random::named(3, "dialogues");
    let vocabulary = config.vocab_size.min(60);
    let mut sequence = |length: usize| -> Vec<u32> { (0..length).map(|_| random.below(vocabulary) as u32).collect() };
    let sequences = [sequence(14), sequence(9)];
    let targets = sequences.iter().flat_map(|ids| ids[1..].iter().map(|&id| Some(id)).chain([None])).collect();
    MicroBatch { packed: Packed::rows(&sequences), targets, seed: 1 }
}

#[test]
fn some_tensors_can_be_trained_beside_pairs_and_alone() {
    let (checkpoint, config) = open(&fixture("families/qwen2"));
    let whole = all(&checkpoint, &config);
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
    let batch = random_batch(&config);
    decoder.adapt(&whole).unwrap();
    let (_, expected) = gradients(&decoder, &whole, &batch, &options(0.0, true));
    for chosen in
        [names::bias(&names::q_proj(1)), names::input_norm(0), names::NORM.to_owned(), names::EMBEDDING.to_owned()]
    {
        let index = whole.whole.iter().position(|whole| whole.tensor == chosen).unwrap();
        let some = Adapter { pairs: Vec::new(), whole: vec![whole.whole[index].clone()] };
        let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
        decoder.adapt(&some).unwrap();
        let (_, found) = gradients(&decoder, &some, &batch, &options(0.0, true));
        let (found, expected) = (&found.whole[0].values, &expected.whole[index].values);
        let apart: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        assert!(norm(&apart) < 1e-5 * norm(expected), "{chosen}");
    }
}

#[test]
fn what_cannot_be_trained_is_named() {
    let (checkpoint, config) = open(&fixture("tiny-mixtral"));
    let adapter = all(&checkpoint, &config);
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &OPTIONS).unwrap();
    let mut unknown = adapter.clone();
    unknown.whole[3].tensor = "model.layers.7.input_layernorm.weight".to_owned();
    let error = decoder.adapt(&unknown).unwrap_err().to_string();
    assert!(error.contains("`model.layers.7.input_layernorm.weight`"), "{error}");
    let mut narrow = adapter.clone();
    narrow.whole[0].values.rows -= 1;
    let error = decoder.adapt(&narrow).unwrap_err().to_string();
    assert!(error.contains(names::EMBEDDING) && error.contains("[512, 64]"), "{error}");

    let room = (18..).map(|power| Room { memory: 1 << power, reserve: 0 });
    let mut streamed = room.filter_map(|room| CandleDecoder::load_onto(&checkpoint, &config, &OPTIONS, room).ok());
    let mut streamed = streamed.next().unwrap();
    assert!(streamed.resident_layers() < 2);
    assert!(streamed.adapt(&adapter).unwrap_err().to_string().contains("--device-memory"));

    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: u64::MAX };
    let mut kernels = CpuDecoder::<f32>::load(checkpoint, &config, &options).unwrap();
    assert!(kernels.adapt(&adapter).unwrap_err().to_string().contains("--decoder candle"));
}
