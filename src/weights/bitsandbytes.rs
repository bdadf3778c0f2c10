//! The tensors that bitsandbytes makes of one 4-bit matrix `X.weight`, put together on reading and taken apart on writing.
//!
//! `X.weight` holds the packed codes, `X.weight.absmax` the absmax (f32, or 8-bit codes under double quantisation, then
//! with `nested_absmax`, their scales), `quant_map` and `nested_quant_map` the tables of both kinds of codes, and
//! `quant_state.bitsandbytes__nf4` the rest as the bytes of a JSON text. Invariant: a matrix that was put together has the
//! tables and block sizes of [`nf4`](super::nf4), so its codes can be read where they lie. Sources: `QuantState.as_dict`
//! of bitsandbytes 0.50.2, `BitsAndBytesConfig` of transformers 4.57.6.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use memmap2::Advice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Dtype;
use super::nf4::{Absmax, BLOCK, CODES, NESTED_BLOCK, Nf4, dynamic_map};
use super::{AbsmaxPlace, Entry, Extent, Format, Mapped, floats};

const STATE: &str = ".quant_state.bitsandbytes__";
/// What follows the matrix's name in the names of its companions, besides the state.
const COMPANIONS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
/// bitsandbytes' own measure of equal tables (`QuantState.__eq__`): the dynamic map's last bit depends on torch's version.
const TABLES_WITHIN: f32 = 1e-6;
/// Bytes kept for the state's text, which ends in a number of unknown length.
const STATE_BYTES: usize = 256;

/// The text of `quant_state`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    /// What the matrix was rounded from, as torch spells it.
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

/// Replaces the tensors of each 4-bit matrix by one entry. What bitsandbytes stores otherwise is refused by name.
pub(super) fn put_together(entries: &mut BTreeMap<String, Entry>, files: &[Mapped]) -> Result<()> {
    let file = |name: &str, entries: &BTreeMap<String, Entry>| files[entries[name].file].path.display().to_string();
    if let Some(name) = entries.keys().find(|name| name.ends_with(".SCB")) {
        let place = file(name, entries);
        bail!("{place}: tensor `{name}` belongs to an LLM.int8 matrix; nf4 opens, and weights that are not quantised");
    }
    let states: Vec<String> = entries.keys().filter(|name| name.contains(STATE)).cloned().collect();
    if states.is_empty() {
        return Ok(());
    }
    advise(files, Advice::Random);
    for state in states {
        let name = state.split(STATE).next().unwrap_or_default().to_owned();
        let place = || format!("{}: the matrix `{name}`", file(&state, entries));
        let entry = Parts { entries, files, name: &name }.entry(&state).with_context(place)?;
        entries.remove(&state);
        for companion in COMPANIONS {
            entries.remove(&format!("{name}{companion}"));
        }
        entries.insert(name, entry);
    }
    advise(files, Advice::Normal);
    Ok(())
}

/// States and tables are small and lie far apart: without advice each would bring the kernel's read-ahead with it, which
/// is seconds for a large model that is not in the page cache.
fn advise(files: &[Mapped], advice: Advice) {
    for file in files {
        let _ = file.map.advise(advice); // advice that is not taken costs time and nothing else
    }
}

/// The tensors of one matrix.
struct Parts<'a> {
    entries: &'a BTreeMap<String, Entry>,
    files: &'a [Mapped],
    name: &'a str,
}

impl<'a> Parts<'a> {
    fn entry(&self, state: &str) -> Result<Entry> {
        let kind = state.rsplit("__").next().unwrap_or_default();
        ensure!(kind == "nf4", "stored as bitsandbytes' {kind}; of its 4-bit formats nf4 opens");
        let text = self.bytes(self.entries[state].extent());
        let state: State = serde_json::from_slice(text).map_err(|error| anyhow!("`{state}`: {error}"))?;
        ensure!(state.quant_type == "nf4", "its state says {}, though it is called nf4", state.quant_type);
        ensure!(state.blocksize == BLOCK, "blocks of {} values; blocks of {BLOCK} open", state.blocksize);
        let count = state.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let count = count.filter(|&count| count > 0).with_context(|| format!("shape {:?}", state.shape))?;
        self.table(".quant_map", &CODES)?;

        let codes = &self.entries.get(self.name).context("the tensor itself is missing, its state is there")?;
        let packed = self.sized("", count.div_ceil(2))?;
        let absmax = self.absmax(&state, count.div_ceil(BLOCK))?;
        let (format, shape) = (Ok(Format::Nf4), state.shape);
        Ok(Entry { format, shape, start: packed.start, end: packed.end, absmax: Some(absmax), ..(*codes).clone() })
    }

