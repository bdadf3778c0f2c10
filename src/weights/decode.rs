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
    match dtype {
        GgmlDType::Q4_0 => Ok(blocks::<BlockQ4_0>(bytes)),
        GgmlDType::Q4_1 => Ok(blocks::<BlockQ4_1>(bytes)),
        GgmlDType::Q5_0 => Ok(blocks::<BlockQ5_0>(bytes)),
        GgmlDType::Q5_1 => Ok(blocks::<BlockQ5_1>(bytes)),
        GgmlDType::Q8_0 => Ok(blocks::<BlockQ8_0>(bytes)),
        GgmlDType::Q2K => Ok(blocks::<BlockQ2K>(bytes)),
        GgmlDType::Q3K => Ok(blocks::<BlockQ3K>(bytes)),
        GgmlDType::Q4K => Ok(blocks::<BlockQ4K>(bytes)),
        GgmlDType::Q5K => Ok(blocks::<BlockQ5K>(bytes)),
        GgmlDType::Q6K => Ok(blocks::<BlockQ6K>(bytes)),
        // The two below exist for activations only; the three above them are formats of their own.
        GgmlDType::Q8_1 | GgmlDType::Q8K | GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
            bail!("{dtype:?} is not a format of stored blocks")
        }
    }
}

fn blocks<B: GgmlType>(bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() / size_of::<B>();
    let mut values = vec![0.0; count * B::BLCK_SIZE];
    let chunk_bytes = CHUNK / B::BLCK_SIZE * size_of::<B>();
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(chunk_bytes)).for_each(|(values, bytes)| {
        B::to_float(&aligned::<B>(bytes), values);
    });
    values
}

/// A copy of the blocks where their type may be read from (a mapped byte range is not aligned for it).
fn aligned<B: GgmlType>(bytes: &[u8]) -> Vec<B> {
    let count = bytes.len() / size_of::<B>();
    let mut blocks = vec![B::zeros(); count];
    // SAFETY: block types are `repr(C)` structs of integers and f16 without padding, for which any bytes are a value;
    // exactly `count` of them are written, into memory that holds `count`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), blocks.as_mut_ptr().cast::<u8>(), count * size_of::<B>());
    }
    blocks
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
