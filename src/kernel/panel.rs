//! Packing: 64 rows of a matrix, whatever they are stored as, become the 64 columns of a panel.
//!
//! One transposition of 32 bits serves all: an f32, a pair of bf16 that stays one, a pair that becomes two f32.

use std::ops::Range;

use super::element::bytes_of;
use super::isa::for_every_isa;
#[cfg(target_arch = "x86_64")]
use super::lines::CACHE_LINE;
use super::rows::round;
use super::tile::{Steps, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::unit::prefetch_line;
use super::unit::{Unit, lay, prefetch};
use super::{Element, Isa, Matrix};

/// Rows that are asked for before they are read across: they lie far apart.
const AHEAD: usize = 8;
/// Rows that are transposed side by side.
pub const SIDE: usize = 16;
/// Groups of a row in a line of the cache, and how many are asked for before they are read.
#[cfg(target_arch = "x86_64")]
const GROUPS_A_LINE: usize = CACHE_LINE / 4;
#[cfg(target_arch = "x86_64")]
const GROUPS_AHEAD: usize = 8 * GROUPS_A_LINE;

/// Buffers of one thread, reused from panel to panel.
#[derive(Default)]
pub struct Packing<E> {
    decoded: Vec<f32>,
    rows: Vec<E>,
}

impl<E: Element> Packing<E> {
    /// Packs columns `from..to` of the 64 rows from `first` on into `panel`: (units, 64), laid as [`Steps::packed`] says,
    /// where rows beyond the last are 0, and so is what fills up the depth.
    pub fn pack(
        &mut self,
        (isa, unit): (Isa, Unit),
        matrix: &Matrix,
        first: usize,
        (from, to): (usize, usize),
        panel: &mut [u32],
    ) {
        let depth = (to - from).next_multiple_of(unit.depth::<E>());
        let groups = depth / E::GROUP;
        assert_eq!(panel.len(), unit.count::<E>(to - from) * WIDTH);
        let is_whole = first + WIDTH <= matrix.rows && depth == to - from;
        let (source, row_bytes) = match matrix.stored_as::<E>(first, from).filter(|_| is_whole) {
            Some(bytes) => (bytes, 4 / E::GROUP * matrix.columns),
            None => (self.decode(isa, matrix, first, (from, to), depth), 4 * groups),
        };
        assert!(source.len() >= (WIDTH - 1) * row_bytes + 4 * groups);
        let steps = Steps::packed((isa, unit), unit.count::<E>(to - from));
        let (source, panel) = (source.as_ptr(), panel.as_mut_ptr());
        // SAFETY: the assertions cover every row of both.
        match unit.is_held_as::<E>() {
            true => unsafe { transpose::<false>(isa, (source, row_bytes), groups, (panel, steps)) },
            false => unsafe { transpose::<true>(isa, (source, row_bytes), groups, (panel, steps)) },
        }
    }

    /// Packs rows `from..to` of some columns into panels of a product with the matrix transposed: (panels, units, 64), laid
    /// as [`Steps::packed`] says, where columns beyond the last are 0, and so is what fills up the depth. A row is
    /// read once for all panels.
    pub fn pack_across(
        &mut self,
        (isa, unit): (Isa, Unit),
        matrix: &Matrix,
        columns: Range<usize>,
        (from, to): (usize, usize),
        panels: &mut [u32],
    ) {
        let width = columns.len().next_multiple_of(WIDTH);
        let size = unit.count::<E>(to - from) * WIDTH;
        assert_eq!(panels.len(), width / WIDTH * size);
        self.rows.clear();
        self.rows.resize(E::GROUP * width, E::default());
        let (of_group, steps) = (E::GROUP / unit.numbers(), Steps::packed((isa, unit), unit.count::<E>(to - from)));
        for group in 0..(to - from).next_multiple_of(unit.depth::<E>()) / E::GROUP {
            for (lane, out) in self.rows.chunks_exact_mut(width).enumerate() {
                let row = from + group * E::GROUP + lane;
                if let Some(ahead) = matrix.stored_as::<E>((row + AHEAD).min(to - 1), columns.start) {
                    prefetch(&ahead[..columns.len() * size_of::<E>()]);
                }
                match row < to {
                    true => matrix.read_part(isa, row, columns.start, &mut self.decoded, &mut out[..columns.len()]),
                    false => out.fill(E::default()),
                }
            }
            for (index, panel) in panels.chunks_exact_mut(size).enumerate() {
                let rows = (&self.rows[index * WIDTH..], width);
                lay_group(isa, unit, rows, (group * of_group, steps), panel);
            }
        }
    }

    /// Fills `rows`, (64, depth), and gives them as they lie.
    fn decode(&mut self, isa: Isa, matrix: &Matrix, first: usize, (from, to): (usize, usize), depth: usize) -> &[u8] {
        self.decoded.resize(to - from, 0.0);
        self.rows.clear();
        self.rows.resize(WIDTH * depth, E::default());
        let present = WIDTH.min(matrix.rows - first);
        for (row, out) in self.rows.chunks_exact_mut(depth).enumerate().take(present) {
            matrix.decode_row(isa, first + row, from, &mut self.decoded);
            round(isa, &self.decoded, &mut out[..to - from]);
        }
        bytes_of(&self.rows)
    }
}

/// A group of rows, 64 numbers of each and `step` from one to the next, as the units from `first` on.
fn lay_group<E: Element>(
    isa: Isa,
    unit: Unit,
    (rows, step): (&[E], usize),
    (first, steps): (usize, Steps),
    panel: &mut [u32],
) {
    let run = steps.run();
    for column in (0..WIDTH).step_by(run) {
        match unit {
            Unit::F32 => {
                for (index, row) in rows.chunks(step).enumerate() {
                    lay(isa, &row[column..][..run], unit, &mut panel[steps.at(first + index, column)..][..run]);
                }
            }
            Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile => {
                let (one, two) = (&rows[column..][..run], &rows[step + column..][..run]);
                interleave(isa, one, two, &mut panel[steps.at(first, column)..][..run]);
            }
        }
    }
}

for_every_isa! {
    /// Two rows of bf16 to pairs.
    fn interleave<E: Element>(first: &[E], second: &[E], panel: &mut [u32]) {
        let both = bytes_of(first).as_chunks::<2>().0.iter().zip(bytes_of(second).as_chunks::<2>().0);
        for (pair, (first, second)) in panel.iter_mut().zip(both) {
            *pair = u32::from(u16::from_le_bytes(*first)) | u32::from(u16::from_le_bytes(*second)) << 16;
        }
    }
}

/// 64 rows of 32 bits a group, so many bytes apart, to `groups` rows of 64; `WIDEN`: each is a pair of bf16 and becomes two
/// rows of f32.
///
/// # Safety
/// `source` has 64 such rows of `groups` groups, `panel` room for as many units (`WIDEN`: twice) times 64.
unsafe fn transpose<const WIDEN: bool>(
    isa: Isa,
    (source, row_bytes): (*const u8, usize),
    groups: usize,
    (panel, steps): (*mut u32, Steps),
) {
    for strip in (0..WIDTH).step_by(SIDE) {
        let ahead = |group: usize| {
            #[cfg(target_arch = "x86_64")]
            ask_for((source, row_bytes), strip, group + GROUPS_AHEAD, groups);
            let _ = group;
        };
        // SAFETY: the strips are inside both, as the caller promises.
        unsafe {
            let (rows, columns) = (source.add(strip * row_bytes), panel.add(steps.at(0, strip)));
            transpose_strip::<WIDEN>(isa, (rows, row_bytes), groups, (columns, steps.unit), ahead);
        }
    }
}

/// 16 of these rows, to rows `step` units apart. `ahead` hears of each line of the cache that is begun.
///
/// # Safety
/// As above, of 16.
unsafe fn transpose_strip<const WIDEN: bool>(
    isa: Isa,
    (source, row_bytes): (*const u8, usize),
    groups: usize,
    (panel, step): (*mut u32, usize),
    ahead: impl Fn(usize),
) {
    let units_of_a_group = if WIDEN { 2 } else { 1 };
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if let Some((side, square)) = squares::<WIDEN>(isa) {
        done = groups / side * side;
        for group in (0..done).step_by(side) {
            if group % GROUPS_A_LINE == 0 {
                ahead(group);
            }
            for column in (0..SIDE).step_by(side) {
                // SAFETY: so many groups of so many rows from here on are inside both, as the caller promises.
                unsafe {
                    let from = source.add(column * row_bytes + 4 * group);
                    square(from, row_bytes, panel.add(units_of_a_group * group * step + column), step);
                }
            }
        }
    }
    let _ = (isa, ahead);
    for group in done..groups {
        for column in 0..SIDE {
            // SAFETY: as above.
            unsafe {
                let bits = source.add(column * row_bytes + 4 * group).cast::<u32>().read_unaligned();
                let out = panel.add(units_of_a_group * group * step + column);
                if WIDEN {
                    out.write(bits << 16);
                    out.add(step).write(bits & 0xffff_0000);
                } else {
                    out.write(bits);
                }
            }
        }
    }
}

/// The 16 rows of `rows`, `step` numbers from one to the next, as 16 columns of a panel: groups of them `width` apart.
pub fn lay_columns<E: Element>(isa: Isa, (rows, step): (&[E], usize), panel: &mut [E], width: usize) {
    let groups = step / E::GROUP;
    assert!(rows.len() >= SIDE * step && (groups == 0 || panel.len() >= ((groups - 1) * width + SIDE) * E::GROUP));
    let (rows, panel) = (rows.as_ptr().cast(), panel.as_mut_ptr().cast::<u32>());
    assert!(panel.is_aligned(), "a group of a panel is 32 bits");
    // SAFETY: the assertions cover every group of both.
    unsafe { transpose_strip::<false>(isa, (rows, 4 * groups), groups, (panel, width), |_| ()) };
}

/// Asks for a line of the cache of each row of a strip, or of the next one from its first group on: rows are too short for the
/// processor to do so by itself, which is what a product with few rows would wait for.
#[cfg(target_arch = "x86_64")]
fn ask_for((source, row_bytes): (*const u8, usize), strip: usize, group: usize, groups: usize) {
    let (strip, group) = if group < groups { (strip, group) } else { (strip + SIDE, group - groups) };
    for row in strip..strip + SIDE {
        prefetch_line(source.wrapping_add(row * row_bytes + 4 * group));
    }
}

/// Transposes a square: rows so many bytes apart, units so many places apart.
#[cfg(target_arch = "x86_64")]
type Square = unsafe fn(*const u8, usize, *mut u32, usize);

/// What transposes squares at a level of instructions, and their side.
#[cfg(target_arch = "x86_64")]
fn squares<const WIDEN: bool>(isa: Isa) -> Option<(usize, Square)> {
    match isa {
        Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 => Some((16, square_with_avx512::<WIDEN>)),
        Isa::Avx2 if !WIDEN => Some((8, square_with_avx2)), // it widens what it multiplies, not what it packs
        Isa::Avx2 | Isa::Portable => None,
    }
}

/// Transposes 8 x 8 groups.
///
/// # Safety
/// The processor has AVX2; 8 rows of 32 bytes can be read, and 8 rows of 8 units, `step` apart, written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn square_with_avx2(source: *const u8, row_bytes: usize, panel: *mut u32, step: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let rows: [__m256i; 8] =
        std::array::from_fn(|row| unsafe { _mm256_loadu_si256(source.add(row * row_bytes).cast()) });
    let pairs: [__m256i; 8] = std::array::from_fn(|index| {
        let (a, b) = (rows[index / 2 * 2], rows[index / 2 * 2 + 1]);
        if index % 2 == 0 { _mm256_unpacklo_epi32(a, b) } else { _mm256_unpackhi_epi32(a, b) }
    });
    // quads[4 q + c] holds, in each 128-bit lane l, unit 4 l + c of rows 4 q .. 4 q + 3.
    let quads: [__m256i; 8] = std::array::from_fn(|index| {
        let (quad, c) = (index / 4 * 4, index % 4);
        let (a, b) = (pairs[quad + c / 2], pairs[quad + 2 + c / 2]);
        if c % 2 == 0 { _mm256_unpacklo_epi64(a, b) } else { _mm256_unpackhi_epi64(a, b) }
    });
    for group in 0..8 {
        let (low, high) = (quads[group % 4], quads[4 + group % 4]);
        let column = match group < 4 {
            true => _mm256_permute2x128_si256::<0x20>(low, high),
            false => _mm256_permute2x128_si256::<0x31>(low, high),
        };
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(panel.add(group * step).cast(), column) };
    }
}

