//! The micro-kernel: a few rows ([`height`]) times one panel of [`WIDTH`] columns, sums in registers.
//!
//! A panel holds 64 columns of a weight: for each unit of depth ([`Unit`]) the 64 columns side by side, or strip after strip
//! of 16 of them ([`Steps`]). Every level of instructions adds along the depth from the first number to the last, so that a
//! row's sum does not depend on how many rows stand beside it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Isa;
use super::unit::{Unit, Units};

/// Rows of sums in registers that hold numbers: 6 rows of 4 wide sums and the panel's 4 fit into the 32 of AVX-512.
const ROWS: usize = 6;
/// Rows of sums in registers that hold tiles: two of them.
const TILE_ROWS: usize = 32;
/// Rows that a kernel of tiles asks for while it multiplies others with a panel.
pub const ROWS_AHEAD: usize = 12;
/// Columns of a panel.
pub const WIDTH: usize = 64;

/// Columns that any level computes side by side: of a panel of which fewer are of use, so many at a time are left out.
const STRIP: usize = 16;

/// Rows that a micro-kernel takes at a time.
pub fn height(unit: Unit) -> usize {
    match unit {
        Unit::F32 | Unit::Bf16Pair | Unit::Bf16Widened => ROWS,
        Unit::Bf16Tile => TILE_ROWS,
    }
}

/// Rows of each tile that so many are cut into: equal ones, since one of a row or two waits for its own sums.
pub fn even_height(unit: Unit, count: usize) -> usize {
    match unit {
        Unit::F32 | Unit::Bf16Pair | Unit::Bf16Widened => count.div_ceil(count.div_ceil(ROWS).max(1)).max(1),
        Unit::Bf16Tile => TILE_ROWS,
    }
}

/// Where a panel's columns lie: how many units of 32 bits apart.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// From one unit of depth to the next.
    pub unit: usize,
    /// From one strip of 16 columns to the next.
    strip: usize,
}

impl Steps {
    /// All 64 columns of a unit side by side.
    pub fn side_by_side(unit: usize) -> Steps {
        Steps { unit, strip: STRIP }
    }

    /// As a panel of so many units is best packed. AVX-512 has registers for sums of all 64 columns. The others, tiles among
    /// them, go along the depth once for each strip or two, and read it fastest where it lies in one piece.
    pub fn packed((isa, unit): (Isa, Unit), units: usize) -> Steps {
        match (isa, unit) {
            (_, Unit::Bf16Tile) | (Isa::Avx2 | Isa::Portable, _) => Steps { unit: STRIP, strip: units * STRIP },
            (Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512, _) => Steps::side_by_side(WIDTH),
        }
    }

    /// The place of a column.
    pub fn at(self, unit: usize, column: usize) -> usize {
        unit * self.unit + column / STRIP * self.strip + column % STRIP
    }

    /// Columns that lie side by side.
    pub fn run(self) -> usize {
        if self.strip == STRIP { WIDTH } else { STRIP }
    }

    /// How long a panel of so many units is.
    fn length(self, units: usize) -> usize {
        if units == 0 { 0 } else { self.at(units - 1, WIDTH - 1) + 1 }
    }
}

/// A panel in memory, read as it lies.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    pub units: Units<'a>,
    pub steps: Steps,
}

impl Panel<'_> {
    /// One of so many units, packed as [`Steps::packed`] says.
    pub fn packed(how: (Isa, Unit), panel: &[u32], units: usize) -> Panel<'_> {
        let steps = Steps::packed(how, units);
        Panel { units: Units::of(panel, steps.unit), steps }
    }
}

