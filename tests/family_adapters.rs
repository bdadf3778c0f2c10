//! Adapters on the families' tiny checkpoints: the loss in both homes, and the gradients, as transformers and peft have
//! them (tests/fixtures/families/make_adapters.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use fireval::kernel::Isa;
use fireval::model::adapter::{Adapter, peft};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, LossOptions, MicroBatch, PairGradient, Trainable};
use fireval::transform::merge::merge;
use fireval::transform::quantize::quantize;
use fireval::weights::{Checkpoint, Dtype};
use safetensors::SafeTensors;

const FAMILIES: [&str; 5] = ["qwen2", "qwen3-moe", "gemma2", "gemma3", "phi3"];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family)
}

/// A sequence, its loss, and each gradient by the name peft gives the tensor.
struct Reference {
    ids: Vec<u32>,
    loss: f64,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn reference(family: &str) -> Reference {
    let bytes = std::fs::read(folder(family).join("adapter/reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<f32>>();
    let gradients = file.names().into_iter().filter(|name| name.contains("lora_"));
    Reference {
        ids: words("ids").into_iter().map(u32::from_le_bytes).collect(),
        loss: floats("loss")[0].into(),
        gradients: gradients.map(|name| (name.to_owned(), floats(name))).collect(),
    }
}

fn open(family: &str) -> (Checkpoint, ModelConfig, Adapter) {
    let checkpoint = Checkpoint::open(&folder(family)).unwrap();
    let config = ModelConfig::of(&checkpoint).unwrap();
    let adapter = peft::read(&folder(family).join("adapter"), &config).unwrap();
    (checkpoint, config, adapter)
}

fn candle(checkpoint: &Checkpoint, config: &ModelConfig) -> CandleDecoder {
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::F32, nf4: false };
    CandleDecoder::load(checkpoint, config, &options).unwrap()
}

fn cpu(checkpoint: Checkpoint, config: &ModelConfig) -> CpuDecoder<f32> {
    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: false, nf4: false, memory: u64::MAX };
    CpuDecoder::load(checkpoint, config, &options).unwrap()
}

/// Mean cross-entropy of each token's successor.
fn loss(decoder: &impl Decoder, ids: &[u32]) -> f64 {
    let packed = Packed::rows(&[ids]);
    let hidden = decoder.walk(&packed, Pasts::None).unwrap();
    let wanted: Vec<Wanted> = ids[1..].iter().enumerate().map(|(row, &token)| Wanted { row, token }).collect();
    let scores = decoder.score(&hidden, &wanted).unwrap();
    -scores.iter().map(|score| score.log_probability).sum::<f64>() / wanted.len() as f64
}

#[test]
fn both_homes_have_the_adapted_loss() {
    for family in FAMILIES {
        let (checkpoint, config, adapter) = open(family);
        let Reference { ids, loss: expected, .. } = reference(family);
        let near = |found: f64, home: &str| {
            assert!((found - expected).abs() < 1e-4, "{family} in {home}: {found}, reference {expected}");
        };
        let mut decoder = candle(&checkpoint, &config);
        assert!((loss(&decoder, &ids) - expected).abs() > 1e-2, "{family}: the adapter does something");
        decoder.set_adapter(&adapter).unwrap();
        near(loss(&decoder, &ids), "candle");
        let mut decoder = cpu(checkpoint, &config);
        decoder.set_adapter(&adapter).unwrap();
        near(loss(&decoder, &ids), "the CPU home");
    }
}

/// Gradients by the names of peft's tensors; of Phi-3's fused linears put together: A is shared, B's rows follow.
fn by_name(adapter: &Adapter, gradients: &[PairGradient], fused: bool) -> BTreeMap<String, Vec<f32>> {
    let mut named: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (pair, gradient) in adapter.pairs.iter().zip(gradients) {
        let mut module = pair.module.clone();
        if fused {
            for part in [".q_proj", ".k_proj", ".v_proj"] {
                module = module.replace(part, ".qkv_proj");
            }
            module = module.replace(".gate_proj", ".gate_up_proj").replace(".up_proj", ".gate_up_proj");
        }
        let name = |half: &str| format!("base_model.model.{module}.lora_{half}.weight");
        let a = named.entry(name("A")).or_insert_with(|| vec![0.0; gradient.a.values.len()]);
        a.iter_mut().zip(&gradient.a.values).for_each(|(sum, value)| *sum += value);
        named.entry(name("B")).or_default().extend(&gradient.b.values);
    }
    named
}

#[test]
fn gradients_agree() {
    for family in FAMILIES {
        let (checkpoint, config, adapter) = open(family);
        let Reference { ids, loss, gradients: expected } = reference(family);
        let targets: Vec<Option<u32>> = ids[1..].iter().map(|&id| Some(id)).chain([None]).collect();
        let batches = [MicroBatch { packed: Packed::rows(&[&ids]), targets, seed: 1 }];
        let homes: [(Box<dyn Trainable>, bool); 3] = [
            (Box::new(candle(&checkpoint, &config)), true),
            (Box::new(candle(&checkpoint, &config)), false),
            (Box::new(cpu(checkpoint, &config)), true),
        ];
        for (mut decoder, recompute) in homes {
            decoder.adapt(&adapter).unwrap();
            let options = LossOptions { router_aux_loss_coef: 0.0, recompute, ..LossOptions::default() };
            let mut gradients = Gradients::zeros(&adapter);
            let found = decoder.gradients(&batches, &options, 1.0, &mut gradients).unwrap()[0];
            assert!((found.cross_entropy - loss).abs() < 1e-4, "{family}: {found:?}, reference {loss}");
            let found = by_name(&adapter, &gradients.pairs, family == "phi3");
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{family}");
            for (name, expected) in &expected {
                let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let off = found[name].iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(off <= 1e-3 * scale, "{family} {name}: off by {off} of {scale}");
            }
        }
    }
}

/// What would have to be written in one tensor again is refused, not written by halves.
#[test]
fn phi3_is_not_written() {
    let out = tempfile::tempdir().unwrap();
    let error = merge(&folder("phi3"), &folder("phi3").join("adapter"), &out.path().join("merged"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("phi3: Phi-3 keeps several linears in one tensor"), "{error}");
    let error = quantize(&folder("phi3"), &out.path().join("nf4"), None).unwrap_err().to_string();
    assert!(error.contains("phi3: Phi-3 keeps several linears in one tensor"), "{error}");
    assert!(std::fs::read_dir(out.path()).unwrap().next().is_none(), "nothing is left behind");
}
