//! NF4 with double quantisation, as bitsandbytes stores it (Dettmers et al.: QLoRA, 2023; bitsandbytes 0.50.2).
//!
//! Values are taken row-major in blocks of 64. A block keeps its largest magnitude (`absmax`) and for each value the
//! nearest of 16 codes to `value / absmax`, two a byte, the first in the high nibble. Double quantisation then stores
//! the absmax themselves in 8 bits: minus their mean, in blocks of 256, as the nearest of 256 codes of the signed
//! "dynamic map". bitsandbytes finds that nearest code by a coarse look-up and is at times one code off; here it is
//! exact. The fields are what bitsandbytes writes into safetensors (`absmax`, `nested_absmax`, offset).

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use crate::kernel::{Isa, Numbers, nf4};

pub use crate::kernel::nf4::{BLOCK, CODES, NESTED_BLOCK, dynamic_map};

/// Blocks a worker takes at a time.
const BLOCKS_A_TASK: usize = 256;

/// A quantised matrix: 4-bit codes, absmax per block of 64. Borrowed where it lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4<'a> {
    /// Values held.
    pub count: usize,
    /// Two codes a byte, the first in the high nibble.
    pub packed: Cow<'a, [u8]>,
    pub absmax: Absmax<'a>,
}

/// The largest magnitude of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax<'a> {
    Plain(Cow<'a, [f32]>),
    /// `map[code] * scale + offset`, a scale for each 256 blocks.
    Double {
        codes: Cow<'a, [u8]>,
        scales: Cow<'a, [f32]>,
        offset: f32,
    },
}

impl Nf4<'static> {
    /// Quantises `values` (row-major). A value that is not finite is an error that gives its place.
    pub fn quantize(values: &[f32], double: bool) -> Result<Nf4<'static>> {
        let mut packed = vec![0u8; values.len().div_ceil(2)];
        let mut absmax = vec![0f32; values.len().div_ceil(BLOCK)];
        packed
            .par_chunks_mut(BLOCKS_A_TASK * BLOCK / 2)
            .zip(absmax.par_chunks_mut(BLOCKS_A_TASK))
            .zip(values.par_chunks(BLOCKS_A_TASK * BLOCK))
            .for_each(|((packed, absmax), values)| {
                for ((packed, absmax), values) in packed.chunks_mut(BLOCK / 2).zip(absmax).zip(values.chunks(BLOCK)) {
                    *absmax = quantize_block(values, packed);
                }
            });
        if absmax.iter().any(|value| !value.is_finite()) {
            let place =
                values.iter().position(|value| !value.is_finite()).expect("a block's absmax is one of its values");
            bail!("value {place} is {}; only finite weights can be quantised", values[place]);
        }
        let absmax = if double { Absmax::double(&absmax)? } else { Absmax::Plain(absmax.into()) };
        Ok(Nf4 { count: values.len(), packed: packed.into(), absmax })
    }
}

impl Nf4<'_> {
    /// A copy that outlives what it was borrowed from.
    pub fn into_owned(self) -> Nf4<'static> {
        let absmax = match self.absmax {
            Absmax::Plain(values) => Absmax::Plain(values.into_owned().into()),
            Absmax::Double { codes, scales, offset } => {
                Absmax::Double { codes: codes.into_owned().into(), scales: scales.into_owned().into(), offset }
            }
        };
        Nf4 { count: self.count, packed: self.packed.into_owned().into(), absmax }
    }

    /// `code * absmax` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.count];
        self.dequantize_into(&mut values);
        values
    }

    /// [`Nf4::dequantize`] into a buffer of `count` values.
    pub fn dequantize_into(&self, values: &mut [f32]) {
        assert_eq!(values.len(), self.count, "the buffer holds as many values as were quantised");
        let absmax = self.absmax.view();
        values.par_chunks_mut(BLOCKS_A_TASK * BLOCK).enumerate().for_each(|(task, values)| {
            nf4::decode(Isa::best(), &self.packed, absmax, task * BLOCKS_A_TASK * BLOCK, values);
        });
    }

    /// What a kernel reads.
    pub fn numbers(&self) -> Numbers<'_> {
        Numbers::Nf4 { packed: &self.packed, absmax: self.absmax.view() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.packed.len()
            + match &self.absmax {
                Absmax::Plain(values) => 4 * values.len(),
                Absmax::Double { codes, scales, .. } => codes.len() + 4 * scales.len() + 4,
            }
    }
}

