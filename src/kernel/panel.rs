//! Packing: 64 rows of a matrix, whatever they are stored as, become the 64 columns of a panel.
//!
//! A panel's unit is 32 bits (an f32, or a pair of bf16), so one transposition of 32-bit numbers serves both.

use super::isa::for_every_isa;
use super::matrix::convert;
use super::tile::WIDTH;
use super::{Element, Isa, Matrix};

/// Buffers of one thread, reused from panel to panel.
#[derive(Default)]
pub struct Packing<E> {
    decoded: Vec<f32>,
    rows: Vec<E>,
}

impl<E: Element> Packing<E> {
    /// Packs columns `from..to` of the 64 rows from `first` on into `panel`; rows beyond the last are 0, and so is what
    /// fills the last group. Returns the number of groups.
    pub fn pack(
        &mut self,
        isa: Isa,
        matrix: &Matrix,
        first: usize,
        (from, to): (usize, usize),
        panel: &mut Vec<E>,
    ) -> usize {
        let groups = (to - from).div_ceil(E::GROUP);
        panel.resize((groups * E::GROUP * WIDTH).max(panel.len()), E::default());
        let is_whole = first + WIDTH <= matrix.rows && (to - from).is_multiple_of(E::GROUP);
        match matrix.stored_as::<E>(first, from).filter(|_| is_whole) {
            Some(bytes) => {
                let row_bytes = 4 / E::GROUP * matrix.columns;
                assert!(bytes.len() >= (WIDTH - 1) * row_bytes + 4 * groups);
                // SAFETY: the assertion covers every row; the panel was made large enough above.
                unsafe { transpose(isa, bytes.as_ptr(), row_bytes, groups, panel.as_mut_ptr().cast()) };
            }
            None => {
                self.decode(isa, matrix, first, (from, to), groups * E::GROUP);
                let row_bytes = 4 * groups;
                // SAFETY: `decode` made 64 rows of so many groups; the panel was made large enough above.
                unsafe { transpose(isa, self.rows.as_ptr().cast(), row_bytes, groups, panel.as_mut_ptr().cast()) };
            }
        }
        groups
    }

    /// Packs rows `from..to` of the 64 columns from `first` on: the panel of a product with the matrix transposed. Columns
    /// beyond the last are 0, and so is what fills the last group. Returns the number of groups.
    pub fn pack_across(
        &mut self,
        isa: Isa,
        matrix: &Matrix,
        first: usize,
        (from, to): (usize, usize),
        panel: &mut Vec<E>,
    ) -> usize {
        let groups = (to - from).div_ceil(E::GROUP);
        panel.resize((groups * E::GROUP * WIDTH).max(panel.len()), E::default());
        let present = WIDTH.min(matrix.columns - first);
        self.rows.clear();
        self.rows.resize(E::GROUP * WIDTH, E::default());
        for (group, panel) in panel.chunks_exact_mut(E::GROUP * WIDTH).take(groups).enumerate() {
            for (lane, out) in self.rows.chunks_exact_mut(WIDTH).enumerate() {
                let row = from + group * E::GROUP + lane;
                match row < to {
                    true => matrix.read_part(isa, row, first, &mut self.decoded, &mut out[..present]),
                    false => out.fill(E::default()),
                }
            }
            interleave(isa, &self.rows, panel);
        }
        groups
    }

    /// Fills `rows`: (64, depth).
    fn decode(&mut self, isa: Isa, matrix: &Matrix, first: usize, (from, to): (usize, usize), depth: usize) {
        self.decoded.resize(to - from, 0.0);
        self.rows.clear();
        self.rows.resize(WIDTH * depth, E::default());
        let present = WIDTH.min(matrix.rows - first);
        for (row, out) in self.rows.chunks_exact_mut(depth).enumerate().take(present) {
            matrix.decode_row(isa, first + row, from, &mut self.decoded);
            convert(isa, &self.decoded, &mut out[..to - from]);
        }
    }
}

for_every_isa! {
    /// (GROUP, 64) to (64, GROUP).
    fn interleave<E: Element>(rows: &[E], panel: &mut [E]) {
        let _ = FUSED;
        match E::GROUP {
            1 => panel.copy_from_slice(rows),
            _ => {
                let (first, second) = rows.split_at(WIDTH);
                for (pair, (first, second)) in panel.chunks_exact_mut(2).zip(first.iter().zip(second)) {
                    (pair[0], pair[1]) = (*first, *second);
                }
            }
        }
    }
}

/// 64 rows of 32-bit units, `row_bytes` apart, to `groups` rows of 64.
///
/// # Safety
/// `source` has 64 such rows of `groups` units, `panel` room for `groups * 64` units.
unsafe fn transpose(isa: Isa, source: *const u8, row_bytes: usize, groups: usize, panel: *mut u32) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        done = groups / 16 * 16;
        // Along 16 rows at a time: so many the processor reads ahead, 64 it does not.
        for column in (0..WIDTH).step_by(16) {
            for group in (0..done).step_by(16) {
                // SAFETY: 16 units of 16 rows from here on are inside both, as the caller promises.
                unsafe {
                    let from = source.add(column * row_bytes + 4 * group);
                    square_with_avx512(from, row_bytes, panel.add(group * WIDTH + column));
                }
            }
        }
    }
    let _ = isa;
    for group in done..groups {
        for column in 0..WIDTH {
            // SAFETY: as above.
            unsafe {
                let unit = source.add(column * row_bytes + 4 * group).cast::<u32>().read_unaligned();
                panel.add(group * WIDTH + column).write(unit);
            }
        }
    }
}

/// Transposes 16 x 16 units.
///
/// # Safety
/// The processor has AVX-512; 16 rows of 64 bytes can be read, and 16 rows of 16 units, 64 apart, written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn square_with_avx512(source: *const u8, row_bytes: usize, panel: *mut u32) {
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
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_si512(panel.add((4 * lane + c) * WIDTH).cast(), column) };
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::Numbers;
    use crate::kernel::matrix::bytes_of;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37) % 251) as f32 - 125.0).collect() // exact in bf16
    }

    /// The panel's number at a depth and a column.
    fn at<E: Element>(panel: &[E], depth: usize, column: usize) -> f32 {
        panel[(depth / E::GROUP) * WIDTH * E::GROUP + column * E::GROUP + depth % E::GROUP].to_f32()
    }

    fn packs_as_it_stands<E: Element>(numbers: Numbers, rows: usize, columns: usize) {
        let expected = values(rows * columns);
        let matrix = Matrix { rows, columns, numbers, rounded_to_f16: false };
        for isa in Isa::supported() {
            for first in (0..rows).step_by(WIDTH) {
                for (from, to) in [(0, columns), (0, columns.div_ceil(2)), (columns / 2, columns)] {
                    let (mut packing, mut panel) = (Packing::<E>::default(), Vec::new());
                    let groups = packing.pack(isa, &matrix, first, (from, to), &mut panel);
                    assert_eq!(groups, (to - from).div_ceil(E::GROUP));
                    for column in 0..WIDTH {
                        for depth in 0..groups * E::GROUP {
                            let inside = first + column < rows && from + depth < to;
                            let number = if inside { expected[(first + column) * columns + from + depth] } else { 0.0 };
                            assert_eq!(at(&panel, depth, column), number, "{isa:?} {first} {from} {depth} {column}");
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
