//! A LoRA adapter's logits, and five AdamW steps of it, against transformers and peft (`tests/fixtures/lora`; its gradients
//! are in `gradients.rs`).

mod fixture;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use fireval::model::adapter::{Adapter, Matrix, peft};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::model::decoder::{Decoder, Pasts};
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, LossOptions, MicroBatch, Trainable};
use fireval::train::adamw::{AdamW, Settings};
use fireval::weights::{Checkpoint, Dtype};
use fixture::fixture;
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("lora/ref.json")).unwrap()).unwrap()
}

fn tensors() -> HashMap<String, Tensor> {
    Tensor::read_npz(fixture("lora/ref.npz")).unwrap().into_iter().collect()
}

fn loaded() -> (CandleDecoder, Adapter) {
    let checkpoint = Checkpoint::open(&fixture("tiny-mixtral")).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &options).unwrap();
    let adapter = peft::read(&fixture("lora"), &config).unwrap();
    decoder.set_adapter(&adapter).unwrap();
    (decoder, adapter)
}

/// The reference's padded batch without its padding, and what each token should predict.
fn batch(reference: &Value) -> (Packed, Vec<Option<u32>>) {
    let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(reference["batch"][key].clone()).unwrap() };
    let (mut sequences, mut targets) = (Vec::new(), Vec::new());
    for ((ids, mask), labels) in rows("input_ids").iter().zip(rows("attention_mask")).zip(rows("labels")) {
        let length = mask.iter().filter(|&&seen| seen == 1).count();
        sequences.push(ids[..length].iter().map(|&id| id as u32).collect::<Vec<u32>>());
        let next = labels[1..length].iter().map(|&label| u32::try_from(label).ok());
        targets.extend(next.chain([None]));
    }
    (Packed::rows(&sequences), targets)
}

const OPTIONS: LossOptions =
    LossOptions { router_aux_loss_coef: 0.02, recompute: true, dropout: 0.0, neftune_alpha: None };

fn assert_close(what: &str, ours: f64, theirs: &Value, tolerance: f64) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= tolerance * theirs.abs(), "{what}: {ours} here, {theirs} there");
}

/// The largest difference over the largest number.
fn relative_difference(ours: &Matrix, theirs: &Tensor) -> f32 {
    assert_eq!(theirs.dims(), [ours.rows, ours.columns]);
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let differences = ours.values.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max) / largest
}

#[test]
fn logits_with_the_adapter_agree() {
    let ((decoder, _), reference, tensors) = (loaded(), reference(), tensors());
    let (packed, _) = batch(&reference);
    let rows: Vec<usize> = (0..packed.len()).collect();
    let ours = decoder.logits(&decoder.walk(&packed, Pasts::None).unwrap(), &rows).unwrap();
    for (index, segment) in packed.segments.iter().enumerate() {
        let theirs = tensors["logits"].get(index).unwrap().narrow(0, 0, segment.len).unwrap();
        let difference = (ours.narrow(0, segment.start, segment.len).unwrap() - theirs).unwrap().abs().unwrap();
        let largest = difference.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-4, "sequence {index}: {largest}");
    }
}

#[test]
fn five_steps_of_adamw_agree() {
    let ((mut decoder, mut adapter), reference, tensors) = (loaded(), reference(), tensors());
    let start = adapter.clone();
    let (packed, targets) = batch(&reference);
    let batches = [MicroBatch { packed, targets, seed: 0 }];
    let stated = &reference["adamw"];
    let settings = Settings {
        learning_rate: stated["lr"].as_f64().unwrap(),
        betas: serde_json::from_value(stated["betas"].clone()).unwrap(),
        epsilon: stated["eps"].as_f64().unwrap(),
        weight_decay: stated["weight_decay"].as_f64().unwrap(),
        max_grad_norm: stated["max_grad_norm"].as_f64(),
        lora_plus_ratio: 1.0,
    };
    let mut optimizer = AdamW::new(settings, &adapter);
    let steps = stated["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 5);
    for step in steps {
        decoder.set_adapter(&adapter).unwrap();
        let mut gradients = Gradients::zeros(&adapter);
        let loss = decoder.gradients(&batches, &OPTIONS, 1.0, &mut gradients).unwrap()[0];
        let norm = gradients.norm();
        assert_close("loss", loss.total, &step["loss"], 1e-4);
        assert_close("norm", norm, &step["grad_norm_before_clip"], 1e-4);
        gradients.clip(norm, settings.max_grad_norm.unwrap());
        optimizer.step(&mut adapter, &gradients, settings.learning_rate).unwrap();
    }
    let named = |adapter: &Adapter, name: &str| {
        let module = name.strip_prefix("base_model.model.").unwrap();
        let pair = adapter.pairs.iter().find(|pair| module.starts_with(&format!("{}.lora_", pair.module))).unwrap();
        if module.ends_with("lora_A.weight") { pair.a.clone() } else { pair.b.clone() }
    };
    let mut compared = 0;
    for (name, theirs) in tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("after5.")?, tensor))) {
        let difference = relative_difference(&named(&adapter, name), theirs);
        assert!(difference < 1e-4, "{name}: {difference}");
        assert_ne!(named(&adapter, name), named(&start, name), "{name} has moved");
        compared += 1;
    }
    assert_eq!(compared, 10);
}
