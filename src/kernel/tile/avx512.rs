//! The micro-kernel with AVX-512: four registers a row.

use std::arch::x86_64::*;

use super::{Tile, with_height};

/// Registers of 16 sums across a panel.
const ACROSS: usize = 4;

/// # Safety
/// The processor has AVX-512 and its BF16 extension; the pointers of `tile` are good for `height` rows of pairs.
pub unsafe fn pair_tile(height: usize, tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(pair_rows, height, tile) }
}

/// # Safety
/// The processor has AVX-512; the pointers of `tile` are good for `height` rows of f32.
pub unsafe fn f32_tile(height: usize, tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(f32_rows, height, tile) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair_rows<const ROWS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise covers every address below.
    unsafe {
        let mut sums = load::<ROWS>(tile);
        for unit in 0..tile.units {
            let panel = tile.panel.add(unit * tile.panel_step);
            let columns: [__m512i; ACROSS] =
                std::array::from_fn(|part| _mm512_loadu_si512(panel.add(16 * part).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = tile.rows.add(row * tile.row_step + unit).cast::<i32>();
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
unsafe fn f32_rows<const ROWS: usize>(tile: &Tile) {
    // SAFETY: as above.
    unsafe {
        let mut sums = load::<ROWS>(tile);
        for unit in 0..tile.units {
            let panel = tile.panel.add(unit * tile.panel_step).cast::<f32>();
            let columns: [__m512; ACROSS] = std::array::from_fn(|part| _mm512_loadu_ps(panel.add(16 * part)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(tile.rows.add(row * tile.row_step + unit).cast::<f32>().read_unaligned());
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
unsafe fn load<const ROWS: usize>(tile: &Tile) -> [[__m512; ACROSS]; ROWS] {
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
unsafe fn store<const ROWS: usize>(tile: &Tile, sums: &[[__m512; ACROSS]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(tile.sums.add(row * tile.sums_step + 16 * part), *sum) };
        }
    }
}
