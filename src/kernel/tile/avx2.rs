//! The micro-kernel with AVX2 and FMA: a panel is walked in four strips of two registers, so that six rows of sums stay
//! in the 16 registers there are. Each sum is made in the same order as with AVX-512, so the bits are the same.

use std::arch::x86_64::*;

use half::bf16;

use super::{Tile, with_height};

/// Columns of a strip.
const STRIP: usize = 16;

/// # Safety
/// The processor has AVX2 and FMA; the pointers of `tile` are good for `height` rows.
pub unsafe fn f32_tile(height: usize, tile: &Tile<f32>) {
    for strip in 0..4 {
        // SAFETY: the caller's promise.
        unsafe { with_height!(f32_strip, height, tile, strip * STRIP) };
    }
}

/// # Safety
/// The processor has AVX2 and FMA; the pointers of `tile` are good for `height` rows.
pub unsafe fn bf16_tile(height: usize, tile: &Tile<bf16>) {
    for strip in 0..4 {
        // SAFETY: the caller's promise.
        unsafe { with_height!(bf16_strip, height, tile, strip * STRIP) };
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn f32_strip<const ROWS: usize>(tile: &Tile<f32>, column: usize) {
    // SAFETY: the caller's promise covers every address below.
    unsafe {
        let mut sums = load::<ROWS, _>(tile, column);
        for group in 0..tile.groups {
            let panel = tile.panel.add(group * tile.panel_step + column);
            let columns = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(8))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*tile.rows.add(row * tile.row_step + group));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm256_fmadd_ps(a, column, *sum);
                }
            }
        }
        store(tile, column, &sums);
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn bf16_strip<const ROWS: usize>(tile: &Tile<bf16>, column: usize) {
    // SAFETY: as above.
    unsafe {
        let mut sums = load::<ROWS, _>(tile, column);
        let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
        for group in 0..tile.groups {
            let panel = tile.panel.add(group * tile.panel_step + 2 * column).cast::<__m256i>();
            let pairs = [_mm256_loadu_si256(panel), _mm256_loadu_si256(panel.add(1))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = tile.rows.add(row * tile.row_step + 2 * group);
                let (a, b) = (_mm256_set1_ps((*pair).to_f32()), _mm256_set1_ps((*pair.add(1)).to_f32()));
                for (sum, pairs) in sums.iter_mut().zip(pairs) {
                    *sum = _mm256_fmadd_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), *sum);
                    *sum = _mm256_fmadd_ps(b, _mm256_castsi256_ps(_mm256_and_si256(pairs, high)), *sum);
                }
            }
        }
        store(tile, column, &sums);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const ROWS: usize, E>(tile: &Tile<E>, column: usize) -> [[__m256; 2]; ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    if tile.goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's sums have 64 numbers in each row.
                *sum = unsafe { _mm256_loadu_ps(tile.sums.add(row * tile.sums_step + column + 8 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const ROWS: usize, E>(tile: &Tile<E>, column: usize, sums: &[[__m256; 2]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(tile.sums.add(row * tile.sums_step + column + 8 * part), *sum) };
        }
    }
}
