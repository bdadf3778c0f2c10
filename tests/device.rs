//! candle's home in a device's memory, with the CPU as that device: what a card runs, but for its kernels. NF4 is decoded by
//! tensor operations, layers wait elsewhere until they are visited, half precision is held as such; beside the same home
//! without a device, whose gradients are peft's (tests/gradients.rs).

use std::path::{Path, PathBuf};

use candle_core::Device;
use fireval::model::adapter::{Adapter, LoraPair, Matrix};
use fireval::model::candle::{CandleDecoder, LoadOptions, Room};
use fireval::model::config::ModelConfig;
use fireval::model::decoder::{Decoder, Pasts, TokenScore, Wanted};
use fireval::model::names;
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, Loss, LossOptions, MicroBatch, Trainable};
use fireval::random::Random;
use fireval::train::adamw::{AdamW, Settings};
use fireval::weights::{Checkpoint, Dtype};

/// Tiny checkpoints that together have everything there is in a layer, one of them stored in NF4.
const MODELS: [&str; 6] =
    ["tiny-mixtral", "families/qwen2", "families/qwen3-moe", "families/gemma2", "families/gemma3", "families/phi3-nf4"];

struct Model {
    checkpoint: Checkpoint,
    config: ModelConfig,
}

impl Model {
    fn open(name: &str) -> Model {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = ModelConfig::of(&checkpoint).unwrap();
        Model { checkpoint, config }
    }

    fn plain(&self, nf4: bool) -> CandleDecoder {
        let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4 };
        adapted(CandleDecoder::load(&self.checkpoint, &self.config, &options).unwrap(), &self.adapter())
    }

    fn within(&self, nf4: bool, dtype: Dtype, memory: u64) -> Option<CandleDecoder> {
        let options = LoadOptions { device: Device::Cpu, dtype, nf4 };
        let room = Room { memory, reserve: 0 };
        let decoder = CandleDecoder::load_onto(&self.checkpoint, &self.config, &options, room).ok()?;
        Some(adapted(decoder, &self.adapter()))
    }

    /// The least memory that one layer at a time fits into.
    fn least(&self, nf4: bool, dtype: Dtype) -> u64 {
        let (mut least, mut most) = (0, 1 << 24);
        while most - least > 1 {
            let middle = (least + most) / 2;
            match self.within(nf4, dtype, middle) {
                Some(_) => most = middle,
                None => least = middle,
            }
        }
        most
    }

    /// A pair of random numbers on every linear.
    fn adapter(&self) -> Adapter {
        let random = |rows: usize, columns: usize, name: String| {
            let mut random = Random::named(5, &name);
            Matrix { rows, columns, values: (0..rows * columns).map(|_| 0.3 * random.normal() as f32).collect() }
        };
        let pair = |linear: names::Linear| LoraPair {
            scale: 0.7,
            a: random(2, linear.inputs, format!("{} A", linear.module)),
            b: random(linear.outputs, 2, format!("{} B", linear.module)),
            module: linear.module,
        };
        let layers = 0..self.config.num_hidden_layers;
        let pairs = layers.flat_map(|layer| names::linears(&self.config, layer)).map(pair).collect();
        Adapter { pairs, whole: Vec::new() }
    }

    /// Micro-batches of two dialogues and of one, every third token not to be predicted.
    fn batches(&self) -> Vec<MicroBatch> {
        let mut random = Random::named(3, "dialogues");
        let mut batch = |lengths: &[usize]| {
            let sequences: Vec<Vec<u32>> =
                lengths.iter().map(|&length| (0..length).map(|_| random.below(60) as u32).collect()).collect();
            let next = sequences.iter().flat_map(|ids| ids[1..].iter().map(|&id| Some(id)).chain([None]));
            let targets = next.enumerate().map(|(row, next)| next.filter(|_| row % 3 > 0)).collect();
            MicroBatch { packed: Packed::rows(&sequences), targets, seed: random.next_u64() }
        };
        vec![batch(&[17, 9]), batch(&[33])]
    }

    fn step(&self, decoder: &CandleDecoder, factor: f32) -> (Vec<Loss>, Gradients) {
        let mut sums = Gradients::zeros(&self.adapter());
        let losses = decoder.gradients(&self.batches(), &OPTIONS, factor, &mut sums).unwrap();
        (losses, sums)
    }
}

const OPTIONS: LossOptions =
    LossOptions { router_aux_loss_coef: 0.02, recompute: true, dropout: 0.2, neftune_alpha: Some(5.0) };

fn adapted(mut decoder: CandleDecoder, adapter: &Adapter) -> CandleDecoder {
    decoder.set_adapter(adapter).unwrap();
    decoder
}

