//! NF4 with double quantisation, as bitsandbytes stores it.

use anyhow::Result;

/// A quantised matrix: 4-bit codes, absmax per block of 64 (itself 8-bit in blocks of 256).
#[derive(Clone, Debug)]
pub struct Nf4 {}

impl Nf4 {
    /// Quantises `values` (row-major).
    pub fn quantize(_values: &[f32], _double: bool) -> Result<Nf4> {
        todo!()
    }

    /// `code * absmax` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        todo!()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        todo!()
    }
}