/// Transposes 16 x 16 groups.
///
/// # Safety
/// The processor has AVX-512; 16 rows of 64 bytes can be read, and 16 rows (`WIDEN`: 32) of 16 units, `step` apart, written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn square_with_avx512<const WIDEN: bool>(source: *const u8, row_bytes: usize, panel: *mut u32, step: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let rows: [__m512i; 16] =
        std::array::from_fn(|row| unsafe { _mm512_loadu_si512(source.add(row * row_bytes).cast()) });
    let pairs: [__m512i; 16] = std::array::from_fn(|index| {
        let (a, b) = (rows[index / 2 * 2], rows[index / 2 * 2 + 1]);
        if index % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    // Four consecutive rows: quads[4 q + c] holds, in each 128-bit lane l, unit 4 l + c of rows 4 q .. 4 q + 3.
    let quads: [__m512i; 16] = std::array::from_fn(|index| {
        let (quad, c) = (index / 4 * 4, index % 4);
        let (a, b) = (pairs[quad + c / 2], pairs[quad + 2 + c / 2]);
        if c % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    for c in 0..4 {
        let [q0, q1, q2, q3] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let low = (_mm512_shuffle_i32x4::<0x44>(q0, q1), _mm512_shuffle_i32x4::<0x44>(q2, q3)); // lanes 0, 1
        let high = (_mm512_shuffle_i32x4::<0xee>(q0, q1), _mm512_shuffle_i32x4::<0xee>(q2, q3)); // lanes 2, 3
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(low.0, low.1),
            _mm512_shuffle_i32x4::<0xdd>(low.0, low.1),
            _mm512_shuffle_i32x4::<0x88>(high.0, high.1),
            _mm512_shuffle_i32x4::<0xdd>(high.0, high.1),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            let group = 4 * lane + c;
            // SAFETY: the caller's promise.
            unsafe {
                if WIDEN {
                    let high = _mm512_and_si512(column, _mm512_set1_epi32(0xffff_0000u32 as i32));
                    let out = panel.add(2 * group * step);
                    _mm512_storeu_si512(out.cast(), _mm512_slli_epi32::<16>(column));
                    _mm512_storeu_si512(out.add(step).cast(), high);
                } else {
                    _mm512_storeu_si512(panel.add(group * step).cast(), column);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::Numbers;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37) % 251) as f32 - 125.0).collect() // exact in bf16
    }

    /// The panel's number at a depth and a column.
    fn at(panel: &[u32], isa: Isa, unit: Unit, depth: usize, column: usize) -> f32 {
        let bits = panel[Steps::packed((isa, unit), panel.len() / WIDTH).at(depth / unit.numbers(), column)];
        match (unit, depth % 2) {
            (Unit::F32, _) => f32::from_bits(bits),
            (Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile, 0) => f32::from_bits(bits << 16),
            (Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile, _) => f32::from_bits(bits & 0xffff_0000),
        }
    }

    fn packs_as_it_stands<E: Element>(numbers: Numbers, rows: usize, columns: usize) {
        let expected = values(rows * columns);
        let matrix = Matrix { rows, columns, numbers, rounded_to_f16: false };
        for isa in Isa::supported() {
            let unit = Unit::of::<E>(isa);
            for first in (0..rows).step_by(WIDTH) {
                for (from, to) in [(0, columns), (0, columns.div_ceil(2)), (columns / 2, columns)] {
                    let mut panel = vec![7; unit.count::<E>(to - from) * WIDTH];
                    Packing::<E>::default().pack((isa, unit), &matrix, first, (from, to), &mut panel);
                    let depth = (to - from).next_multiple_of(unit.depth::<E>());
                    for column in 0..WIDTH {
                        for depth in 0..depth {
                            let inside = first + column < rows && from + depth < to;
                            let number = if inside { expected[(first + column) * columns + from + depth] } else { 0.0 };
                            assert_eq!(
                                at(&panel, isa, unit, depth, column),
                                number,
                                "{isa:?} {first} {from} {depth} {column}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn panels_hold_what_rows_hold() {
        for (rows, columns) in [(64, 64), (1, 1), (5, 63), (65, 66), (130, 97), (64, 33)] {
            let values = values(rows * columns);
            let brains: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
            packs_as_it_stands::<f32>(Numbers::F32(bytes_of(&values)), rows, columns);
            packs_as_it_stands::<f32>(Numbers::Bf16(&brains), rows, columns);
            packs_as_it_stands::<bf16>(Numbers::F32(bytes_of(&values)), rows, columns);
            packs_as_it_stands::<bf16>(Numbers::Bf16(&brains), rows, columns);
        }
    }
}