/// Fills `packed` and returns the block's absmax.
fn quantize_block(values: &[f32], packed: &mut [u8]) -> f32 {
    // Without their sign, floats are ordered as their bits are (and what is not finite comes last): a loop of
    // integer maxima, which runs on several values at once.
    let absmax = f32::from_bits(values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
    let divisor = if absmax == 0.0 { 1.0 } else { absmax };
    let mut scaled = [0f32; BLOCK];
    for (scaled, value) in scaled.iter_mut().zip(values) {
        *scaled = value / divisor;
    }
    let codes = nearest_codes(&scaled);
    for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    absmax
}

/// For each value the number of midpoints below it: the nearest code, the lower one of two equally near, as
/// bitsandbytes decides. No branch, and the values innermost, so that several are compared at once.
fn nearest_codes(values: &[f32; BLOCK]) -> [u32; BLOCK] {
    let mut codes = [0; BLOCK];
    for pair in CODES.windows(2) {
        let midpoint = (pair[0] + pair[1]) / 2.0;
        for (code, value) in codes.iter_mut().zip(values) {
            *code += u32::from(*value > midpoint);
        }
    }
    codes
}

impl Absmax<'static> {
    fn double(absmax: &[f32]) -> Result<Absmax<'static>> {
        ensure!(!absmax.is_empty(), "an empty matrix cannot be quantised");
        let offset = (absmax.iter().map(|value| f64::from(*value)).sum::<f64>() / absmax.len() as f64) as f32;
        let mut codes = Vec::with_capacity(absmax.len());
        let mut scales = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK));
        for block in absmax.chunks(NESTED_BLOCK) {
            let scale = block.iter().fold(0f32, |most, value| most.max((value - offset).abs()));
            let divisor = if scale == 0.0 { 1.0 } else { scale };
            codes.extend(block.iter().map(|value| nearest_dynamic((value - offset) / divisor)));
            scales.push(scale);
        }
        Ok(Absmax::Double { codes: codes.into(), scales: scales.into(), offset })
    }
}

impl Absmax<'_> {
    /// The same, borrowed from here.
    pub fn borrowed(&self) -> Absmax<'_> {
        match self {
            Absmax::Plain(values) => Absmax::Plain(Cow::Borrowed(values)),
            Absmax::Double { codes, scales, offset } => {
                Absmax::Double { codes: Cow::Borrowed(codes), scales: Cow::Borrowed(scales), offset: *offset }
            }
        }
    }

    /// What a kernel reads.
    pub fn view(&self) -> nf4::Absmax<'_> {
        match self {
            Absmax::Plain(values) => nf4::Absmax::Plain(values),
            Absmax::Double { codes, scales, offset } => nf4::Absmax::Double { codes, scales, offset: *offset },
        }
    }
}

/// The nearest code of the dynamic map, the lower one of two equally near.
fn nearest_dynamic(value: f32) -> u8 {
    let map = dynamic_map();
    let above = map.partition_point(|code| *code < value).min(255);
    let below = above.saturating_sub(1);
    let distance = |index: usize| (f64::from(map[index]) - f64::from(value)).abs();
    if distance(below) <= distance(above) { below as u8 } else { above as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        // absmax 2: 2 -> code 15, -2 -> 0, 0 -> 7, 0.9 / 2 = 0.45 -> 12 (0.4407).
        let nf4 = Nf4::quantize(&[2.0, -2.0, 0.0, 0.9], false).unwrap();
        assert_eq!(*nf4.packed, [0xf0, 0x7c]);
        assert_eq!(nf4.absmax, Absmax::Plain(vec![2.0].into()));
        assert_eq!(nf4.dequantize(), [2.0, -2.0, 0.0, 2.0 * CODES[12]]);
        assert_eq!(nf4.bytes(), 2 + 4);
    }

    #[test]
    fn a_zero_block_and_a_last_short_odd_block() {
        let mut values = vec![0.0; BLOCK];
        values.extend([1.0, -0.5, 0.25]);
        let nf4 = Nf4::quantize(&values, false).unwrap();
        assert_eq!(nf4.packed[..32], [0x77; 32]);
        assert_eq!(nf4.packed.len(), 34);
        assert_eq!(nf4.absmax, Absmax::Plain(vec![0.0, 1.0].into()));
        // -0.5 is nearest to -0.5251 (code 2), 0.25 to 0.2461 (code 10).
        assert_eq!(nf4.dequantize()[BLOCK - 1..], [0.0, 1.0, CODES[2], CODES[10]]);
    }

    #[test]
    fn every_code_finds_itself_and_midpoints_go_down() {
        let code = |value: f32| nearest_codes(&[value; BLOCK])[BLOCK - 1];
        for (index, value) in CODES.iter().enumerate() {
            assert_eq!(code(*value) as usize, index);
        }
        // The boundary constants of bitsandbytes' dQuantizeNF4.
        for (midpoint, below) in [(0.039_790_15, 7), (0.389_312_54, 11), (-0.137_911_73, 5), (-0.848_096_4, 0)] {
            let midpoint: f32 = midpoint;
            assert_eq!(code(midpoint), below);
            assert_eq!(code(midpoint.next_up()), below + 1);
        }
    }

    #[test]
    fn every_dynamic_code_finds_itself() {
        for (index, code) in dynamic_map().iter().enumerate() {
            assert_eq!(usize::from(nearest_dynamic(*code)), index);
        }
        assert_eq!((nearest_dynamic(-1.0), nearest_dynamic(1.0)), (0, 255));
    }

    #[test]
    fn equal_blocks_survive_double_quantisation_exactly() {
        // All absmax equal their mean, so the nested scale is 0 and the offset carries them.
        let nf4 = Nf4::quantize(&[0.5; 3 * BLOCK], true).unwrap();
        assert_eq!(nf4.dequantize(), [0.5; 3 * BLOCK]);
        assert_eq!(nf4.bytes(), 96 + 3 + 4 + 4);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let error = Nf4::quantize(&[1.0, f32::NAN], true).unwrap_err().to_string();
        assert!(error.contains("value 1 is NaN"), "{error}");
        let mut values = vec![1.0; 3 * BLOCK];
        values[100] = f32::NEG_INFINITY;
        let error = Nf4::quantize(&values, false).unwrap_err().to_string();
        assert!(error.contains("value 100 is -inf"), "{error}");
        assert!(Nf4::quantize(&[], true).is_err());
    }
}