/// What each token of a sequence says of the next one, and a greedy continuation of it with a past.
fn answers(decoder: &CandleDecoder) -> (Vec<TokenScore>, Vec<u32>) {
    let ids: Vec<u32> = (0..150).map(|index| (index * 37 + 5) % 60).collect();
    let packed = Packed::rows(std::slice::from_ref(&ids));
    let hidden = decoder.walk(&packed, Pasts::None).unwrap();
    let wanted: Vec<Wanted> = (0..149).map(|row| Wanted { row, token: ids[row + 1] }).collect();
    let scores = decoder.score(&hidden, &wanted).unwrap();
    let mut pasts = [decoder.past(160).unwrap()];
    let mut hidden = decoder.walk(&packed, Pasts::Begin { pasts: &mut pasts, leaves: &[0] }).unwrap();
    let (mut tokens, mut row) = (Vec::new(), 149);
    for position in 150..154 {
        let token = decoder.greedy(&hidden, &[row]).unwrap()[0];
        tokens.push(token);
        let mut next = Packed::default();
        next.push_at(&[token], position);
        hidden = decoder.walk(&next, Pasts::Continue(&mut pasts)).unwrap();
        row = 0;
    }
    (scores, tokens)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The distance of two gradients relative to the second.
fn distance(found: &Gradients, expected: &Gradients) -> f64 {
    let values = |gradients: &Gradients| -> Vec<f32> {
        gradients.matrices().flat_map(|matrix| matrix.values.iter().copied()).collect()
    };
    let (found, expected) = (values(found), values(expected));
    let difference = found.iter().zip(&expected).map(|(a, b)| a - b);
    norm(difference) / norm(expected.iter().copied())
}

#[test]
fn a_device_answers_with_the_same_bits_wherever_layers_wait() {
    for name in MODELS {
        let model = Model::open(name);
        for nf4 in [false, true] {
            let expected = answers(&model.plain(nf4));
            let least = model.least(nf4, Dtype::F32);
            let mut seen = Vec::new();
            for memory in [least, least + least / 3, u64::MAX] {
                let decoder = model.within(nf4, Dtype::F32, memory).unwrap();
                seen.push(decoder.resident_layers());
                assert_eq!(answers(&decoder), expected, "{name}, nf4 {nf4}, {memory} bytes");
            }
            // One layer on its visit takes as much as one that stays.
            let layers = model.config.num_hidden_layers;
            assert_eq!((seen[0], seen[2]), (if layers == 1 { 1 } else { 0 }, layers), "{name}: {seen:?}");
        }
    }
}

#[test]
fn a_step_has_the_same_bits_wherever_layers_wait() {
    for name in MODELS {
        let model = Model::open(name);
        for nf4 in [false, true] {
            let expected = model.step(&model.plain(nf4), 0.5);
            for memory in [model.least(nf4, Dtype::F32), u64::MAX] {
                let decoder = model.within(nf4, Dtype::F32, memory).unwrap();
                assert!(model.step(&decoder, 0.5) == expected, "{name}, nf4 {nf4}, {memory} bytes");
            }
        }
    }
}

#[test]
fn moments_stay_on_the_host_and_new_numbers_go_back_to_the_device() {
    let model = Model::open("tiny-mixtral");
    let settings = Settings {
        learning_rate: 0.01,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: None,
        lora_plus_ratio: 1.0,
    };
    let trained = |mut decoder: CandleDecoder| {
        let mut adapter = model.adapter();
        let mut optimizer = AdamW::new(settings, &adapter);
        for _ in 0..3 {
            let (_, gradients) = model.step(&decoder, 0.5);
            optimizer.step(&mut adapter, &gradients, settings.learning_rate).unwrap();
            decoder.adapt(&adapter).unwrap();
        }
        (model.step(&decoder, 0.5), adapter)
    };
    let expected = trained(model.plain(true));
    assert!(trained(model.within(true, Dtype::F32, model.least(true, Dtype::F32)).unwrap()) == expected);
    assert!(expected.0 != model.step(&model.plain(true), 0.5), "three updates change what the fourth sees");
}

#[test]
fn half_precision_has_nearly_the_gradient_of_f32() {
    for (dtype, most) in [(Dtype::F16, 0.02), (Dtype::BF16, 0.12)] {
        for name in ["tiny-mixtral", "families/gemma2", "families/gemma3"] {
            let model = Model::open(name);
            let (losses, expected) = model.step(&model.plain(true), 1.0);
            for memory in [model.least(true, dtype), u64::MAX] {
                let decoder = model.within(true, dtype, memory).unwrap();
                // A scale of the loss that is a power of 2, as the scaler's are.
                let (found, mut scaled) = model.step(&decoder, 256.0);
                scaled.scale(1.0 / 256.0);
                let apart = distance(&scaled, &expected);
                assert!(apart < most && apart > 1e-6, "{name} in {dtype:?}: {apart}");
                for (found, expected) in found.iter().zip(&losses) {
                    assert!((found.total - expected.total).abs() < most * expected.total, "{found:?} {expected:?}");
                }
            }
        }
    }
}

/// In f16 a small gradient vanishes on the way back unless the loss is scaled before, and one scaled too far is not finite,
/// which the scaler hears of.
#[test]
fn the_scale_of_the_loss_goes_through_the_way_back() {
    let model = Model::open("tiny-mixtral");
    let decoder = model.within(true, Dtype::F16, u64::MAX).unwrap();
    let (_, expected) = model.step(&model.plain(true), 1.0);
    let of_factor = |factor: f32| {
        let (_, mut gradients) = model.step(&decoder, factor);
        gradients.scale(1.0 / factor);
        gradients
    };
    let small = 2f32.powi(-16);
    assert!(distance(&of_factor(small), &expected) > 10.0 * distance(&of_factor(256.0), &expected));
    assert!(!of_factor(2f32.powi(24)).norm().is_finite());
}

#[test]
fn a_memory_that_holds_no_layer_is_refused_with_what_it_takes() {
    let model = Model::open("tiny-mixtral");
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: true };
    let room = Room { memory: 1 << 20, reserve: 1 << 30 };
    let error = CandleDecoder::load_onto(&model.checkpoint, &model.config, &options, room).err().unwrap().to_string();
    assert!(error.contains("1 MiB") && error.contains("--device-memory"), "{error}");
}
