//! The micro-kernel with AVX2 and FMA: a panel is walked in four strips of two registers, so that six rows of sums stay
//! in the 16 registers there are. Each sum is made in the same order as with AVX-512, so the bits are the same.

use std::arch::x86_64::*;

use super::{STRIP, Tile, with_height};

/// # Safety
/// The processor has AVX2 and FMA; the pointers of `tile` are good for rows of f32.
pub unsafe fn f32_tile(tile: &Tile) {
    for strip in 0..tile.strips {
        // SAFETY: the caller's promise, which holds for the rest of the columns too.
        unsafe {
            let tile =
                Tile { panel: tile.panel.add(strip * tile.steps.strip), sums: tile.sums.add(strip * STRIP), ..*tile };
            with_height!(f32_strip; &tile);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn f32_strip<const ROWS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise covers every address below.
    unsafe {
        let mut sums = load::<ROWS>(tile);
        for unit in 0..tile.units {
            let panel = tile.panel.add(unit * tile.steps.unit).cast::<f32>();
            let columns = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(8))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(tile.rows.add(row * tile.row_step + unit).cast::<f32>().read_unaligned());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm256_fmadd_ps(a, column, *sum);
                }
            }
        }
        store(tile, &sums);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const ROWS: usize>(tile: &Tile) -> [[__m256; 2]; ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    if tile.goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's sums have a strip in each row.
                *sum = unsafe { _mm256_loadu_ps(tile.sums.add(row * tile.sums_step + 8 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const ROWS: usize>(tile: &Tile, sums: &[[__m256; 2]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(tile.sums.add(row * tile.sums_step + 8 * part), *sum) };
        }
    }
}
