//! Stored bytes to f32. Blocks are decoded by candle's own block types, so that a GGUF model has the numbers other
//! candle programs (and llama.cpp's reference code, which they follow) give it.

use anyhow::{Result, bail, ensure};
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use candle_core::quantized::{GgmlDType, GgmlType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::Format;
use crate::kernel::Blocks;

/// Numbers a worker decodes at a time: a multiple of every block.
const CHUNK: usize = 1 << 16;

/// Row-major numbers of a tensor of that shape.
pub(super) fn to_f32(format: Format, shape: &[usize], bytes: &[u8]) -> Result<Vec<f32>> {
    let Some(expected) = format.bytes(shape) else { bail!("a tensor of shape {shape:?} does not fill whole blocks") };
    ensure!(expected == bytes.len(), "{} bytes stored for shape {shape:?}, which needs {expected}", bytes.len());
    match format {
        Format::F32 => Ok(plain(bytes, f32::from_le_bytes)),
        Format::F16 => Ok(plain(bytes, |pair| f16::from_le_bytes(pair).to_f32())),
        Format::BF16 => Ok(plain(bytes, |pair| bf16::from_le_bytes(pair).to_f32())),
        Format::Nf4 => bail!("NF4 codes mean nothing without their absmax"),
        Format::Ggml(dtype) => ggml(dtype, bytes),
    }
}

fn plain<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<N>();
    let mut values = vec![0.0; numbers.len()];
    values.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK)).for_each(|(values, numbers)| {
        for (value, number) in values.iter_mut().zip(numbers) {
            *value = decode(*number);
        }
    });
    values
}

fn ggml(dtype: GgmlDType, bytes: &[u8]) -> Result<Vec<f32>> {
    let Some(blocks) = blocks(dtype) else { bail!("{dtype:?} is not a format of stored blocks") };
    let mut values = vec![0.0; bytes.len() / blocks.bytes * blocks.count];
    let chunk_bytes = CHUNK / blocks.count * blocks.bytes;
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(chunk_bytes));
    chunks.for_each(|(values, bytes)| (blocks.decode)(bytes, values));
    Ok(values)
}

/// A block format with its decoder; `None` for what is never stored.
pub(super) fn blocks(dtype: GgmlDType) -> Option<Blocks> {
    match dtype {
        GgmlDType::Q4_0 => Some(of::<BlockQ4_0>()),
        GgmlDType::Q4_1 => Some(of::<BlockQ4_1>()),
        GgmlDType::Q5_0 => Some(of::<BlockQ5_0>()),
        GgmlDType::Q5_1 => Some(of::<BlockQ5_1>()),
        GgmlDType::Q8_0 => Some(of::<BlockQ8_0>()),
        GgmlDType::Q2K => Some(of::<BlockQ2K>()),
        GgmlDType::Q3K => Some(of::<BlockQ3K>()),
        GgmlDType::Q4K => Some(of::<BlockQ4K>()),
        GgmlDType::Q5K => Some(of::<BlockQ5K>()),
        GgmlDType::Q6K => Some(of::<BlockQ6K>()),
        // The two below exist for activations only; the three above them are formats of their own.
        GgmlDType::Q8_1 | GgmlDType::Q8K | GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => None,
    }
}

fn of<B: GgmlType>() -> Blocks {
    Blocks { count: B::BLCK_SIZE, bytes: size_of::<B>(), decode: decode::<B> }
}

/// Block by block through a copy on the stack: a mapped byte range is not aligned for the block's type.
fn decode<B: GgmlType>(bytes: &[u8], values: &mut [f32]) {
    let mut block = B::zeros();
    for (bytes, values) in bytes.chunks_exact(size_of::<B>()).zip(values.chunks_exact_mut(B::BLCK_SIZE)) {
        // SAFETY: block types are `repr(C)` structs of integers and f16 without padding, for which any bytes are a value;
        // exactly one of them is written, into memory that holds one.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut block).cast::<u8>(), size_of::<B>());
        }
        B::to_float(std::slice::from_ref(&block), values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_formats_decode_exactly() {
        let values = [0.0f32, -1.5, 3.140_625, 65504.0];
        let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        assert_eq!(to_f32(Format::F32, &[2, 2], &f32s).unwrap(), values);
        assert_eq!(to_f32(Format::F16, &[4], &f16s).unwrap(), values);
        let bf16s: Vec<u8> = values[..3].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        assert_eq!(to_f32(Format::BF16, &[3, 1], &bf16s).unwrap(), [0.0, -1.5, 3.140_625]);
    }

    #[test]
    fn q4_1_is_scale_times_code_plus_minimum() {
        // d = 0.5, m = -1; byte j holds code of value j (low nibble) and of value j + 16 (high nibble).
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend(f16::from_f32(-1.0).to_le_bytes());
        block.extend((0..16u8).map(|code| code | (15 - code) << 4));
        // An odd address: blocks of a mapped file may begin anywhere.
        let shifted: Vec<u8> = std::iter::once(0).chain(block).collect();
        let values = to_f32(Format::Ggml(GgmlDType::Q4_1), &[1, 32], &shifted[1..]).unwrap();
        for code in 0..16 {
            assert_eq!(values[code], 0.5 * code as f32 - 1.0);
            assert_eq!(values[code + 16], 0.5 * (15 - code) as f32 - 1.0);
        }
    }

    #[test]
    fn q8_0_is_scale_times_code_in_order() {
        let mut bytes = Vec::new();
        for scale in [0.25f32, 2.0] {
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend((-16..16i8).map(|code| code as u8));
        }
        let values = to_f32(Format::Ggml(GgmlDType::Q8_0), &[2, 32], &bytes).unwrap();
        assert_eq!((values[0], values[31], values[32], values[63]), (-4.0, 3.75, -32.0, 30.0));
    }

    #[test]
    fn every_readable_block_format_survives_any_bytes() {
        for dtype in [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ] {
            let bytes: Vec<u8> = (0..dtype.type_size() * 3).map(|index| (index * 37 + 11) as u8).collect();
            let values = to_f32(Format::Ggml(dtype), &[3, dtype.block_size()], &bytes).unwrap();
            assert_eq!(values.len(), 3 * dtype.block_size(), "{dtype:?}");
            assert!(values.iter().any(|value| *value != 0.0), "{dtype:?}");
        }
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        assert!(to_f32(Format::F32, &[2], &[0; 7]).is_err());
        assert!(to_f32(Format::Ggml(GgmlDType::Q8K), &[256], &[0; 292]).is_err());
    }
}
