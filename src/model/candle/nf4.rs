//! An NF4 matrix in a device's memory: packed codes and block maxima as they are stored, decoded there when they are used.
//!
//! The arithmetic is that of bitsandbytes and of [`crate::kernel::nf4`]: `code * absmax` in f32, rounded once to what is
//! asked for, and a nested absmax is `map[code] * scale + offset`, its product and its sum each rounded once. Only candle's
//! stock operations are used, so the same lines run on a card and on the CPU, where they give the kernels' bits.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::kernel::nf4::{BLOCK, CODES, NESTED_BLOCK, dynamic_map};
use crate::weights::nf4::{Absmax, Nf4};

/// Blocks decoded at a time (4 Mi numbers): what is in between is 4 bytes a number, so it must not be a whole matrix.
const SLAB: usize = 1 << 16;
/// Two codes of 0, which fill the last block up.
const ZEROS: u8 = 0x77;

/// What codes stand for, in a device's memory.
#[derive(Clone)]
pub struct Tables {
    pairs: Tensor,   // (256, 2): the two numbers of a byte
    dynamic: Tensor, // (256)
}

/// The matrix; clones share it.
#[derive(Clone)]
pub struct DeviceNf4 {
    /// Numbers held.
    count: usize,
    packed: Tensor, // (blocks * 32), u8
    absmax: DeviceAbsmax,
    tables: Tables,
}

#[derive(Clone)]
enum DeviceAbsmax {
    Plain(Tensor), // (blocks)
    Double {
        codes: Tensor,  // (blocks), u8
        scales: Tensor, // (blocks / 256, rounded up)
        offset: Tensor, // (1)
    },
}

impl Tables {
    pub fn new(device: &Device) -> Result<Tables> {
        let pair = |byte: usize| [CODES[byte >> 4], CODES[byte & 15]];
        let pairs: Vec<f32> = (0..256).flat_map(pair).collect();
        Ok(Tables {
            pairs: Tensor::from_vec(pairs, (256, 2), device)?,
            dynamic: Tensor::from_slice(dynamic_map(), 256, device)?,
        })
    }

    pub fn device(&self) -> &Device {
        self.pairs.device()
    }
}

impl DeviceNf4 {
    /// Copies the matrix to where `tables` are.
    pub fn new(nf4: &Nf4, tables: &Tables) -> Result<DeviceNf4> {
        let (device, blocks) = (tables.device(), nf4.count.div_ceil(BLOCK));
        let bytes = |bytes: &[u8]| Tensor::from_slice(bytes, bytes.len(), device);
        let floats = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        let packed = match nf4.packed.len() == blocks * BLOCK / 2 {
            true => bytes(&nf4.packed)?,
            false => {
                let mut packed = nf4.packed.to_vec();
                packed.resize(blocks * BLOCK / 2, ZEROS);
                bytes(&packed)?
            }
        };
        let absmax = match &nf4.absmax {
            Absmax::Plain(values) => DeviceAbsmax::Plain(floats(values)?),
            Absmax::Double { codes, scales, offset } => {
                DeviceAbsmax::Double { codes: bytes(codes)?, scales: floats(scales)?, offset: floats(&[*offset])? }
            }
        };
        Ok(DeviceNf4 { count: nf4.count, packed, absmax, tables: tables.clone() })
    }

    /// The matrix as a tensor of `shape`, its numbers rounded to `dtype`.
    pub fn matrix(&self, shape: (usize, usize), dtype: DType) -> candle_core::Result<Tensor> {
        let blocks = self.count.div_ceil(BLOCK);
        if blocks <= SLAB {
            return self.slab(0, blocks, dtype)?.narrow(0, 0, self.count)?.reshape(shape);
        }
        let whole = Tensor::zeros(self.count, dtype, self.tables.device())?;
        for first in (0..blocks).step_by(SLAB) {
            let slab = self.slab(first, SLAB.min(blocks - first), dtype)?;
            let count = slab.dim(0)?.min(self.count - first * BLOCK);
            whole.slice_set(&slab.narrow(0, 0, count)?, 0, first * BLOCK)?;
        }
        whole.reshape(shape)
    }

