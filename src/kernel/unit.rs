//! What a micro-kernel multiplies: units of 32 bits, each an f32 or a pair of bf16.
//!
//! Activations and weights of a bf16 model are held in bf16 on every processor. Where it multiplies pairs of them in one
//! fast instruction they go in as they lie; elsewhere they are widened, exactly, to f32 on the way, panels as late as there
//! is time for it.

use super::element::bytes_of;
use super::isa::for_every_isa;
use super::lines::{CACHE_LINE, Lines};
use super::tile::{Panel, Steps, WIDTH};
use super::{Element, Isa};

/// Numbers of depth of a tile of bf16.
pub(super) const TILE_DEPTH: usize = 32;

/// 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    F32,
    /// Two bf16 of consecutive depths, the first in the low half.
    Bf16Pair,
    /// The same, widened in registers and multiplied one after the other with rows of f32.
    Bf16Widened,
    /// The same, sixteen of which are multiplied together: a line of a tile.
    Bf16Tile,
}

impl Unit {
    /// What numbers of this kind are multiplied as.
    pub fn of<E: Element>(isa: Isa) -> Unit {
        match isa {
            Isa::Avx512Bf16 if E::GROUP == 2 => Unit::Bf16Pair,
            Isa::AmxBf16 if E::GROUP == 2 => Unit::Bf16Tile,
            Isa::Avx2 if E::GROUP == 2 => Unit::Bf16Widened,
            Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 | Isa::Portable => Unit::F32,
        }
    }

    /// Numbers in a unit.
    pub fn numbers(self) -> usize {
        match self {
            Unit::F32 => 1,
            Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile => 2,
        }
    }

    /// What rows are that a panel of these units is multiplied with.
    pub fn of_rows(self) -> Unit {
        match self {
            Unit::Bf16Widened => Unit::F32,
            Unit::F32 | Unit::Bf16Pair | Unit::Bf16Tile => self,
        }
    }

    /// Numbers of depth that are multiplied together, or held together: a depth is filled up to a multiple of it with zeros.
    pub fn depth<E: Element>(self) -> usize {
        match self {
            Unit::F32 | Unit::Bf16Pair | Unit::Bf16Widened => E::GROUP,
            Unit::Bf16Tile => TILE_DEPTH,
        }
    }

    /// Units of so many numbers, filled up.
    pub fn count<E: Element>(self, numbers: usize) -> usize {
        numbers.next_multiple_of(self.depth::<E>()) / self.numbers()
    }

    /// Whether memory that holds such numbers holds these units.
    pub fn is_held_as<E: Element>(self) -> bool {
        self.numbers() == E::GROUP
    }
}

/// Units in memory, read as they lie: rows of them, `step` units from one to the next.
#[derive(Clone, Copy)]
pub struct Units<'a> {
    bytes: &'a [u8],
    pub step: usize,
}

impl<'a> Units<'a> {
    pub fn of(units: &[u32], step: usize) -> Units<'_> {
        // SAFETY: units are plain bits, and bytes need no alignment.
        let bytes = unsafe { std::slice::from_raw_parts(units.as_ptr().cast(), size_of_val(units)) };
        Units { bytes, step }
    }

    /// Whether `count` rows of `length` units are there.
    pub fn has(&self, count: usize, length: usize) -> bool {
        count == 0 || length == 0 || self.holds((count - 1) * self.step + length)
    }

    /// Whether so many units are there.
    pub fn holds(&self, units: usize) -> bool {
        self.bytes.len() >= 4 * units
    }

    /// Without the first so many units of each row.
    pub fn from(&self, first: usize) -> Units<'a> {
        Units { bytes: &self.bytes[4 * first..], step: self.step }
    }

    pub fn as_ptr(&self) -> *const u32 {
        self.bytes.as_ptr().cast()
    }
}

/// A buffer for numbers that are not held as the units they are multiplied as.
#[derive(Default)]
pub struct Laid(Lines<u32>);

impl Laid {
    /// Rows, `step` numbers from one to the next.
    pub fn rows<'a, E: Element>(&'a mut self, how: (Isa, Unit), rows: &'a [E], step: usize) -> Units<'a> {
        self.tile(how, rows, step, (rows.len() / step, step))
    }

