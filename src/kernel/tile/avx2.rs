//! The micro-kernels with AVX2 and FMA: a panel is walked in four strips of two registers, so that six rows of sums stay in
//! the 16 registers there are. Each sum is made in the same order as with AVX-512, so the bits are the same.
//!
//! Pairs of bf16 are widened between two loads and their use, which costs nothing while registers wait to be multiplied: a
//! panel of pairs is half as long as one of f32.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{STRIP, Tile, with_height};

/// Numbers of depth of a turn of the loop.
const UNROLLED: usize = 4;

/// # Safety
/// The processor has AVX2 and FMA; the pointers of `tile` are good for rows of f32 and a panel of f32.
pub unsafe fn f32_tile(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(strips, false; tile) }
}

/// # Safety
/// As above, with a panel of pairs and rows of twice as many f32.
pub unsafe fn widened_tile(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { with_height!(strips, true; tile) }
}

/// Strip after strip; `PAIRS`: a unit of the panel is two bf16.
#[target_feature(enable = "avx2,fma")]
unsafe fn strips<const ROWS: usize, const PAIRS: bool>(tile: &Tile) {
    let numbers = if PAIRS { 2 } else { 1 };
    let units_a_turn = UNROLLED / numbers;
    for strip in 0..tile.strips {
        // SAFETY: the caller's promise covers every address below.
        unsafe {
            let (mut rows, mut panel) = (tile.rows.cast::<f32>(), tile.panel.add(strip * tile.steps.strip));
            let mut sums = load::<ROWS>(tile, strip);
            for _ in 0..tile.units / units_a_turn {
                for unit in 0..units_a_turn {
                    let (rows, panel) = (rows.add(unit * numbers), panel.add(unit * tile.steps.unit));
                    add_unit::<ROWS, PAIRS>(&mut sums, (rows, tile.row_step), panel);
                }
                (rows, panel) = (rows.add(UNROLLED), panel.add(units_a_turn * tile.steps.unit));
            }
            for _ in 0..tile.units % units_a_turn {
                add_unit::<ROWS, PAIRS>(&mut sums, (rows, tile.row_step), panel);
                (rows, panel) = (rows.add(numbers), panel.add(tile.steps.unit));
            }
            store(tile, strip, &sums);
        }
    }
}

/// Adds what a unit of the panel's strip gives.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_unit<const ROWS: usize, const PAIRS: bool>(
    sums: &mut [[__m256; 2]; ROWS],
    (rows, step): (*const f32, usize),
    panel: *const u32,
) {
    // SAFETY: the caller's promise: a strip is 16 units wide.
    unsafe {
        let halves = [panel, panel.add(8)];
        if PAIRS {
            add(sums, (rows, step), halves.map(|half| low_of_pairs(half)));
            add(sums, (rows.add(1), step), halves.map(|half| high_of_pairs(half)));
        } else {
            add(sums, (rows, step), halves.map(|half| _mm256_loadu_ps(half.cast())));
        }
    }
}

/// The first numbers of 8 pairs.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn low_of_pairs(pairs: *const u32) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(unsafe { _mm256_loadu_si256(pairs.cast()) }))
}

/// The second numbers of 8 pairs, read anew: to keep the pairs would take registers that the sums need, and the compiler keeps
/// them unless it can't see that both are the same.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn high_of_pairs(pairs: *const u32) -> __m256 {
    let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
    let high;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "vandps {high}, {mask}, ymmword ptr [{pairs}]",
            high = lateout(ymm_reg) high,
            mask = in(ymm_reg) mask,
            pairs = in(reg) pairs,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    high
}

/// Adds the products of a number of each row with 16 columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const ROWS: usize>(
    sums: &mut [[__m256; 2]; ROWS],
    (rows, step): (*const f32, usize),
    columns: [__m256; 2],
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let number = _mm256_set1_ps(unsafe { rows.add(row * step).read_unaligned() });
        for (sum, column) in sums.iter_mut().zip(columns) {
            *sum = _mm256_fmadd_ps(number, column, *sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const ROWS: usize>(tile: &Tile, strip: usize) -> [[__m256; 2]; ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    if tile.goes_on {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's sums have this strip in each row.
                *sum = unsafe { _mm256_loadu_ps(tile.sums.add(row * tile.sums_step + strip * STRIP + 8 * part)) };
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const ROWS: usize>(tile: &Tile, strip: usize, sums: &[[__m256; 2]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(tile.sums.add(row * tile.sums_step + strip * STRIP + 8 * part), *sum) };
        }
    }
}
