//! A checkpoint on disk: a tensor by the name the hub's checkpoint spells, whatever file it lies in.
//!
//! Two kinds of files open: Hugging Face folders ([`folder`]) and GGUF files ([`gguf`] reads the container,
//! [`llama_cpp`] gives its tensors the hub's names). Both become one list of byte ranges in mapped files, so nothing is
//! read before it is asked for; [`stream`] reads the same ranges where a model does not fit in memory. Invariant: every
//! range of an open checkpoint lies inside its file and is as long as its shape and format say; what a file claims is
//! checked once, in `open`.

pub mod bitsandbytes;
mod decode;
mod dtype;
mod folder;
mod fused;
pub mod gguf;
mod llama_cpp;
mod multimodal;
pub mod nf4;
mod overlay;
pub mod stream;
pub mod writer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use crate::kernel::{Matrix, Numbers};

pub use dtype::Dtype;
pub use folder::{INDEX, SINGLE};
use nf4::{Absmax, Nf4};
pub use overlay::TensorFile;

/// How a stored tensor's numbers are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    BF16,
    /// 4-bit codes as bitsandbytes packs them, with an absmax for each 64 ([`nf4`]).
    Nf4,
    /// Quantised blocks of GGUF files (never candle's names for the three above).
    Ggml(GgmlDType),
}

impl Format {
    /// Numbers that are stored together; the innermost dimension is a multiple of it (but for NF4, whose codes run on
    /// across the rows of a matrix).
    pub fn block(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Nf4 => 2,
            Format::Ggml(dtype) => dtype.block_size(),
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Nf4 => 1,
            Format::Ggml(dtype) => dtype.type_size(),
        }
    }

    /// Bytes of a tensor of that shape (of NF4's, the codes alone); `None` if its rows do not fill whole blocks or it would not fit in memory.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let innermost = shape.last().copied().unwrap_or(1);
        let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        if innermost % self.block() != 0 && self != Format::Nf4 {
            return None;
        }
        count.div_ceil(self.block()).checked_mul(self.block_bytes())
    }
}

/// A tensor as it lies in the file (borrowed from the mapping), row-major, shape outermost first.
#[derive(Clone, Debug)]
pub struct Stored<'a> {
    pub format: Format,
    pub shape: Vec<usize>,
    /// Of NF4, the codes.
    pub bytes: Cow<'a, [u8]>,
    /// Of NF4 and of nothing else.
    pub absmax: Option<Absmax<'a>>,
}

impl Stored<'_> {
    /// All numbers, decoded. (f16, bf16 and f32 are exact; of NF4 it is `code * absmax` in f32.)
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.nf4() {
            Some(nf4) => Ok(nf4.dequantize()),
            None => decode::to_f32(self.format, &self.shape, &self.bytes),
        }
    }

    /// The matrix where it is stored as NF4, borrowed.
    pub fn nf4(&self) -> Option<Nf4<'_>> {
        let absmax = self.absmax.as_ref()?.borrowed();
        Some(Nf4 { count: self.shape.iter().product(), packed: Cow::Borrowed(&self.bytes), absmax })
    }
}

impl Stored<'_> {
    /// What a kernel reads of a matrix. With `rounded_to_f16` its numbers are rounded on the way.
    pub fn matrix(&self, rounded_to_f16: bool) -> Matrix<'_> {
        let (bytes, [rows, columns]) = (&*self.bytes, [self.shape[0], self.shape[1..].iter().product()]);
        let numbers = match (self.format, &self.absmax) {
            (Format::F32, _) => Numbers::F32(bytes),
            (Format::F16, _) => Numbers::F16(bytes),
            (Format::BF16, _) => Numbers::Bf16(bytes),
            (Format::Nf4, absmax) => {
                let absmax = absmax.as_ref().expect("an NF4 matrix is stored with its absmax");
                Numbers::Nf4 { packed: bytes, absmax: absmax.view() }
            }
            (Format::Ggml(dtype), _) => {
                let blocks = decode::blocks(dtype).expect("only formats of stored blocks are opened");
                Numbers::Blocks { bytes, blocks }
            }
        };
        Matrix { rows, columns, numbers, rounded_to_f16 }
    }
}