    /// The first `length` numbers of `count` rows, `step` numbers from one to the next.
    pub fn tile<'a, E: Element>(
        &'a mut self,
        (isa, unit): (Isa, Unit),
        numbers: &'a [E],
        step: usize,
        (count, length): (usize, usize),
    ) -> Units<'a> {
        let unit = unit.of_rows();
        if unit.is_held_as::<E>() && is_read_as_it_lies(unit, numbers, step, length) {
            return Units { bytes: bytes_of(numbers), step: step / unit.numbers() };
        }
        let (units, held) = (unit.count::<E>(length), length.next_multiple_of(E::GROUP));
        let out = self.0.take(count * units);
        for (row, out) in out.chunks_exact_mut(units).enumerate() {
            let (laid, filled_up) = out.split_at_mut(held / unit.numbers());
            lay(isa, &numbers[row * step..][..held], unit, laid);
            filled_up.fill(0);
        }
        Units::of(out, units)
    }

    /// A panel, which is 64 columns of rows of `columns`; so many rows.
    pub fn panel<'a, E: Element>(
        &'a mut self,
        (isa, unit): (Isa, Unit),
        panel: &'a [E],
        (rows, columns): (usize, usize),
    ) -> Panel<'a> {
        if unit.is_held_as::<E>() && rows.is_multiple_of(unit.depth::<E>()) {
            let units = Units { bytes: bytes_of(panel), step: columns };
            return Panel { units, steps: Steps::side_by_side(columns) };
        }
        let units = unit.count::<E>(rows);
        let steps = Steps::packed((isa, unit), units);
        let out = self.0.take(units * WIDTH);
        match unit {
            Unit::F32 => widen_panel(isa, bytes_of(panel), columns, steps, out),
            Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile => fill_up_panel(bytes_of(panel), columns, steps, out),
        }
        Panel { units: Units::of(out, steps.unit), steps }
    }
}

for_every_isa! {
    /// Numbers, as many as fill whole units, as units.
    pub(super) fn lay<E: Element>(numbers: &[E], unit: Unit, out: &mut [u32]) {
        match unit {
            Unit::F32 => out.iter_mut().zip(numbers).for_each(|(out, number)| *out = number.to_f32().to_bits()),
            Unit::Bf16Pair | Unit::Bf16Widened | Unit::Bf16Tile => {
                let pairs = bytes_of(numbers).as_chunks::<4>().0;
                out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = u32::from_le_bytes(*pair));
            }
        }
    }
}

/// Whether rows can be multiplied where they are. A tile reads whole lines of the cache: where rows lie across them, a copy is
/// faster.
fn is_read_as_it_lies<E: Element>(unit: Unit, numbers: &[E], step: usize, length: usize) -> bool {
    let is_whole = step.is_multiple_of(unit.numbers()) && length.is_multiple_of(unit.depth::<E>());
    let begins_lines = || step.is_multiple_of(TILE_DEPTH) && numbers.as_ptr().addr().is_multiple_of(CACHE_LINE);
    is_whole && (unit != Unit::Bf16Tile || begins_lines())
}

/// Asks for memory that will be read soon, where the processor does not look ahead by itself: rows that lie far apart.
pub fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(numbers)).step_by(CACHE_LINE) {
        prefetch_line(numbers.as_ptr().cast::<u8>().wrapping_add(at));
    }
    let _ = numbers;
}

/// Asks for the line that an address is in, which need not exist.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which every x86-64 has; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast::<i8>()) };
}

/// Pairs of bf16, 64 of each `step`, as a panel whose last rows are zeros.
fn fill_up_panel(pairs: &[u8], step: usize, steps: Steps, out: &mut [u32]) {
    out.fill(0);
    for (row, pairs) in pairs.chunks(4 * step).enumerate() {
        for (run, pairs) in pairs[..4 * WIDTH].chunks_exact(4 * steps.run()).enumerate() {
            let out = &mut out[steps.at(row, run * steps.run())..][..steps.run()];
            out.iter_mut().zip(pairs.as_chunks::<4>().0).for_each(|(out, pair)| *out = u32::from_le_bytes(*pair));
        }
    }
}

for_every_isa! {
    /// Pairs of bf16, 64 of each `step`, as a panel of f32 with two rows for each row of them.
    fn widen_panel(pairs: &[u8], step: usize, steps: Steps, out: &mut [u32]) {
        for (row, pairs) in pairs.chunks(4 * step).enumerate() {
            for (run, pairs) in pairs[..4 * WIDTH].chunks_exact(4 * steps.run()).enumerate() {
                let (first, second) = out[steps.at(2 * row, run * steps.run())..].split_at_mut(steps.unit);
                for ((first, second), pair) in first.iter_mut().zip(second).zip(pairs.as_chunks::<4>().0) {
                    let pair = u32::from_le_bytes(*pair);
                    (*first, *second) = (pair << 16, pair & 0xffff_0000);
                }
            }
        }
    }
}
