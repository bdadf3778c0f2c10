//! The CPU home as a trainer: beside candle's autograd number by number, and with the same bits in whatever company, on
//! however many threads, resident or streamed.

mod fixture;

use std::path::Path;

use candle_core::Device;
use fireval::kernel::{Element, Isa};
use fireval::model::adapter::{Adapter, LoraPair, Matrix};
use fireval::model::candle::{self, CandleDecoder};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::names;
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, Loss, LossOptions, MicroBatch, Trainable};
use fireval::random::Random;
use fireval::weights::Dtype;
use fixture::{fixture, open};
use half::bf16;

/// Tiny checkpoints that together have everything there is in a layer: experts, biases, head norms, norms around both
/// parts, soft caps, windows, two rotary embeddings.
const MODELS: [&str; 7] = [
    "tiny-mixtral",
    "families/qwen2",
    "families/qwen3-moe",
    "families/qwen3-moe-unnormalized",
    "families/gemma2",
    "families/gemma3",
    "families/mistral",
];

/// A pair of random numbers on every linear, ranks of 2 and 3 in turn.
fn adapter(config: &ModelConfig) -> Adapter {
    let linears = (0..config.num_hidden_layers).flat_map(|layer| names::linears(config, layer));
    let random = |rows: usize, columns: usize, name: String| {
        let mut random = Random::named(5, &name);
        let values = (0..rows * columns).map(|_| 0.3 * random.normal() as f32).collect();
        Matrix { rows, columns, values }
    };
    let pair = |(index, linear): (usize, names::Linear)| {
        let (rank, module) = (2 + index % 2, linear.module);
        LoraPair {
            scale: 0.7,
            a: random(rank, linear.inputs, format!("{module} A")),
            b: random(linear.outputs, rank, format!("{module} B")),
            module,
        }
    };
    Adapter { pairs: linears.enumerate().map(pair).collect(), whole: Vec::new() }
}

/// Micro-batches of two, one and three dialogues of random tokens, every third one to be predicted.
fn batches(config: &ModelConfig) -> Vec<MicroBatch> {
    let mut random = Random::named(3, "dialogues");
    let mut batch = |lengths: &[usize]| {
        let vocabulary = config.vocab_size.min(96);
        let sequences: Vec<Vec<u32>> =
            lengths.iter().map(|&length| (0..length).map(|_| random.below(vocabulary) as u32).collect()).collect();
        let next = sequences.iter().flat_map(|ids| ids[1..].iter().map(|&id| Some(id)).chain([None]));
        let targets = next.enumerate().map(|(row, next)| next.filter(|_| row % 3 > 0)).collect();
        MicroBatch { packed: Packed::rows(&sequences), targets, seed: random.next_u64() }
    };
    vec![batch(&[17, 9]), batch(&[33]), batch(&[5, 12, 8])]
}

fn cpu<E: Element>(folder: &Path, isa: Isa, nf4: bool) -> CpuDecoder<E> {
    let (checkpoint, config) = open(folder);
    let options = cpu::LoadOptions { isa, rounded_to_f16: false, nf4, memory: u64::MAX };
    let mut decoder = CpuDecoder::load_to_train(checkpoint, &config, &options).unwrap();
    decoder.adapt(&adapter(&config)).unwrap();
    decoder
}

fn candle(folder: &Path) -> CandleDecoder {
    let (checkpoint, config) = open(folder);
    let options = candle::LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &options).unwrap();
    decoder.adapt(&adapter(&config)).unwrap();
    decoder
}

const OPTIONS: LossOptions =
    LossOptions { router_aux_loss_coef: 0.02, recompute: true, dropout: 0.2, neftune_alpha: Some(5.0) };

/// Losses and gradients of batches that walk in the given groups.
fn step(decoder: &dyn Trainable, config: &ModelConfig, groups: &[&[MicroBatch]]) -> (Vec<Loss>, Gradients) {
    step_with(&OPTIONS, decoder, config, groups)
}