/// What a converter did to the hub's tensor; undone when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversion {
    None,
    /// llama.cpp's order of query and key rows: the two halves of each of `heads` heads interleaved.
    Interleaved {
        heads: usize,
    },
    /// One is added to each number, which is an f32: Gemma's norms.
    OneAdded,
}

/// A run of bytes in one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    file: usize,
    start: usize,
    end: usize,
}

/// Where the absmax of an NF4 matrix lie.
#[derive(Clone, Debug)]
enum AbsmaxPlace {
    Plain(Extent),
    Double { codes: Extent, scales: Extent, offset: f32 },
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    /// Or the name of an encoding that is not read here.
    format: std::result::Result<Format, String>,
    shape: Vec<usize>,
    start: usize,
    end: usize,
    conversion: Conversion,
    /// Of NF4 and of nothing else.
    absmax: Option<AbsmaxPlace>,
}

impl Entry {
    fn extent(&self) -> Extent {
        Extent { file: self.file, start: self.start, end: self.end }
    }

    /// Every run of bytes the tensor is made of, its numbers (or codes) first.
    fn extents(&self) -> Vec<Extent> {
        let mut extents = vec![self.extent()];
        match &self.absmax {
            None => {}
            Some(AbsmaxPlace::Plain(values)) => extents.push(*values),
            Some(AbsmaxPlace::Double { codes, scales, offset: _ }) => extents.extend([*codes, *scales]),
        }
        extents
    }

    /// The tensor, given the bytes of any of its extents. An encoding that is not read here is an error.
    fn stored<'a>(&self, bytes: impl Fn(Extent) -> &'a [u8]) -> Result<Stored<'a>> {
        let format = self.format.clone().map_err(anyhow::Error::msg)?;
        let absmax = self.absmax.as_ref().map(|place| match place {
            AbsmaxPlace::Plain(values) => Absmax::Plain(floats(bytes(*values))),
            AbsmaxPlace::Double { codes, scales, offset } => {
                Absmax::Double { codes: Cow::Borrowed(bytes(*codes)), scales: floats(bytes(*scales)), offset: *offset }
            }
        });
        let numbers = bytes(self.extent());
        let bytes = match self.conversion {
            Conversion::None => Cow::Borrowed(numbers),
            Conversion::Interleaved { heads } => Cow::Owned(halves_apart(numbers, self.shape[0], heads)),
            Conversion::OneAdded => Cow::Owned(minus_one(numbers)),
        };
        Ok(Stored { format, shape: self.shape.clone(), bytes, absmax })
    }
}

/// Little-endian numbers; borrowed where they happen to be aligned.
fn floats(bytes: &[u8]) -> Cow<'_, [f32]> {
    // SAFETY: any four bytes are an f32.
    let (before, numbers, _) = unsafe { bytes.align_to::<f32>() };
    if cfg!(target_endian = "little") && before.is_empty() {
        return Cow::Borrowed(numbers);
    }
    bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

/// A mapped file.
struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    fn open(path: &Path) -> Result<Mapped> {
        let place = || path.display().to_string();
        let file = File::open(path).with_context(place)?;
        if file.metadata().with_context(place)?.len() == 0 {
            bail!("{}: the file is empty; fetch it again", path.display());
        }
        // SAFETY: the bytes are only read. Whoever changes the file while it is open changes what is read, which no
        // reader of weights can prevent; fireval itself only ever replaces whole files by renaming.
        let map = unsafe { Mmap::map(&file) }.with_context(place)?;
        Ok(Mapped { path: path.to_owned(), map })
    }
}