    /// Some blocks' numbers, flat.
    fn slab(&self, first: usize, blocks: usize, dtype: DType) -> candle_core::Result<Tensor> {
        let packed = self.packed.narrow(0, first * BLOCK / 2, blocks * BLOCK / 2)?;
        let codes = look_up(&self.tables.pairs, &packed)?.reshape((blocks, BLOCK))?;
        let numbers = codes.broadcast_mul(&self.absmax(first, blocks)?.unsqueeze(1)?)?;
        numbers.to_dtype(dtype)?.flatten_all()
    }

    /// Of some blocks, the first of which begins a nested one: (blocks).
    fn absmax(&self, first: usize, blocks: usize) -> candle_core::Result<Tensor> {
        let (codes, scales, offset) = match &self.absmax {
            DeviceAbsmax::Plain(values) => return values.narrow(0, first, blocks),
            DeviceAbsmax::Double { codes, scales, offset } => (codes, scales, offset),
        };
        let nested = blocks.div_ceil(NESTED_BLOCK);
        let scales =
            scales.narrow(0, first / NESTED_BLOCK, nested)?.unsqueeze(1)?.broadcast_as((nested, NESTED_BLOCK))?;
        let scales = scales.reshape(nested * NESTED_BLOCK)?.narrow(0, 0, blocks)?;
        let values = look_up(&self.tables.dynamic, &codes.narrow(0, first, blocks)?)?;
        (values * scales)?.broadcast_add(offset)
    }

    /// Bytes in the device's memory.
    pub fn bytes(nf4: &Nf4) -> usize {
        let padding = nf4.count.div_ceil(BLOCK) * BLOCK / 2 - nf4.packed.len();
        nf4.bytes() + padding
    }
}

/// Rows of `table` by `bytes`. candle takes an index of 255 in u8 for "no row" and gives zeros, so they are widened.
fn look_up(table: &Tensor, bytes: &Tensor) -> candle_core::Result<Tensor> {
    table.index_select(&bytes.to_dtype(DType::U32)?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn values(count: usize) -> Vec<f32> {
        let mut random = Random::named(7, "weights");
        (0..count).map(|_| 0.02 * random.normal() as f32).collect()
    }

    fn same_bits(nf4: &Nf4, shape: (usize, usize)) {
        let tables = Tables::new(&Device::Cpu).unwrap();
        let matrix = DeviceNf4::new(nf4, &tables).unwrap().matrix(shape, DType::F32).unwrap();
        let found: Vec<u32> = matrix.flatten_all().unwrap().to_vec1().unwrap().into_iter().map(f32::to_bits).collect();
        let expected: Vec<u32> = nf4.dequantize().into_iter().map(f32::to_bits).collect();
        assert_eq!(matrix.dims2().unwrap(), shape);
        assert!(found == expected, "{shape:?}");
    }

    #[test]
    fn every_byte_decodes_to_the_kernels_bits() {
        // Each of the 256 bytes, 255 too, and each of the 256 codes of a nested absmax.
        let packed: Vec<u8> = (0..256 * BLOCK / 2).map(|index| (index * 7 % 256) as u8).collect();
        let codes: Vec<u8> = (0..=255).rev().collect();
        let scales = vec![0.0375];
        let absmax = Absmax::Double { codes: codes.into(), scales: scales.into(), offset: 0.041 };
        same_bits(&Nf4 { count: 256 * BLOCK, packed: packed.into(), absmax }, (128, 128));
    }

    #[test]
    fn shapes_that_fill_no_block_and_more_than_a_slab_decode_too() {
        for double in [false, true] {
            for shape in [(1, 1), (3, 21), (5, 40), (31, 1111), (600, 7001)] {
                let nf4 = Nf4::quantize(&values(shape.0 * shape.1), double).unwrap();
                same_bits(&nf4, shape);
            }
        }
        const { assert!(600 * 7001 > SLAB * BLOCK, "the last takes two slabs") };
    }

    #[test]
    fn half_precision_rounds_the_product_once() {
        let nf4 = Nf4::quantize(&values(1000), true).unwrap();
        let tables = Tables::new(&Device::Cpu).unwrap();
        let matrix = DeviceNf4::new(&nf4, &tables).unwrap().matrix((10, 100), DType::F16).unwrap();
        let found: Vec<half::f16> = matrix.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found, nf4.dequantize().into_iter().map(half::f16::from_f32).collect::<Vec<_>>());
    }
}