fn step_with(
    options: &LossOptions,
    decoder: &dyn Trainable,
    config: &ModelConfig,
    groups: &[&[MicroBatch]],
) -> (Vec<Loss>, Gradients) {
    let mut sums = Gradients::zeros(&adapter(config));
    let losses = groups.iter().flat_map(|group| decoder.gradients(group, options, 0.5, &mut sums).unwrap()).collect();
    (losses, sums)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The largest distance of a pair's gradient from what is expected, relative to the pair's.
fn distance(found: &Gradients, expected: &Gradients) -> f64 {
    let pairs = found.matrices().zip(expected.matrices());
    let distances = pairs.map(|(found, expected)| {
        let difference = found.values.iter().zip(&expected.values).map(|(a, b)| a - b);
        norm(difference) / norm(expected.values.iter().copied()).max(1e-6)
    });
    distances.fold(0.0, f64::max)
}

#[test]
fn both_homes_have_the_same_gradients() {
    for model in MODELS {
        let (folder, config) = (fixture(model), open(&fixture(model)).1);
        let batches = batches(&config);
        let (expected_losses, expected) = step(&candle(&folder), &config, &[&batches]);
        for isa in Isa::supported() {
            let (losses, found) = step(&cpu::<f32>(&folder, isa, false), &config, &[&batches]);
            for (found, expected) in losses.iter().zip(&expected_losses) {
                assert!((found.total - expected.total).abs() < 1e-4, "{model} {isa:?}: {found:?}, candle {expected:?}");
                assert_eq!(found.targets, expected.targets);
            }
            let distance = distance(&found, &expected);
            assert!(distance < 1e-3, "{model} {isa:?}: off by {distance}");
        }
    }
}

#[test]
fn bf16_is_near_f32_and_levels_are_near_each_other() {
    for model in MODELS {
        let (folder, config) = (fixture(model), open(&fixture(model)).1);
        let batches = batches(&config);
        let all = |gradients: Gradients| -> Vec<f32> {
            gradients.pairs.into_iter().flat_map(|pair| [pair.a.values, pair.b.values]).flatten().collect()
        };
        let off = |found: &[f32], expected: &[f32]| {
            norm(found.iter().zip(expected).map(|(a, b)| a - b)) / norm(expected.iter().copied())
        };
        let exact = all(step(&cpu::<f32>(&folder, Isa::best(), false), &config, &[&batches]).1);
        let plain = all(step(&cpu::<bf16>(&folder, Isa::Portable, false), &config, &[&batches]).1);
        // A token of a mixture may change its expert: then its gradient is another, not a less exact one.
        if config.mixture.is_none() {
            assert!(off(&plain, &exact) < 0.15, "{model}: off by {}", off(&plain, &exact));
        }
        for isa in Isa::supported() {
            let found = all(step(&cpu::<bf16>(&folder, isa, false), &config, &[&batches]).1);
            assert!(off(&found, &plain) < 0.02, "{model} {isa:?}: off by {}", off(&found, &plain));
        }
    }
}

#[test]
fn a_step_has_the_same_bits_in_any_company() {
    for model in ["tiny-mixtral", "families/gemma2"] {
        let (folder, config) = (fixture(model), open(&fixture(model)).1);
        let batches = batches(&config);
        let decoder = cpu::<bf16>(&folder, Isa::best(), false);
        let together = step(&decoder, &config, &[&batches]);
        let (first, rest) = batches.split_at(1);
        assert_eq!(together, step(&decoder, &config, &[first, rest]), "{model}: in two groups");
        let alone: Vec<&[MicroBatch]> = batches.chunks(1).collect();
        assert_eq!(together, step(&decoder, &config, &alone), "{model}: one by one");
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| step(&decoder, &config, &[&batches]));
            assert_eq!(together, found, "{model}: {threads} threads");
        }
    }
}

#[test]
fn a_step_has_the_same_bits_whether_layers_are_kept_or_computed_again() {
    let kept = LossOptions { recompute: false, ..OPTIONS };
    for model in MODELS {
        let (folder, config) = (fixture(model), open(&fixture(model)).1);
        let batches = batches(&config);
        let decoder = cpu::<bf16>(&folder, Isa::best(), false);
        let expected = step(&decoder, &config, &[&batches]);
        let (first, rest) = batches.split_at(1);
        for groups in [&[&batches[..]][..], &[first, rest]] {
            assert_eq!(expected, step_with(&kept, &decoder, &config, groups), "{model}, {} groups", groups.len());
        }
        assert_eq!(expected, step(&decoder, &config, &[&batches]), "{model}: nothing is left of what was kept");
    }
}

