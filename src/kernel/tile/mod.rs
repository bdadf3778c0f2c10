//! The micro-kernel: up to [`HEIGHT`] rows times one panel of [`WIDTH`] columns, sums in registers.
//!
//! A panel holds 64 columns of a weight: for each group of depth the 64 columns side by side, each with
//! [`Element::GROUP`] numbers (pairs of bf16, single f32), 32 bits a column. Rows are read where they lie.
//! Every level of instructions adds along the depth from the first number to the last, so that a row's sum does not
//! depend on how many rows stand beside it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

use super::{Element, Isa};

/// Rows of a tile: 6 rows of 4 wide sums and the panel's 4 fit into 32 registers.
pub const HEIGHT: usize = 6;
/// Columns of a panel.
pub const WIDTH: usize = 64;

/// Calls `$kernel::<height>` for a height known only at run time.
#[cfg(target_arch = "x86_64")]
macro_rules! with_height {
    ($kernel:ident, $height:expr, $($argument:expr),+) => {
        match $height {
            1 => $kernel::<1>($($argument),+),
            2 => $kernel::<2>($($argument),+),
            3 => $kernel::<3>($($argument),+),
            4 => $kernel::<4>($($argument),+),
            5 => $kernel::<5>($($argument),+),
            _ => $kernel::<6>($($argument),+),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use with_height;

/// What a tile reads and writes.
#[derive(Clone, Copy)]
pub struct Tile<E> {
    /// First of the rows, `row_step` numbers apart, each at least `groups * E::GROUP` long.
    pub rows: *const E,
    pub row_step: usize,
    /// The panel; from one group of depth to the next it is `panel_step` numbers.
    pub panel: *const E,
    pub panel_step: usize,
    pub groups: usize,
    /// Sums: rows of 64, `sums_step` apart.
    pub sums: *mut f32,
    pub sums_step: usize,
    /// Begin with what `sums` holds, not with 0.
    pub goes_on: bool,
}

/// Computes a tile of so many rows (1 to [`HEIGHT`]).
pub type Kernel<E> = unsafe fn(usize, &Tile<E>);

/// The f32 kernel of a level.
pub fn f32_kernel(isa: Isa) -> Kernel<f32> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512 => avx512::f32_tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::f32_tile,
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => portable::f32_tile,
        Isa::Portable => portable::f32_tile,
    }
}

/// The bf16 kernel of a level; without the extension the numbers are widened (exactly) and multiplied in f32.
pub fn bf16_kernel(isa: Isa) -> Kernel<bf16> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => avx512::bf16_tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::widened_bf16_tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::bf16_tile,
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => portable::bf16_tile,
        Isa::Portable => portable::bf16_tile,
    }
}

/// Rows against one panel of `groups` groups, tile after tile.
///
/// `rows`: `count` of them, `row_step` apart; `sums`: (count, 64), `sums_step` apart.
pub fn multiply<E: Element>(
    isa: Isa,
    (rows, row_step, count): (&[E], usize, usize),
    (panel, panel_step, groups): (&[E], usize, usize),
    (sums, sums_step): (&mut [f32], usize),
    goes_on: bool,
) {
    assert!(count == 0 || groups == 0 || rows.len() >= (count - 1) * row_step + groups * E::GROUP);
    assert!(groups == 0 || panel.len() >= (groups - 1) * panel_step + WIDTH * E::GROUP);
    assert!(count == 0 || sums.len() >= (count - 1) * sums_step + WIDTH);
    let kernel = E::kernel(isa);
    for first in (0..count).step_by(HEIGHT) {
        let tile = Tile {
            rows: rows[first * row_step..].as_ptr(),
            row_step,
            panel: panel.as_ptr(),
            panel_step,
            groups,
            sums: sums[first * sums_step..].as_mut_ptr(),
            sums_step,
            goes_on,
        };
        // SAFETY: the three bounds above hold for every tile; the level is one this processor has.
        unsafe { kernel(HEIGHT.min(count - first), &tile) };
    }
}