    fn absmax(&self, state: &State, blocks: usize) -> Result<AbsmaxPlace> {
        let Some(nested) = state.nested_blocksize else {
            return Ok(AbsmaxPlace::Plain(self.sized(".absmax", 4 * blocks)?));
        };
        ensure!(nested == NESTED_BLOCK, "absmax in blocks of {nested}; blocks of {NESTED_BLOCK} open");
        let dtype = state.nested_dtype.as_deref().unwrap_or("float32");
        ensure!(dtype == "float32", "scales of absmax in {dtype}; float32 opens");
        let offset = state.nested_offset.context("`nested_offset` is missing from its state")?;
        self.table(".nested_quant_map", dynamic_map())?;
        let scales = self.sized(".nested_absmax", 4 * blocks.div_ceil(NESTED_BLOCK))?;
        Ok(AbsmaxPlace::Double { codes: self.sized(".absmax", blocks)?, scales, offset: offset as f32 })
    }

    /// Where a companion of that many bytes lies.
    fn sized(&self, companion: &str, bytes: usize) -> Result<Extent> {
        let name = format!("{}{companion}", self.name);
        let entry = self.entries.get(&name).with_context(|| format!("`{name}` is missing; fetch the model again"))?;
        let found = entry.end - entry.start;
        ensure!(found == bytes, "`{name}` has {found} bytes, but the matrix needs {bytes}; fetch the model again");
        Ok(entry.extent())
    }

    fn table(&self, companion: &str, expected: &[f32]) -> Result<()> {
        let found = floats(self.bytes(self.sized(companion, 4 * expected.len())?));
        let is_equal = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() <= TABLES_WITHIN);
        ensure!(is_equal, "`{}{companion}` is not the standard table, and no other is known here", self.name);
        Ok(())
    }

    fn bytes(&self, extent: Extent) -> &'a [u8] {
        &self.files[extent.file].map[extent.start..extent.end]
    }
}

/// The dtype in which the model of that `config.json` computes (transformers' default: f32).
pub fn compute_dtype(config: &Value) -> Result<Dtype> {
    let stated = config.get("quantization_config").and_then(|quantization| quantization.get("bnb_4bit_compute_dtype"));
    let Some(name) = stated.filter(|name| !name.is_null()) else { return Ok(Dtype::F32) };
    let known = [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| name == dtype.torch_name());
    known.with_context(|| format!("`bnb_4bit_compute_dtype` is {name}; float32, float16 and bfloat16 are known"))
}

/// `quantization_config` of a model that was written here.
pub fn quantization_config(compute: Dtype) -> Value {
    json!({
        "bnb_4bit_compute_dtype": compute.torch_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

/// A tensor of a matrix that will be written.
pub(super) struct Part {
    pub name: String,
    /// As safetensors spells it.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// The tensors of the matrix `name`, double quantised, in the order of [`contents`]. Where the first begins at a multiple
/// of four bytes, all numbers do (torch reads no others): the state is stretched so that those before them end at one.
pub(super) fn parts(name: &str, shape: &[usize]) -> Vec<Part> {
    let count: usize = shape.iter().product();
    let (packed, blocks) = (count.div_ceil(2), count.div_ceil(BLOCK));
    let state = (packed + blocks + STATE_BYTES).next_multiple_of(4) - packed - blocks;
    let part = |companion: &str, dtype, shape: Vec<usize>| {
        let width = if dtype == "F32" { 4 } else { 1 };
        Part { name: format!("{name}{companion}"), dtype, bytes: width * shape.iter().product::<usize>(), shape }
    };
    vec![
        part("", "U8", vec![packed, 1]),
        part(".absmax", "U8", vec![blocks]),
        part(".quant_state.bitsandbytes__nf4", "U8", vec![state]),
        part(".quant_map", "F32", vec![CODES.len()]),
        part(".nested_quant_map", "F32", vec![dynamic_map().len()]),
        part(".nested_absmax", "F32", vec![blocks.div_ceil(NESTED_BLOCK)]),
    ]
}

/// What `parts` hold. `dtype`: what bitsandbytes is to dequantise to.
pub(super) fn contents(nf4: &Nf4, parts: &[Part], shape: &[usize], dtype: Dtype) -> Result<Vec<Vec<u8>>> {
    let Absmax::Double { codes, scales, offset } = &nf4.absmax else {
        bail!("only matrices with double quantisation are written");
    };
    let state = State {
        quant_type: "nf4".to_owned(),
        blocksize: BLOCK,
        dtype: dtype.torch_name().to_owned(),
        shape: shape.to_vec(),
        nested_blocksize: Some(NESTED_BLOCK),
        nested_dtype: Some("float32".to_owned()),
        nested_offset: Some(f64::from(*offset)),
    };
    let mut text = serde_json::to_vec(&state)?;
    ensure!(text.len() <= parts[2].bytes, "shape {shape:?} is too long to be written down");
    text.resize(parts[2].bytes, b' '); // JSON ends in any number of spaces
    let numbers = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(vec![nf4.packed.to_vec(), codes.to_vec(), text, numbers(&CODES), numbers(dynamic_map()), numbers(scales)])
}