#[test]
fn a_long_micro_batch_has_the_same_bits_in_any_company() {
    let (folder, config) = (fixture("tiny-mixtral"), open(&fixture("tiny-mixtral")).1);
    let long = |seed: u32| {
        let ids: Vec<u32> = (0..1500).map(|row| (row * 7 + seed) % 96).collect();
        let targets = ids[1..].iter().map(|&id| Some(id)).chain([None]).collect();
        MicroBatch { packed: Packed::rows(&[ids]), targets, seed: u64::from(seed) }
    };
    let batches: Vec<MicroBatch> = batches(&config).into_iter().take(1).chain([long(1), long(2), long(3)]).collect();
    let decoder = cpu::<f32>(&folder, Isa::best(), false);
    let together = step(&decoder, &config, &[&batches]);
    let alone: Vec<&[MicroBatch]> = batches.chunks(1).collect();
    assert_eq!(together, step(&decoder, &config, &alone));
    let kept = LossOptions { recompute: false, ..OPTIONS };
    assert_eq!(together, step_with(&kept, &decoder, &config, &[&batches]), "in several portions");
}

#[test]
fn a_streamed_step_has_the_bits_of_a_resident_one_and_so_has_one_with_spilled_inputs() {
    let (checkpoint, config) = open(&fixture("nf4-checkpoint/double"));
    let batches = batches(&config);
    let mut resident = cpu::<bf16>(&fixture("nf4-checkpoint/double"), Isa::best(), true);
    let expected = step(&resident, &config, &[&batches]);
    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: true, memory: u64::MAX };
    let mut streamed = CpuDecoder::<bf16>::load_to_train(checkpoint, &config, &options).unwrap();
    let predicted = streamed.streamed_bytes().unwrap();
    streamed.arrange(true, None).unwrap();
    assert!(streamed.is_streamed());
    assert_eq!(streamed.held_bytes(), predicted);
    streamed.adapt(&adapter(&config)).unwrap();
    assert_eq!(expected, step(&streamed, &config, &[&batches]));

    let folder = tempfile::tempdir().unwrap();
    for decoder in [&mut resident, &mut streamed] {
        decoder.arrange(false, Some(folder.path())).unwrap();
        assert_eq!(expected, step(decoder, &config, &[&batches]), "spilled");
    }
    assert!(streamed.is_streamed(), "it stays so");
    // Inputs of more than one portion (of 4,096 tokens) are records of their own.
    let long = |seed: u32| {
        let ids: Vec<u32> = (0..3000).map(|row| (row * 7 + seed) % 64).collect();
        let targets = ids[1..].iter().map(|&id| Some(id)).chain([None]).collect();
        MicroBatch { packed: Packed::rows(&[ids]), targets, seed: u64::from(seed) }
    };
    let long = [long(1), long(2)];
    let spilled = step(&resident, &config, &[&long]);
    resident.arrange(false, None).unwrap();
    assert_eq!(spilled, step(&resident, &config, &[&long]));
    resident.arrange(false, Some(&folder.path().join("nowhere"))).unwrap();
    let mut sums = Gradients::zeros(&adapter(&config));
    let error = format!("{:#}", resident.gradients(&batches, &OPTIONS, 1.0, &mut sums).unwrap_err());
    assert!(error.contains("nowhere") && error.contains("layer-inputs"), "{error}");
}

#[test]
fn what_was_brought_into_4_bits_as_it_was_loaded_is_not_streamed() {
    let mut decoder = cpu::<bf16>(&fixture("tiny-mixtral"), Isa::best(), true);
    assert_eq!(decoder.streamed_bytes(), None);
    assert!(decoder.arrange(true, None).unwrap_err().to_string().contains("can't be streamed"));
    let mut candle = candle(&fixture("tiny-mixtral"));
    assert_eq!((candle.streamed_bytes(), candle.spilled_bytes(10)), (None, None));
    assert!(candle.arrange(false, Some(Path::new("."))).is_err());
}

#[test]
fn losses_are_those_of_a_step_without_dropout() {
    let (folder, config) = (fixture("tiny-mixtral"), open(&fixture("tiny-mixtral")).1);
    let batches = batches(&config);
    let decoder = cpu::<f32>(&folder, Isa::best(), false);
    let options = LossOptions { dropout: 0.0, neftune_alpha: None, ..OPTIONS };
    let mut sums = Gradients::zeros(&adapter(&config));
    let losses = decoder.gradients(&batches, &options, 1.0, &mut sums).unwrap();
    assert_eq!(losses, decoder.losses(&batches, &options).unwrap());
    assert_ne!(losses, step(&decoder, &config, &[&batches]).0, "dropout changes the loss");
    let nothing = MicroBatch { targets: vec![None; batches[0].packed.len()], ..batches[0].clone() };
    let error = decoder.losses(&[nothing], &options).unwrap_err().to_string();
    assert!(error.contains("no token of this batch is trained on"), "{error}");
}
