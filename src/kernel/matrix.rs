//! A weight matrix as it lies in a file or in memory: whatever its numbers are stored as, rows of it decode to f32.

use half::{bf16, f16};

use super::isa::for_every_isa;
use super::nf4::{self, Absmax};
use super::rows::round;
use super::{Element, Isa};

/// Rows (a linear's outputs) of columns (its inputs), row-major.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub rows: usize,
    pub columns: usize,
    pub numbers: Numbers<'a>,
    /// Decoded numbers are rounded to f16 first: a model that is run as f16.
    pub rounded_to_f16: bool,
}

/// How the numbers are stored. Bytes are little-endian and need no alignment.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    F32(&'a [u8]),
    F16(&'a [u8]),
    Bf16(&'a [u8]),
    /// 4-bit NormalFloat over the whole matrix, row after row.
    Nf4 {
        packed: &'a [u8],
        absmax: Absmax<'a>,
    },
    /// Blocks within a row, as ggml quantises.
    Blocks {
        bytes: &'a [u8],
        blocks: Blocks,
    },
}

/// A format of blocks, with its decoder.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Numbers and bytes of a block.
    pub count: usize,
    pub bytes: usize,
    /// Whole blocks to f32.
    pub decode: fn(&[u8], &mut [f32]),
}

impl Matrix<'_> {
    /// Decodes columns `from..from + out.len()` of `row`. Blocks are decoded whole, so there both ends are multiples of a
    /// block.
    pub fn decode_row(&self, isa: Isa, row: usize, from: usize, out: &mut [f32]) {
        let first = row * self.columns + from;
        match self.numbers {
            Numbers::F32(bytes) => read_f32(isa, &bytes[4 * first..], out),
            Numbers::F16(bytes) => read_f16(isa, &bytes[2 * first..], out),
            Numbers::Bf16(bytes) => read_bf16(isa, &bytes[2 * first..], out),
            Numbers::Nf4 { packed, absmax } => nf4::decode(isa, packed, absmax, first, out),
            Numbers::Blocks { bytes, blocks } => {
                let (start, count) = (first / blocks.count, out.len() / blocks.count);
                (blocks.decode)(&bytes[start * blocks.bytes..][..count * blocks.bytes], out);
            }
        }
        if self.rounded_to_f16 {
            out.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }

    /// Columns `from..from + out.len()` of `row` as products take them; `decoded` is a buffer.
    pub(super) fn read_part<E: Element>(
        &self,
        isa: Isa,
        row: usize,
        from: usize,
        decoded: &mut Vec<f32>,
        out: &mut [E],
    ) {
        if let Some(bytes) = self.stored_as::<E>(row, from) {
            return E::read(&bytes[..size_of_val(out)], out);
        }
        let block = match self.numbers {
            Numbers::Blocks { blocks, .. } => blocks.count,
            Numbers::F32(_) | Numbers::F16(_) | Numbers::Bf16(_) | Numbers::Nf4 { .. } => 1,
        };
        let (start, end) = (from / block * block, (from + out.len()).next_multiple_of(block));
        decoded.resize(end - start, 0.0);
        self.decode_row(isa, row, start, decoded);
        round(isa, &decoded[from - start..][..out.len()], out);
    }

    /// The bytes of a row from column `from` on, where the numbers are stored just as `E` has them.
    pub(super) fn stored_as<E: Element>(&self, row: usize, from: usize) -> Option<&[u8]> {
        let (bytes, width) = match self.numbers {
            Numbers::F32(bytes) if E::GROUP == 1 && !self.rounded_to_f16 => (bytes, 4),
            Numbers::Bf16(bytes) if E::GROUP == 2 => (bytes, 2),
            Numbers::F32(_) | Numbers::F16(_) | Numbers::Bf16(_) | Numbers::Nf4 { .. } | Numbers::Blocks { .. } => {
                return None;
            }
        };
        Some(&bytes[width * (row * self.columns + from)..])
    }
}

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and kernels read them as they lie");

for_every_isa! {
    fn read_f32(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
    }
}

for_every_isa! {
    fn read_bf16(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = Element::to_f32(bf16::from_le_bytes(*bytes));
        }
    }
}

for_every_isa! {
    fn read_f16(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = f16_to_f32(u16::from_le_bytes(*bytes));
        }
    }
}

/// Exact, without a branch: the magnitude's bits moved into an f32 whose exponent is then set right by a product with
/// a power of two (which also makes subnormals normal).
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23);
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if bits & 0x7c00 == 0x7c00 { special } else { scaled };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::bytes_of;

    #[test]
    fn every_f16_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:x}: {ours} {theirs}");
        }
    }

    #[test]
    fn rows_decode_from_where_they_lie() {
        let values: Vec<f32> = (0..12).map(|value| value as f32 / 4.0).collect();
        let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let brains: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        for isa in Isa::supported() {
            for numbers in [Numbers::F32(bytes_of(&values)), Numbers::F16(&halves), Numbers::Bf16(&brains)] {
                let matrix = Matrix { rows: 3, columns: 4, numbers, rounded_to_f16: false };
                let mut out = [0.0; 3];
                matrix.decode_row(isa, 2, 1, &mut out);
                assert_eq!(out, values[9..12]);
            }
        }
    }

    #[test]
    fn a_model_run_as_f16_rounds_what_it_decodes() {
        let values = [1.0, 1.0 + 1.0 / 4096.0];
        let numbers = Numbers::F32(bytes_of(&values));
        let mut out = [0.0; 2];
        Matrix { rows: 1, columns: 2, numbers, rounded_to_f16: true }.decode_row(Isa::Portable, 0, 0, &mut out);
        assert_eq!(out, [1.0, 1.0]);
    }
}
