//! NF4 checkpoints: what bitsandbytes and transformers wrote opens here with their numbers, and what is written here is
//! what they write (tests/fixtures/nf4-checkpoint, made by its make.py).

mod fixture;
mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use fireval::digest::{sha256_file, sha256_hex};
use fireval::model::adapter::{Adapter, LoraPair, Matrix};
use fireval::model::candle::{CandleDecoder, LoadOptions};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::names;
use fireval::model::packed::Packed;
use fireval::model_id::ModelId;
use fireval::transform::merge::merge;
use fireval::transform::quantize::quantize;
use fireval::weights::nf4::{Absmax, Nf4};
use fireval::weights::writer::{Planned, SHARD_BYTES, Writer};
use fireval::weights::{Checkpoint, Dtype, Format};
use fixture::open;
use half::bf16;
use serde_json::{Value, json};
use tiny::{message, write_json};

fn fixture(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nf4-checkpoint").join(kind)
}

fn encoded(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::F16 => panic!("no fixture is in f16"),
    }
}

#[test]
fn theirs_opens_with_their_numbers() {
    for (kind, dtype, matrices) in [("double", Dtype::BF16, 11), ("plain", Dtype::F32, 7)] {
        let (checkpoint, _) = open(&fixture(kind));
        let text = std::fs::read_to_string(fixture(kind).join("expected.json")).unwrap();
        let expected: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
        assert_eq!(expected.len(), matrices);
        for name in checkpoint.names() {
            let stored = checkpoint.stored(name).unwrap();
            let Some(digest) = expected.get(name) else {
                assert_ne!(stored.format, Format::Nf4, "{name}");
                continue;
            };
            assert_eq!(stored.format, Format::Nf4, "{name}");
            assert_eq!(&sha256_hex(&encoded(&stored.to_f32().unwrap(), dtype)), digest, "{kind} {name}");
        }
    }
}

/// Value i of a tensor, as make.py says.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let hashed = |index: u32| {
        let mut x = (index + (seed << 20)).wrapping_mul(2_654_435_761);
        x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
        x = (x ^ (x >> 13)).wrapping_mul(3_266_489_917);
        f64::from(x ^ (x >> 16)) / f64::from(2f32.powi(32)) - 0.5
    };
    let cubed = |uniform: f64| (uniform * uniform * uniform) as f32;
    (0..count as u32).map(|index| bf16::from_f32(cubed(hashed(index))).to_f32()).collect()
}

/// The bf16 model that `double` was quantised from, with a tokenizer.
fn original() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, config) = open(&fixture("double"));
    let seeds: BTreeMap<&str, u32> = checkpoint.names().into_iter().zip(0..).collect();
    let tensors = names::tensors(&config);
    let plan = tensors.iter().map(|(name, shape)| Planned {
        name: name.clone(),
        dtype: Dtype::BF16,
        shape: shape.clone(),
        nf4: false,
    });
    let mut writer = Writer::create(folder.path(), plan.collect(), SHARD_BYTES).unwrap();
    for (name, shape) in &tensors {
        writer.write(name, &numbers(seeds[name.as_str()], shape.iter().product())).unwrap();
    }
    writer.finish().unwrap();
    let mut json = checkpoint.config_json().clone();
    json.as_object_mut().unwrap().remove("quantization_config");
    write_json(&folder.path().join("config.json"), &json);
    write_json(&folder.path().join("tokenizer.json"), &tiny::tokenizer_json());
    write_json(&folder.path().join("tokenizer_config.json"), &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    folder
}

#[test]
fn ours_is_theirs_but_for_their_coarse_look_up() {
    let (original, out) = (original(), tempfile::tempdir().unwrap());
    let summary = quantize(original.path(), out.path(), None).unwrap();
    assert_eq!((summary.quantized, summary.tensors), (11, 16));
    let ((ours, _), (theirs, _)) = (open(out.path()), open(&fixture("double")));
    assert_eq!(ours.names(), theirs.names());
    let (mut apart, mut blocks) = (0, 0);
    for name in ours.names() {
        let (ours, theirs) = (ours.stored(name).unwrap(), theirs.stored(name).unwrap());
        assert_eq!((ours.format, &ours.shape, &ours.bytes), (theirs.format, &theirs.shape, &theirs.bytes), "{name}");
        let (Some(ours), Some(theirs)) = (ours.absmax, theirs.absmax) else { continue };
        let (
            Absmax::Double { codes, scales, offset },
            Absmax::Double { codes: their_codes, scales: their_scales, offset: their_offset },
        ) = (ours, theirs)
        else {
            panic!("both are double")
        };
        // torch's mean may be one step of f32 away; a code may be the second nearest (see weights::nf4).
        let step = their_offset.next_up() - their_offset;
        assert!((offset - their_offset).abs() <= step, "{name}: {offset} {their_offset}");
        assert!(scales.iter().zip(their_scales.iter()).all(|(a, b)| (a - b).abs() <= step), "{name}");
        assert!(codes.iter().zip(their_codes.iter()).all(|(a, b)| a.abs_diff(*b) <= 1), "{name}");
        apart += codes.iter().zip(their_codes.iter()).filter(|(a, b)| a != b).count();
        blocks += codes.len();
    }
    assert!(apart * 20 < blocks, "{apart} of {blocks} codes differ");
    let (ours, theirs) = (&ours.config_json()["quantization_config"], &theirs.config_json()["quantization_config"]);
    for (key, value) in ours.as_object().unwrap() {
        assert_eq!(value, &theirs[key], "{key}");
    }
}

