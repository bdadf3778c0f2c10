//! The micro-kernel for any processor: plain loops over columns, which the compiler makes as wide as it can.

use super::{Tile, WIDTH};

/// # Safety
/// The pointers of `tile` are good for rows of f32.
pub unsafe fn f32_tile(tile: &Tile) {
    for row in 0..tile.height {
        // SAFETY: the caller's sums have 64 numbers for this row.
        let out = unsafe { &mut *tile.sums.add(row * tile.sums_step).cast::<[f32; WIDTH]>() };
        let mut sums = if tile.goes_on { *out } else { [0.0; WIDTH] };
        for unit in 0..tile.units {
            // SAFETY: the caller's promise covers every row, unit and column that is named here.
            let (a, panel) = unsafe {
                let a = tile.rows.add(row * tile.row_step + unit).cast::<f32>().read_unaligned();
                (a, tile.panel.add(unit * tile.panel_step).cast::<[f32; WIDTH]>().read_unaligned())
            };
            for (sum, column) in sums.iter_mut().zip(panel) {
                *sum += a * column;
            }
        }
        *out = sums;
    }
}
