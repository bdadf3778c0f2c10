//! The micro-kernel with AVX-512: a register a strip, four registers a row of a whole panel.

use std::arch::x86_64::*;

use super::{Tile, with_height};

/// Calls `$kernel::<height, strips>`.
macro_rules! with_shape {
    ($kernel:ident, $tile:expr) => {
        match $tile.strips {
            1 => with_height!($kernel, 1; $tile),
            2 => with_height!($kernel, 2; $tile),
            3 => with_height!($kernel, 3; $tile),
            _ => with_height!($kernel, 4; $tile),
        }
    };
}

/// # Safety
/// The processor has AVX-512 and its BF16 extension; the pointers of `tile` are good for rows of pairs.
pub unsafe fn pair_tile(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_shape!(pair_rows, tile) }
}

/// # Safety
/// The processor has AVX-512; the pointers of `tile` are good for rows of f32.
pub unsafe fn f32_tile(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_shape!(f32_rows, tile) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair_rows<const ROWS: usize, const STRIPS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise covers every address below.
    unsafe {
        let mut sums = load::<ROWS, STRIPS>(tile);
        for unit in 0..tile.units {
            let panel = tile.panel.add(unit * tile.steps.unit);
            let columns: [__m512i; STRIPS] =
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
unsafe fn f32_rows<const ROWS: usize, const STRIPS: usize>(tile: &Tile) {
    // SAFETY: as above.
    unsafe {
        let mut sums = load::<ROWS, STRIPS>(tile);
        for unit in 0..tile.units {
            let panel = tile.panel.add(unit * tile.steps.unit).cast::<f32>();
            let columns: [__m512; STRIPS] = std::array::from_fn(|part| _mm512_loadu_ps(panel.add(16 * part)));
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
unsafe fn load<const ROWS: usize, const STRIPS: usize>(tile: &Tile) -> [[__m512; STRIPS]; ROWS] {
    let mut sums = [[_mm512_setzero_ps(); STRIPS]; ROWS];
    if tile.goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's sums have these strips in each row.
                *sum = unsafe { _mm512_loadu_ps(tile.sums.add(row * tile.sums_step + 16 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize, const STRIPS: usize>(tile: &Tile, sums: &[[__m512; STRIPS]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(tile.sums.add(row * tile.sums_step + 16 * part), *sum) };
        }
    }
}