fn scores(folder: &Path, nf4: bool) -> Vec<f64> {
    let (checkpoint, config) = open(folder);
    let options = LoadOptions { device: Device::Cpu, dtype: Dtype::BF16, nf4 };
    let decoder = CandleDecoder::load(&checkpoint, &config, &options).unwrap();
    let hidden = decoder.walk(&Packed::rows(&[[3, 14, 15, 9, 26]]), Pasts::None).unwrap();
    let wanted: Vec<Wanted> = (0..5).map(|row| Wanted { row, token: 7 * row as u32 }).collect();
    decoder.score(&hidden, &wanted).unwrap().iter().map(|score| score.log_probability).collect()
}

#[test]
fn a_quantised_folder_is_the_model_quantised_on_loading() {
    let (original, out) = (original(), tempfile::tempdir().unwrap());
    quantize(original.path(), out.path(), None).unwrap();
    let expected = scores(original.path(), true);
    assert_ne!(expected, scores(original.path(), false));
    assert_eq!(scores(out.path(), false), expected);
    assert_eq!(scores(out.path(), true), expected, "nothing is quantised a second time");
}

#[test]
fn its_identity_says_nf4_and_the_dtype_it_computes_in() {
    for (kind, dtype) in [("double", "bf16"), ("plain", "f32")] {
        let id =
            ModelId::of_checkpoint(&fixture(kind), None, None, None, |_| "test".to_owned(), &mut sha256_file).unwrap();
        assert_eq!((id.dtype.as_str(), id.quantization.as_deref()), (dtype, Some("nf4")));
    }
}

#[test]
fn what_is_in_nf4_is_not_quantised_again() {
    let out = tempfile::tempdir().unwrap();
    let error = message(quantize(&fixture("double"), out.path(), None));
    assert!(error.contains("in NF4 already"), "{error}");
}

#[test]
fn an_adapter_merges_into_a_model_that_is_not_quantised_any_more() {
    let (original, folders) = (original(), tempfile::tempdir().unwrap());
    let (quantized, merged) = (folders.path().join("quantized"), folders.path().join("merged"));
    quantize(original.path(), &quantized, None).unwrap();
    let row = |value, columns| Matrix { rows: 1, columns, values: vec![value; columns] };
    let b = Matrix { rows: 64, columns: 1, ..row(0.5, 64) };
    let module = "model.layers.0.self_attn.q_proj".to_owned();
    let adapter = Adapter {
        pairs: vec![LoraPair { module: module.clone(), scale: 2.0, a: row(0.25, 64), b }],
        whole: Vec::new(),
    };
    let stored = folders.path().join("adapter");
    tiny::write_adapter(&stored, &adapter);
    merge(&quantized, &stored, &merged, None).unwrap();
    let ((before, _), (after, _)) = (open(&quantized), open(&merged));
    assert!(after.config_json().get("quantization_config").is_none());
    for name in before.names() {
        let (before, after) = (before.stored(name).unwrap(), after.stored(name).unwrap());
        assert_eq!(after.format, if before.format == Format::Nf4 { Format::F32 } else { before.format }, "{name}");
        let update = if name == names::weight(&module) { 2.0 * 0.5 * 0.25 } else { 0.0 };
        let expected: Vec<f32> = before.to_f32().unwrap().iter().map(|value| value + update).collect();
        assert_eq!(after.to_f32().unwrap(), expected, "{name}");
    }
}

