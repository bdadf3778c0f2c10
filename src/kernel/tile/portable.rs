//! The micro-kernel for any processor: plain loops over columns, which the compiler makes as wide as it can.

use half::bf16;

use super::{Tile, WIDTH};
use crate::kernel::Element;

/// # Safety
/// The pointers of `tile` are good for `height` rows.
pub unsafe fn f32_tile(height: usize, tile: &Tile<f32>) {
    for row in 0..height {
        // SAFETY: the caller's promise covers every row, group and column that is named here.
        unsafe {
            add_row(tile, row, |sums, group| {
                let a = *tile.rows.add(row * tile.row_step + group);
                let panel = tile.panel.add(group * tile.panel_step);
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum += a * *panel.add(column);
                }
            });
        }
    }
}

/// # Safety
/// The pointers of `tile` are good for `height` rows.
pub unsafe fn bf16_tile(height: usize, tile: &Tile<bf16>) {
    for row in 0..height {
        // SAFETY: as above.
        unsafe {
            add_row(tile, row, |sums, group| {
                let pair = tile.rows.add(row * tile.row_step + 2 * group);
                let (a, b) = ((*pair).to_f32(), (*pair.add(1)).to_f32());
                let panel = tile.panel.add(group * tile.panel_step);
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum += a * Element::to_f32(*panel.add(2 * column));
                    *sum += b * Element::to_f32(*panel.add(2 * column + 1));
                }
            });
        }
    }
}

/// Runs `add` for every group over one row's sums.
unsafe fn add_row<E>(tile: &Tile<E>, row: usize, add: impl Fn(&mut [f32; WIDTH], usize)) {
    // SAFETY: the caller's sums have 64 numbers for this row.
    let out = unsafe { &mut *tile.sums.add(row * tile.sums_step).cast::<[f32; WIDTH]>() };
    let mut sums = if tile.goes_on { *out } else { [0.0; WIDTH] };
    (0..tile.groups).for_each(|group| add(&mut sums, group));
    *out = sums;
}
