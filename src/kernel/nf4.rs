//! The numbers of 4-bit NormalFloat: its 16 codes, and the 256 that its block maxima are stored as under double
//! quantisation (QLoRA, arXiv 2305.14314; bitsandbytes 0.50.2). How whole matrices are quantised and stored is
//! `weights::nf4`'s business.

use std::sync::LazyLock;

use super::isa::for_every_isa;

/// Numbers that share an absmax.
pub const BLOCK: usize = 64;
/// Absmax values that share a scale under double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// The 16 codes: quantiles of a normal distribution, scaled to -1..1, with an exact 0.
pub const CODES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The largest magnitude of each block, as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<'a> {
    Plain(&'a [f32]),
    /// `dynamic_map[code] * scale + offset`, a scale for 256 codes.
    Double {
        codes: &'a [u8],
        scales: &'a [f32],
        offset: f32,
    },
}

impl Absmax<'_> {
    /// The absmax of block `index`.
    pub fn at(&self, index: usize) -> f32 {
        match self {
            Absmax::Plain(values) => values[index],
            Absmax::Double { codes, scales, offset } => {
                dynamic_map()[usize::from(codes[index])] * scales[index / NESTED_BLOCK] + offset
            }
        }
    }
}

/// `code * absmax` in f32 for the numbers from `first` on (two codes a byte, the first in the high nibble).
pub fn decode(isa: super::Isa, packed: &[u8], absmax: Absmax, first: usize, out: &mut [f32]) {
    let mut done = 0;
    while done < out.len() {
        let at = first + done;
        let count = (BLOCK - at % BLOCK).min(out.len() - done);
        let scale = absmax.at(at / BLOCK);
        let out = &mut out[done..done + count];
        match (at % 2, count % 2) {
            (0, 0) => decode_pairs(isa, &packed[at / 2..(at + count) / 2], scale, out),
            _ => (at..).zip(out).for_each(|(index, out)| *out = CODES[usize::from(code(packed, index))] * scale),
        }
        done += count;
    }
}

fn code(packed: &[u8], index: usize) -> u8 {
    let byte = packed[index / 2];
    if index.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

fn decode_pairs(isa: super::Isa, packed: &[u8], scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= super::Isa::Avx512 && packed.len() == BLOCK / 2 {
        // SAFETY: the level was asked for, and the lengths are those of a block.
        unsafe { block_with_avx512(packed, scale, out) };
        return;
    }
    look_up(isa, packed, scale, out);
}

for_every_isa! {
    fn look_up(packed: &[u8], scale: f32, out: &mut [f32]) {
        for (pair, byte) in out.chunks_exact_mut(2).zip(packed) {
            pair[0] = CODES[usize::from(byte >> 4)] * scale;
            pair[1] = CODES[usize::from(byte & 15)] * scale;
        }
    }
}

/// # Safety
/// The processor has AVX-512; `packed` has 32 bytes and `out` 64 numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block_with_avx512(packed: &[u8], scale: f32, out: &mut [f32]) {
    use std::arch::x86_64::*;
    // SAFETY: four times 8 bytes are read and 16 numbers written, as the caller's lengths allow.
    unsafe {
        let (table, scale) = (_mm512_loadu_ps(CODES.as_ptr()), _mm512_set1_ps(scale));
        for part in 0..4 {
            let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(packed.as_ptr().add(8 * part).cast()));
            let high = _mm512_srli_epi64::<4>(bytes);
            let low = _mm512_slli_epi64::<32>(_mm512_and_si512(bytes, _mm512_set1_epi64(15)));
            let numbers = _mm512_permutexvar_ps(_mm512_or_si512(high, low), table);
            _mm512_storeu_ps(out.as_mut_ptr().add(16 * part), _mm512_mul_ps(numbers, scale));
        }
    }
}

/// The 256 signed codes of `create_dynamic_map`, ascending: for i in 0..7 the midpoints of 2^i equal bins of 0.1..1,
/// times 10^(i - 6), of both signs; 0; and 1 (there is no -1).
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut codes = vec![0.0, 1.0];
        for exponent in 0..7 {
            let edges = linspace((1 << exponent) + 1);
            let scale = 10f64.powi(exponent - 6) as f32;
            codes.extend(edges.windows(2).flat_map(|edge| {
                let middle = scale * ((edge[0] + edge[1]) / 2.0);
                [middle, -middle]
            }));
        }
        codes.sort_by(f32::total_cmp);
        codes.try_into().expect("2 + 2 * (1 + 2 + ... + 64) are 256")
    });
    &MAP
}

/// `torch.linspace(0.1, 1, count)` to the bit: from both ends, each product and sum rounded once.
fn linspace(count: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - 1 - index) as f32, end)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;

    #[test]
    fn any_stretch_decodes_as_its_numbers_do_one_by_one() {
        let packed: Vec<u8> = (0..160u32).map(|index| (index * 89 + 7) as u8).collect();
        let absmax = [0.5, 2.0, 0.0, 1e-3, 3.0];
        let one = |index: usize| CODES[usize::from(code(&packed, index))] * absmax[index / BLOCK];
        for isa in Isa::supported() {
            for (first, count) in [(0, 320), (0, 64), (64, 128), (3, 100), (63, 2), (100, 1), (10, 54)] {
                let mut out = vec![f32::NAN; count];
                decode(isa, &packed, Absmax::Plain(&absmax), first, &mut out);
                assert_eq!(out, (first..first + count).map(one).collect::<Vec<_>>(), "{isa:?} {first} {count}");
            }
        }
    }

    #[test]
    fn a_nested_absmax_by_hand() {
        let codes = [0u8; 300];
        let scales = [2.0, 4.0];
        let absmax = Absmax::Double { codes: &codes, scales: &scales, offset: 1.0 };
        assert_eq!(absmax.at(255), dynamic_map()[0] * 2.0 + 1.0);
        assert_eq!(absmax.at(256), dynamic_map()[0] * 4.0 + 1.0);
    }
}