/// An open checkpoint: a Hugging Face folder or a GGUF file, mapped.
pub struct Checkpoint {
    config: serde_json::Value,
    config_place: String,
    files: Vec<Mapped>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens a folder (`config.json` and safetensors) or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        if path.is_dir() {
            return folder::open(path);
        }
        if !path.exists() {
            bail!("{}: there is no such file or folder", path.display());
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => llama_cpp::open(path),
            Some("safetensors") => {
                bail!("{}: give the folder with config.json, not one of its weight files", path.display())
            }
            Some(_) | None => {
                bail!("{}: not a model; expected a folder with config.json or a .gguf file", path.display())
            }
        }
    }

    /// The model's configuration as the hub's `config.json` states it (made up from the metadata of a GGUF file).
    pub fn config_json(&self) -> &serde_json::Value {
        &self.config
    }

    /// Where the configuration was read, for messages.
    pub fn config_place(&self) -> &str {
        &self.config_place
    }

    /// Names of all tensors, as the hub spells them, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// The tensor of that name with that shape; the error names file, tensor and both shapes.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        self.check(name, shape)?;
        self.stored(name)
    }

    /// Whether there is such a tensor, without reading a byte of it.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            bail!(
                "{}: tensor `{name}` has shape {:?}, but {} asks for {shape:?}; the two do not belong together",
                self.files[entry.file].path.display(),
                entry.shape,
                self.config_place
            );
        }
        Ok(())
    }

    /// The tensor of that name with whatever shape it has.
    pub fn stored(&self, name: &str) -> Result<Stored<'_>> {
        self.entry(name)?.stored(|extent| &self.files[extent.file].map[extent.start..extent.end])
    }

    /// Where the tensor lies; a missing one, and an encoding that is not read here, are errors.
    fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        if let Err(encoding) = &entry.format {
            let file = self.files[entry.file].path.display();
            bail!("{file}: tensor `{name}` is {encoding}; f32, f16 and bf16 weights open");
        }
        Ok(entry)
    }

    /// Whether a tensor is stored in that format.
    pub fn holds(&self, format: Format) -> bool {
        self.entries.values().any(|entry| entry.format == Ok(format))
    }

    /// Whether some tensor is in quantised blocks of GGUF.
    pub fn holds_blocks(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry.format, Ok(Format::Ggml(_))))
    }

    /// The weight files, in the order they were named; with `config_json` and the tokenizer they are the model.
    pub fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|file| file.path.as_path()).collect()
    }

    /// Bytes of all tensors as stored.
    pub fn weights_bytes(&self) -> u64 {
        self.entries.values().flat_map(Entry::extents).map(|extent| (extent.end - extent.start) as u64).sum()
    }

    fn missing(&self, name: &str) -> anyhow::Error {
        let files: Vec<String> = self.files.iter().map(|file| file.path.display().to_string()).collect();
        let place = match files.as_slice() {
            [only] => only.clone(),
            [first, .., last] => format!("{first} to {last}"),
            [] => self.config_place.clone(),
        };
        anyhow!("{place}: tensor `{name}` is missing, but {} asks for it", self.config_place)
    }
}

/// Rows of each head from (pair, half) to (half, pair) order; whole rows move, so quantised ones may.
fn halves_apart(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut moved = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, place) = (row / (2 * half), row % (2 * half));
        let source = head * 2 * half + 2 * (place % half) + place / half;
        moved.extend_from_slice(&bytes[source * row_bytes..][..row_bytes]);
    }
    moved
}

/// Of f32 numbers. Near one, where norms are, this loses nothing: adding the one again gives the same bits.
fn minus_one(bytes: &[u8]) -> Vec<u8> {
    let words = bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    words.flat_map(|number| (number - 1.0).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_apart_into_halves() {
        // llama.cpp writes the hub's head rows a0 a1 a2 b0 b1 b2 (halves a, b) as a0 b0 a1 b1 a2 b2.
        let stored = [0, 10, 1, 11, 2, 12, 20, 30, 21, 31, 22, 32];
        assert_eq!(halves_apart(&stored, 12, 2), [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]);
        // Rows of two bytes move whole.
        let stored = [0, 0, 10, 10, 1, 1, 11, 11];
        assert_eq!(halves_apart(&stored, 4, 1), [0, 0, 1, 1, 10, 10, 11, 11]);
    }

    #[test]
    fn bytes_of_a_shape_need_whole_blocks() {
        assert_eq!(Format::BF16.bytes(&[3, 5]), Some(30));
        assert_eq!(Format::Ggml(GgmlDType::Q4_1).bytes(&[3, 64]), Some(3 * 2 * 20));
        assert_eq!(Format::Ggml(GgmlDType::Q4_1).bytes(&[32, 3]), None);
        assert_eq!(Format::F32.bytes(&[usize::MAX, 2]), None);
        assert_eq!(Format::F32.bytes(&[usize::MAX]), None);
    }
}