#[test]
fn a_large_model_is_written_in_shards_that_open() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = [("a", [64, 64]), ("b", [3, 7]), ("c", [320, 64])];
    let plan = shapes.map(|(name, shape)| Planned {
        name: name.to_owned(),
        dtype: Dtype::F16,
        shape: shape.to_vec(),
        nf4: true,
    });
    let mut writer = Writer::create(folder.path(), plan.to_vec(), 5000).unwrap();
    let values = |count: usize| numbers(3, count);
    writer.write("a", &values(64 * 64)).unwrap();
    writer.write_nf4("b", &Nf4::quantize(&values(21), true).unwrap()).unwrap();
    let plain = Nf4::quantize(&values(320 * 64), false).unwrap();
    assert!(message(writer.write_nf4("c", &plain)).contains("double quantisation"));
    writer.write("c", &values(320 * 64)).unwrap();
    assert_eq!(writer.finish().unwrap().len(), 3, "two shards and the index");
    write_json(&folder.path().join("config.json"), &json!({}));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (name, shape) in shapes {
        let stored = checkpoint.tensor(name, &shape).unwrap();
        let expected = Nf4::quantize(&values(shape[0] * shape[1]), true).unwrap();
        assert_eq!(stored.nf4().unwrap(), expected, "{name}");
    }
}

/// A safetensors file of these tensors: name, dtype, shape, bytes.
fn write_safetensors(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
    }
    let text = Value::Object(header).to_string();
    std::fs::write(path, [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat()).unwrap();
}

/// A folder with the tensors of one matrix (`m`, 2 x 64, plain absmax), changed by `edit`.
fn lying(edit: impl FnOnce(&mut Vec<(String, &'static str, Vec<usize>, Vec<u8>)>, &mut Value)) -> anyhow::Error {
    let folder = tempfile::tempdir().unwrap();
    let map: Vec<u8> = fireval::weights::nf4::CODES.iter().flat_map(|code| code.to_le_bytes()).collect();
    let mut state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 64]});
    let mut tensors = vec![
        ("m".to_owned(), "U8", vec![64, 1], vec![0; 64]),
        ("m.absmax".to_owned(), "F32", vec![2], vec![0; 8]),
        ("m.quant_map".to_owned(), "F32", vec![16], map),
    ];
    edit(&mut tensors, &mut state);
    if !tensors.iter().any(|(name, ..)| name.contains("quant_state")) {
        let text = state.to_string().into_bytes();
        tensors.push(("m.quant_state.bitsandbytes__nf4".to_owned(), "U8", vec![text.len()], text));
    }
    write_safetensors(&folder.path().join("model.safetensors"), &tensors);
    write_json(&folder.path().join("config.json"), &json!({}));
    match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => panic!("opened: {:?}", checkpoint.names()),
        Err(error) => error,
    }
}

#[test]
fn what_bitsandbytes_stores_otherwise_is_refused_by_name() {
    let refused = |words: &[&str], error: anyhow::Error| {
        let error = format!("{error:#}");
        assert!(error.contains("model.safetensors: "), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    let fp4 = ("m.quant_state.bitsandbytes__fp4".to_owned(), "U8", vec![2], b"{}".to_vec());
    refused(&["`m`", "fp4"], lying(|tensors, _| tensors.push(fp4)));
    refused(&["LLM.int8"], lying(|tensors, _| tensors.push(("m.SCB".to_owned(), "F32", vec![1], vec![0; 4]))));
    refused(&["blocks of 128 values"], lying(|_, state| state["blocksize"] = json!(128)));
    refused(&["says fp4"], lying(|_, state| state["quant_type"] = json!("fp4")));
    refused(&["unknown field `more`"], lying(|_, state| state["more"] = json!(1)));
    refused(&["needs 96"], lying(|_, state| state["shape"] = json!([3, 64])));
    refused(&["shape [0]"], lying(|_, state| state["shape"] = json!([0])));
    refused(&["shape [18446744073709551615, 64]"], lying(|_, state| state["shape"] = json!([u64::MAX, 64])));
    refused(&["`m.absmax` is missing"], lying(|tensors, _| drop(tensors.remove(1))));
    refused(&["the tensor itself is missing"], lying(|tensors, _| drop(tensors.remove(0))));
    refused(&["`m.quant_map` is not the standard table"], lying(|tensors, _| tensors[2].3[63] = 0x40));
    refused(&["absmax in blocks of 128"], lying(|_, state| state["nested_blocksize"] = json!(128)));
    refused(&["`nested_offset` is missing"], lying(|_, state| state["nested_blocksize"] = json!(256)));
    let nested = |state: &mut Value| {
        state["nested_blocksize"] = json!(256);
        state["nested_offset"] = json!(0.5);
    };
    refused(&["`m.nested_quant_map` is missing"], lying(|_, state| nested(state)));
    let bf16_scales = |_: &mut Vec<_>, state: &mut Value| {
        nested(state);
        state["nested_dtype"] = json!("bfloat16");
    };
    refused(&["scales of absmax in bfloat16"], lying(bf16_scales));
}
