//! The micro-kernel for any processor: plain loops over columns, which the compiler makes as wide as it can.

use super::{STRIP, Tile};

/// # Safety
/// The pointers of `tile` are good for rows of f32.
pub unsafe fn f32_tile(tile: &Tile) {
    for strip in 0..tile.strips {
        for row in 0..tile.height {
            // SAFETY: the caller's promise holds for each strip and row.
            unsafe {
                let (rows, sums) = (tile.rows.add(row * tile.row_step), tile.sums.add(row * tile.sums_step));
                let panel = tile.panel.add(strip * tile.steps.strip);
                f32_strip(&Tile { rows, panel, sums: sums.add(strip * STRIP), ..*tile });
            }
        }
    }
}

/// One row, one strip.
unsafe fn f32_strip(tile: &Tile) {
    // SAFETY: the caller's sums have a strip.
    let out = unsafe { &mut *tile.sums.cast::<[f32; STRIP]>() };
    let mut sums = if tile.goes_on { *out } else { [0.0; STRIP] };
    for unit in 0..tile.units {
        // SAFETY: the caller's promise covers every unit and column that is named here.
        let (a, panel) = unsafe {
            let a = tile.rows.add(unit).cast::<f32>().read_unaligned();
            (a, tile.panel.add(unit * tile.steps.unit).cast::<[f32; STRIP]>().read_unaligned())
        };
        for (sum, column) in sums.iter_mut().zip(panel) {
            *sum += a * column;
        }
    }
    *out = sums;
}
