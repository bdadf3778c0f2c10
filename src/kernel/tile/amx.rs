//! The micro-kernel with AMX: 32 rows times 32 columns of a panel, four tiles of sums in registers, two of rows and two of
//! columns beside them.
//!
//! A tile register is 16 lines of 64 bytes: 16 sums of 16 rows, 16 pairs of bf16 of 16 rows, or of 16 columns (a strip) the
//! pairs of 16 depths. Each instruction adds 32 products to every sum: those of even depths one after another, those of odd
//! depths likewise, then the two to the sum (Intel's manual of instructions, TDPBF16PS); so a row's sum is its own.
//! The compiler has no stable names for tiles, hence instructions as text: registers live within one block of it.

use std::arch::asm;
use std::cell::Cell;

use super::{ROWS_AHEAD, STRIP, Tile};

/// Rows of a tile, and units of depth.
const SIDE: usize = 16;
/// Bytes of a unit: addresses are counted in bytes here.
const UNIT_BYTES: usize = 4;

/// How tile registers are cut (palette 1 of the manual's volume 1, section 18.2).
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// The height that this thread's registers are cut for. Nothing else in this program uses them.
    static CUT_FOR: Cell<usize> = const { Cell::new(0) };
}

/// Cuts this thread's registers for tiles of so many rows: the first 16 in registers 0, 1 and 4, the others in 2, 3 and 5.
#[inline]
fn cut_for(height: usize) {
    if CUT_FOR.replace(height) == height {
        return;
    }
    let (upper, lower) = (height.min(SIDE) as u8, height.saturating_sub(SIDE).max(1) as u8);
    let mut shape = Shape { palette: 1, start_row: 0, reserved: [0; 14], bytes_of_a_row: [0; 16], rows: [0; 16] };
    shape.bytes_of_a_row[..8].fill((SIDE * UNIT_BYTES) as u16);
    shape.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, SIDE as u8, SIDE as u8]);
    // SAFETY: whoever computes a tile has the registers; the shape is one of palette 1.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &shape, options(nostack, readonly)) };
}

/// # Safety
/// The processor has AMX and the system lets this process use it; the pointers of `tile` are good for rows of pairs, whose
/// depth is whole tiles.
pub unsafe fn pair_tile(tile: &Tile) {
    cut_for(tile.height);
    for strip in (0..tile.strips).step_by(2) {
        // SAFETY: the caller's promise: a panel has four strips.
        unsafe {
            let panel = tile.panel.add(strip * tile.steps.strip);
            let ahead = tile.ahead.wrapping_add(strip / 2 * (ROWS_AHEAD / 2) * tile.row_step);
            let tile = Tile { panel, ahead, sums: tile.sums.add(strip * STRIP), ..*tile };
            if tile.height > SIDE { two_by_two(&tile) } else { one_by_two(&tile) }
        }
    }
}

/// More than 16 rows times two strips. At each step of depth a line of six of the rows to come is asked for: asked for all
/// at once they would take every place that lines are waited for in, and tiles would wait behind them.
unsafe fn two_by_two(tile: &Tile) {
    let lower_sums = tile.sums.wrapping_add(SIDE * tile.sums_step);
    // SAFETY: the caller's promise covers every address: rows beyond the height are not touched.
    unsafe {
        asm!(
            "test {goes_on:e}, {goes_on:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{upper_sums} + {sums_step}]",
            "tileloadd tmm1, [{upper_sums} + {sums_step} + 64]",
            "tileloadd tmm2, [{lower_sums} + {sums_step}]",
            "tileloadd tmm3, [{lower_sums} + {sums_step} + 64]",
            "3:",
            "tileloadd tmm4, [{upper} + {row_step}]",
            "tileloadd tmm6, [{first} + {unit_step}]",
            "tileloadd tmm7, [{second} + {unit_step}]",
            "tileloadd tmm5, [{lower} + {row_step}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{ahead}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{ahead} + {row_step}]",
            "prefetcht1 [{ahead} + 2*{row_step}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{further_ahead}]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{further_ahead} + {row_step}]",
            "prefetcht1 [{further_ahead} + 2*{row_step}]",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {ahead}, 64",
            "add {further_ahead}, 64",
            "add {first}, {tile_step}",
            "add {second}, {tile_step}",
            "dec {depth}",
            "jnz 3b",
            "tilestored [{upper_sums} + {sums_step}], tmm0",
            "tilestored [{upper_sums} + {sums_step} + 64], tmm1",
            "tilestored [{lower_sums} + {sums_step}], tmm2",
            "tilestored [{lower_sums} + {sums_step} + 64], tmm3",
            upper = inout(reg) tile.rows => _,
            lower = inout(reg) tile.rows.wrapping_add(SIDE * tile.row_step) => _,
            row_step = in(reg) tile.row_step * UNIT_BYTES,
            ahead = inout(reg) tile.ahead => _,
            further_ahead = inout(reg) tile.ahead.wrapping_add(ROWS_AHEAD / 4 * tile.row_step) => _,
            first = inout(reg) tile.panel => _,
            second = inout(reg) tile.panel.wrapping_add(tile.steps.strip) => _,
            unit_step = in(reg) tile.steps.unit * UNIT_BYTES,
            tile_step = in(reg) SIDE * tile.steps.unit * UNIT_BYTES,
            depth = inout(reg) tile.units / SIDE => _,
            upper_sums = in(reg) tile.sums,
            lower_sums = in(reg) lower_sums,
            sums_step = in(reg) tile.sums_step * UNIT_BYTES,
            goes_on = in(reg) u32::from(tile.goes_on),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// At most 16 rows times two strips.
unsafe fn one_by_two(tile: &Tile) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "test {goes_on:e}, {goes_on:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{sums} + {sums_step}]",
            "tileloadd tmm1, [{sums} + {sums_step} + 64]",
            "3:",
            "tileloadd tmm4, [{rows} + {row_step}]",
            "tileloadd tmm6, [{first} + {unit_step}]",
            "tileloadd tmm7, [{second} + {unit_step}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {rows}, 64",
            "add {first}, {tile_step}",
            "add {second}, {tile_step}",
            "dec {depth}",
            "jnz 3b",
            "tilestored [{sums} + {sums_step}], tmm0",
            "tilestored [{sums} + {sums_step} + 64], tmm1",
            rows = inout(reg) tile.rows => _,
            row_step = in(reg) tile.row_step * UNIT_BYTES,
            first = inout(reg) tile.panel => _,
            second = inout(reg) tile.panel.wrapping_add(tile.steps.strip) => _,
            unit_step = in(reg) tile.steps.unit * UNIT_BYTES,
            tile_step = in(reg) SIDE * tile.steps.unit * UNIT_BYTES,
            depth = inout(reg) tile.units / SIDE => _,
            sums = in(reg) tile.sums,
            sums_step = in(reg) tile.sums_step * UNIT_BYTES,
            goes_on = in(reg) u32::from(tile.goes_on),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
