//! The GGUF container: metadata and the places of tensors, read from a mapped file.
//!
//! Source: ggml's `docs/gguf.md`. A reader of our own, because a file from anywhere must never bring the program down:
//! every length is checked against what is left of the file before anything is allocated, and every tensor's range
//! against the file's end. (candle's reader divides by an alignment of 0.)

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::quantized::GgmlDType;

use super::{Format, Mapped};

const DEFAULT_ALIGNMENT: u64 = 32;
/// More than any known file has.
const MAX_NESTING: usize = 4;
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value; integers of all widths are one.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(i128),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    Array(Vec<Value>),
}

/// Where a tensor lies in the file; shape outermost first (the file has it innermost first).
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub format: Format,
    pub shape: Vec<usize>,
    pub start: usize,
    pub end: usize,
}

/// An open GGUF file.
pub struct Gguf {
    pub(super) mapped: Mapped,
    metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Place>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Gguf> {
        let mapped = Mapped::open(path)?;
        let (metadata, tensors) = parse(&mapped.map).with_context(|| path.display().to_string())?;
        Ok(Gguf { mapped, metadata, tensors })
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.mapped.path
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a count", |value| {
            if let Value::Integer(number) = value { usize::try_from(*number).ok() } else { None }
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    /// A number with the digits it was written with: an f32 of 1e-5 is 1e-5 here, not 9.99999975e-6.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", number)
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |value| {
            let Value::Array(items) = value else { return None };
            items.iter().map(number).collect()
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of texts", |value| {
            let Value::Array(items) = value else { return None };
            items.iter().map(|item| if let Value::Text(text) = item { Some(text.as_str()) } else { None }).collect()
        })
    }

    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.typed(key, "a list of true and false", |value| {
            let Value::Array(items) = value else { return None };
            items.iter().map(|item| if let Value::Bool(flag) = item { Some(*flag) } else { None }).collect()
        })
    }

    pub fn integers(&self, key: &str) -> Result<Option<Vec<i128>>> {
        self.typed(key, "a list of whole numbers", |value| {
            let Value::Array(items) = value else { return None };
            items.iter().map(|item| if let Value::Integer(number) = item { Some(*number) } else { None }).collect()
        })
    }

    fn typed<'a, T>(&'a self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let place = self.mapped.path.display();
        read(value).map(Some).ok_or_else(|| anyhow!("{place}: metadata key `{key}` is not {kind}"))
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::F32(number) => format!("{number:e}").parse().ok().filter(|number: &f64| number.is_finite()),
        Value::F64(number) => Some(*number).filter(|number| number.is_finite()),
        Value::Integer(number) => Some(*number as f64),
        Value::Bool(_) | Value::Text(_) | Value::Array(_) => None,
    }
}

/// What is left of the file.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.position;
        let count = usize::try_from(count).ok().filter(|&count| count <= left).ok_or_else(|| {
            anyhow!("the file ends inside {what} ({left} bytes are left, {count} needed); fetch it again")
        })?;
        self.position += count;
        Ok(&self.bytes[self.position - count..self.position])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take gives as many bytes as were asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| anyhow!("{what} is not UTF-8"))
    }

    /// A count of things that take at least `least` bytes each.
    fn count_of(&mut self, least: u64, what: &str) -> Result<u64> {
        let count = self.u64(what)?;
        let left = (self.bytes.len() - self.position) as u64;
        ensure!(
            count.checked_mul(least).is_some_and(|bytes| bytes <= left),
            "{what} would be {count} items, more than the rest of the file ({left} bytes) can hold"
        );
        Ok(count)
    }

    fn value(&mut self, kind: u32, key: &str, nesting: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.array(key)?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            8 => Value::Text(self.text(key)?),
            9 => self.list(key, nesting)?,
            10 => Value::Integer(u64::from_le_bytes(self.array(key)?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?).into()),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => bail!("{key} has the unknown value type {other}"),
        })
    }

    fn list(&mut self, key: &str, nesting: usize) -> Result<Value> {
        ensure!(nesting < MAX_NESTING, "{key} is a list nested deeper than {MAX_NESTING}");
        let kind = self.u32(key)?;
        let least = match kind {
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => 1,
        };
        let count = self.count_of(least, key)?;
        (0..count).map(|_| self.value(kind, key, nesting + 1)).collect::<Result<_>>().map(Value::Array)
    }
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, Place>);

fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut reader = Reader { bytes, position: 0 };
    ensure!(&reader.array::<4>("the magic number")? == b"GGUF", "not a GGUF file (it does not begin with `GGUF`)");
    let version = reader.u32("the version")?;
    ensure!(version == 2 || version == 3, "GGUF version {version} does not open; convert the model again (version 3)");
    let tensor_count = reader.count_of(24, "the list of tensors")?;
    let key_count = reader.count_of(13, "the metadata")?;
    let metadata = read_metadata(&mut reader, key_count)?;
    let claims = (0..tensor_count).map(|_| read_claim(&mut reader)).collect::<Result<Vec<_>>>()?;
    let data_start = (reader.position as u64).next_multiple_of(alignment(&metadata)?);
    let mut tensors = BTreeMap::new();
    for claim in claims {
        let place = claim.place(data_start, bytes.len()).with_context(|| format!("tensor `{}`", claim.name))?;
        if tensors.insert(claim.name.clone(), place).is_some() {
            bail!("tensor `{}` is listed twice", claim.name);
        }
    }
    Ok((metadata, tensors))
}

fn read_metadata(reader: &mut Reader, count: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = reader.text(&format!("metadata key {index}"))?;
        let what = format!("metadata key `{key}`");
        let kind = reader.u32(&what)?;
        let value = reader.value(kind, &what, 0)?;
        if metadata.insert(key, value).is_some() {
            bail!("{what} is stated twice");
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Integer(number)) if (1..=1 << 20).contains(number) && (*number as u64).is_power_of_two() => {
            Ok(*number as u64)
        }
        Some(other) => bail!("metadata key `general.alignment` is {other:?}, not a small power of two"),
    }
}

/// What the header says of a tensor, not believed yet.
struct Claim {
    name: String,
    dimensions: Vec<u64>, // innermost first
    kind: u32,
    offset: u64,
}

fn read_claim(reader: &mut Reader) -> Result<Claim> {
    let name = reader.text("a tensor's name")?;
    let what = format!("the description of tensor `{name}`");
    let count = reader.u32(&what)?;
    ensure!((1..=MAX_DIMENSIONS).contains(&count), "tensor `{name}` has {count} dimensions");
    let dimensions = (0..count).map(|_| reader.u64(&what)).collect::<Result<_>>()?;
    Ok(Claim { dimensions, kind: reader.u32(&what)?, offset: reader.u64(&what)?, name })
}

impl Claim {
    fn place(&self, data_start: u64, file_bytes: usize) -> Result<Place> {
        let format = format_of(self.kind)?;
        let shape: Vec<usize> =
            self.dimensions.iter().rev().map(|&size| usize::try_from(size)).collect::<Result<_, _>>()?;
        ensure!(shape.iter().all(|&size| size > 0), "shape {shape:?} holds no number");
        let bytes = format.bytes(&shape);
        let bytes = bytes.ok_or_else(|| anyhow!("shape {shape:?} is no whole number of {format:?} blocks"))?;
        let start = data_start.checked_add(self.offset);
        let end = start.and_then(|start| start.checked_add(bytes as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => {
                Ok(Place { format, shape, start: start as usize, end: end as usize })
            }
            _ => bail!("its {bytes} bytes lie beyond the end of the file ({file_bytes} bytes); fetch the file again"),
        }
    }
}

/// ggml's numbers (`enum ggml_type`); the ones candle decodes.
fn format_of(kind: u32) -> Result<Format> {
    Ok(match kind {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Ggml(GgmlDType::Q4_0),
        3 => Format::Ggml(GgmlDType::Q4_1),
        6 => Format::Ggml(GgmlDType::Q5_0),
        7 => Format::Ggml(GgmlDType::Q5_1),
        8 => Format::Ggml(GgmlDType::Q8_0),
        10 => Format::Ggml(GgmlDType::Q2K),
        11 => Format::Ggml(GgmlDType::Q3K),
        12 => Format::Ggml(GgmlDType::Q4K),
        13 => Format::Ggml(GgmlDType::Q5K),
        14 => Format::Ggml(GgmlDType::Q6K),
        30 => Format::BF16,
        other => bail!(
            "ggml type {other} does not open; take a file quantised as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, or \
             not quantised (F32, F16, BF16)"
        ),
    })
}
