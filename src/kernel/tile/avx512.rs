//! The micro-kernel with AVX-512: four registers a row.

use std::arch::x86_64::*;

use half::bf16;

use super::{Tile, with_height};

/// Registers of 16 sums across a panel.
const ACROSS: usize = 4;

/// # Safety
/// The processor has AVX-512 and its BF16 extension; the pointers of `tile` are good for `height` rows.
pub unsafe fn bf16_tile(height: usize, tile: &Tile<bf16>) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(bf16_rows, height, tile) }
}

/// # Safety
/// The processor has AVX-512; the pointers of `tile` are good for `height` rows.
pub unsafe fn widened_bf16_tile(height: usize, tile: &Tile<bf16>) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(widened_bf16_rows, height, tile) }
}

/// # Safety
/// The processor has AVX-512; the pointers of `tile` are good for `height` rows.
pub unsafe fn f32_tile(height: usize, tile: &Tile<f32>) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(f32_rows, height, tile) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_rows<const ROWS: usize>(tile: &Tile<bf16>) {
    // SAFETY: the caller's promise covers every address below.
    unsafe {
        let mut sums = load::<ROWS, _>(tile);
        for group in 0..tile.groups {
            let panel = tile.panel.add(group * tile.panel_step).cast::<f32>();
            let columns: [__m512i; ACROSS] =
                std::array::from_fn(|part| _mm512_loadu_si512(panel.add(16 * part).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = tile.rows.add(row * tile.row_step + 2 * group).cast::<i32>();
                let pair = _mm512_set1_epi32(pair.read_unaligned());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(pair),
                        std::mem::transmute::<__m512i, __m512bh>(column),
                    );
                }
            }
        }
        store(tile, &sums);
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn widened_bf16_rows<const ROWS: usize>(tile: &Tile<bf16>) {
    // SAFETY: as above.
    unsafe {
        let mut sums = load::<ROWS, _>(tile);
        for group in 0..tile.groups {
            let panel = tile.panel.add(group * tile.panel_step).cast::<f32>();
            for part in 0..ACROSS {
                let pairs = _mm512_loadu_si512(panel.add(16 * part).cast());
                let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                let second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = tile.rows.add(row * tile.row_step + 2 * group);
                    sums[part] = _mm512_fmadd_ps(_mm512_set1_ps((*pair).to_f32()), first, sums[part]);
                    sums[part] = _mm512_fmadd_ps(_mm512_set1_ps((*pair.add(1)).to_f32()), second, sums[part]);
                }
            }
        }
        store(tile, &sums);
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn f32_rows<const ROWS: usize>(tile: &Tile<f32>) {
    // SAFETY: as above.
    unsafe {
        let mut sums = load::<ROWS, _>(tile);
        for group in 0..tile.groups {
            let panel = tile.panel.add(group * tile.panel_step);
            let columns: [__m512; ACROSS] = std::array::from_fn(|part| _mm512_loadu_ps(panel.add(16 * part)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*tile.rows.add(row * tile.row_step + group));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ps(a, column, *sum);
                }
            }
        }
        store(tile, &sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const ROWS: usize, E>(tile: &Tile<E>) -> [[__m512; ACROSS]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); ACROSS]; ROWS];
    if tile.goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's sums have 64 numbers in each row.
                *sum = unsafe { _mm512_loadu_ps(tile.sums.add(row * tile.sums_step + 16 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize, E>(tile: &Tile<E>, sums: &[[__m512; ACROSS]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(tile.sums.add(row * tile.sums_step + 16 * part), *sum) };
        }
    }
}