/// Calls `$kernel::<height>`, or `$kernel::<height, width>`, for a height known only at run time.
#[cfg(target_arch = "x86_64")]
macro_rules! with_height {
    ($kernel:ident $(, $width:literal)?; $tile:expr) => {
        match $tile.height {
            1 => $kernel::<1 $(, $width)?>($tile),
            2 => $kernel::<2 $(, $width)?>($tile),
            3 => $kernel::<3 $(, $width)?>($tile),
            4 => $kernel::<4 $(, $width)?>($tile),
            5 => $kernel::<5 $(, $width)?>($tile),
            _ => $kernel::<6 $(, $width)?>($tile),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use with_height;

/// What a tile reads and writes. Nothing needs to be aligned.
#[derive(Clone, Copy)]
struct Tile {
    /// 1 to [`height`].
    height: usize,
    /// Strips of columns that are wanted, 1 to 4; sums of the others may be left as they are.
    strips: usize,
    /// First of the rows, `row_step` of their units apart, each as deep as the panel.
    rows: *const u32,
    row_step: usize,
    /// The panel, whose columns lie as `steps` says.
    panel: *const u32,
    steps: Steps,
    units: usize,
    /// Sums: rows of 64, `sums_step` apart.
    sums: *mut f32,
    sums_step: usize,
    /// Begin with what `sums` holds, not with 0.
    goes_on: bool,
    /// Rows that come next, `row_step` apart: a hint, which may point anywhere.
    ahead: *const u32,
}

/// Computes a tile, whose pointers are good for what it says.
type Kernel = unsafe fn(&Tile);

fn kernel(isa: Isa, unit: Unit) -> Kernel {
    match (isa, unit) {
        #[cfg(target_arch = "x86_64")]
        (Isa::AmxBf16, Unit::Bf16Tile) => amx::pair_tile,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, Unit::Bf16Pair) => avx512::pair_tile,
        #[cfg(target_arch = "x86_64")]
        (Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512, Unit::F32) => avx512::f32_tile,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Unit::F32) => avx2::f32_tile,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Unit::Bf16Widened) => avx2::widened_tile,
        #[cfg(not(target_arch = "x86_64"))]
        (Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2, Unit::F32) => portable::f32_tile,
        (Isa::Portable, Unit::F32) => portable::f32_tile,
        (_, Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile) => {
            unreachable!("{isa:?} multiplies no {unit:?}: see Unit::of")
        }
    }
}

/// `count` rows against the first `columns` of one panel of `units` units of depth, tile after tile.
///
/// At a level that packs panels side by side ([`Steps::packed`]) all have to lie so.
/// `unit` is what [`Unit::of`] says; `sums`: (count, 64), `sums_step` apart, of which columns that are not wanted hold
/// nothing of meaning. `ahead`: rows as far apart that come next, [`ROWS_AHEAD`] of which a kernel of tiles asks for meanwhile.
pub fn multiply(
    (isa, unit): (Isa, Unit),
    (rows, count): (Units, usize),
    (panel, columns, units): (Panel, usize, usize),
    (sums, sums_step): (&mut [f32], usize),
    goes_on: bool,
    ahead: Option<*const u32>,
) {
    let length = units * unit.numbers() / unit.of_rows().numbers();
    assert!(rows.has(count, length) && panel.units.holds(panel.steps.length(units)) && (1..=WIDTH).contains(&columns));
    assert!(count == 0 || sums.len() >= (count - 1) * sums_step + WIDTH);
    assert!(
        panel.steps.strip == STRIP || Steps::packed((isa, unit), units).strip != STRIP,
        "{isa:?} takes all columns at once"
    );
    assert!(unit != Unit::Bf16Tile || (units > 0 && units.is_multiple_of(STRIP)), "{units} units are no whole tiles");
    let (kernel, height) = (kernel(isa, unit), even_height(unit, count));
    for first in (0..count).step_by(height) {
        let tile = Tile {
            height: height.min(count - first),
            strips: columns.div_ceil(STRIP),
            rows: rows.from(first * rows.step).as_ptr(),
            row_step: rows.step,
            panel: panel.units.as_ptr(),
            steps: panel.steps,
            units,
            sums: sums[first * sums_step..].as_mut_ptr(),
            sums_step,
            goes_on,
            ahead: ahead.unwrap_or(rows.as_ptr()),
        };
        // SAFETY: the bounds above hold for every tile; the level is one this processor has.
        unsafe { kernel(&tile) };
    }
}
