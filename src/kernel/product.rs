//! Products of rows with weights, spread over threads.
//!
//! The work is cut into items of a few panels (64 outputs each) and a run of rows. A thread packs the panels, stretch of
//! depth after stretch of depth, and multiplies them with the run's rows, of which it lays a tile side by side at a time:
//! so rows come from far away once for all panels. The finished sums go to the caller's `finish`, panel after panel, which
//! adds, gates or rounds them while they are near. Nothing waits in a spin: rayon's threads sleep.

use std::ops::Range;

use rayon::prelude::*;

use super::panel::Packing;
use super::tile::{self, HEIGHT, Panel, Steps, WIDTH};
use super::unit::{Unit, Units, lay, prefetch};
use super::{Element, Isa, Matrix, Pool};

/// Rows of activations, `step` numbers from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, E> {
    pub numbers: &'a [E],
    /// At least the depth of the product filled up to a whole group ([`padded`]); what fills up is 0.
    pub step: usize,
}

/// One product of a sum.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a, E> {
    pub rows: Rows<'a, E>,
    pub weight: Matrix<'a>,
    pub side: Side,
}

/// Which way a matrix is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `rows * weight^T`: a linear; the result has a column for each row of the weight.
    Along,
    /// `rows * weight`: back through a linear; a column for each of the weight's columns.
    Across,
}

impl<'a, E> Term<'a, E> {
    /// `rows * weight^T`.
    pub fn along(rows: Rows<'a, E>, weight: Matrix<'a>) -> Term<'a, E> {
        Term { rows, weight, side: Side::Along }
    }

    /// `rows * weight`.
    pub fn across(rows: Rows<'a, E>, weight: Matrix<'a>) -> Term<'a, E> {
        Term { rows, weight, side: Side::Across }
    }

    fn outputs(&self) -> usize {
        match self.side {
            Side::Along => self.weight.rows,
            Side::Across => self.weight.columns,
        }
    }

    fn depth(&self) -> usize {
        match self.side {
            Side::Along => self.weight.columns,
            Side::Across => self.weight.rows,
        }
    }
}

/// The sums of some rows and of one panel's columns, for each of `N` products.
pub struct Block<'a, const N: usize> {
    pub rows: Range<usize>,
    /// At most 64.
    pub columns: Range<usize>,
    /// Each (rows, 64); columns beyond the last hold nothing of meaning.
    pub sums: [&'a mut [f32]; N],
}

impl<const N: usize> Block<'_, N> {
    /// Row numbers with their sums of product `which`, cut to the columns that exist.
    pub fn each_row(&self, which: usize) -> impl Iterator<Item = (usize, &[f32])> {
        let width = self.columns.len();
        self.rows.clone().zip(self.sums[which].chunks_exact(WIDTH).map(move |sums| &sums[..width]))
    }
}

/// A row's length filled up to whole groups.
pub fn padded<E: Element>(columns: usize) -> usize {
    columns.next_multiple_of(E::GROUP)
}

/// Units of depth that are packed at a time: an item's panels of them stay in the second-level cache, a tile's rows in the
/// first. A multiple of every block that weights are stored in.
const DEPTH: usize = 768;
const PANELS_OF_AN_ITEM: usize = 3;
/// Rows of an item, all products together: their sums are 1.5 MB.
const ROWS_OF_AN_ITEM: usize = 2048;
/// Below this, packing a panel costs more than multiplying it.
const FEWEST_ROWS: usize = 48;
/// Items for each thread, so that none waits long for the last.
const ITEMS_A_THREAD: usize = 6;

/// The instructions to use, and buffers that are reused from call to call.
pub struct Kernels<E> {
    pub isa: Isa,
    buffers: Pool<Buffers<E>>,
}

/// One worker's buffers.
#[derive(Default)]
struct Buffers<E> {
    operands: Operands<E>,
    sums: [Vec<f32>; 2], // (panels, rows, 64)
}

#[derive(Default)]
struct Operands<E> {
    packing: Packing<E>,
    panels: Vec<u32>, // (panels, units, 64)
    tile: Vec<u32>,   // (HEIGHT, units)
}

impl<E: Element> Kernels<E> {
    pub fn new(isa: Isa) -> Kernels<E> {
        Kernels { isa, buffers: Pool::default() }
    }

    /// For `count` rows the sums of `products`, each a sum of terms; all terms have the same number of outputs. `finish` gets
    /// every sum exactly once.
    pub fn multiply<const N: usize>(&self, count: usize, products: [&[Term<E>]; N], finish: impl Fn(Block<N>) + Sync) {
        let outputs = products[0][0].outputs();
        let (wide, run) = item_size(count, outputs.div_ceil(WIDTH), ROWS_OF_AN_ITEM / N);
        let (stripes, runs) = (outputs.div_ceil(wide * WIDTH), count.div_ceil(run.max(1)));
        (0..stripes * runs).into_par_iter().with_max_len(1).for_each(|item| {
            let (column, first) = (item / runs * wide * WIDTH, item % runs * run);
            let rows = first..count.min(first + run);
            let columns = column..outputs.min(column + wide * WIDTH);
            self.buffers.with(|Buffers { operands, sums: [one, two] }| {
                let mut buffers = [one, two].into_iter();
                let mut sums: [&mut [f32]; N] = std::array::from_fn(|which| {
                    let sums = buffers.next().expect("there are at most two products");
                    let size = columns.len().div_ceil(WIDTH) * rows.len() * WIDTH;
                    sums.resize(sums.len().max(size), 0.0);
                    operands.sum(self.isa, products[which], rows.clone(), columns.clone(), &mut sums[..size]);
                    &mut sums[..size]
                });
                for column in columns.clone().step_by(WIDTH) {
                    let sums = sums.each_mut().map(|sums| sums.split_off_mut(..rows.len() * WIDTH).expect("a panel's"));
                    finish(Block { rows: rows.clone(), columns: column..columns.end.min(column + WIDTH), sums });
                }
            });
        });
    }
}

impl<E: Element> Operands<E> {
    /// The sums of some rows for some columns, the first of which is the first of a panel: (panels, rows, 64).
    fn sum(&mut self, isa: Isa, terms: &[Term<E>], rows: Range<usize>, columns: Range<usize>, sums: &mut [f32]) {
        let unit = Unit::of::<E>(isa);
        let mut goes_on = false;
        for term in terms {
            let depth = term.depth();
            for from in (0..depth).step_by(DEPTH * unit.numbers()) {
                let stretch = (from, depth.min(from + DEPTH * unit.numbers()));
                self.pack((isa, unit), term, columns.clone(), stretch);
                self.multiply((isa, unit), &term.rows, (rows.clone(), columns.len()), stretch, (&mut *sums, goes_on));
                goes_on = true;
            }
        }
    }

    /// Leaves the panels of a stretch of depth.
    fn pack(&mut self, how: (Isa, Unit), term: &Term<E>, columns: Range<usize>, stretch: (usize, usize)) {
        let size = how.1.count::<E>(stretch.1 - stretch.0) * WIDTH;
        let all = columns.len().div_ceil(WIDTH) * size;
        self.panels.resize(self.panels.len().max(all), 0);
        let (packing, panels) = (&mut self.packing, &mut self.panels[..all]);
        match term.side {
            Side::Along => {
                for (column, panel) in columns.step_by(WIDTH).zip(panels.chunks_exact_mut(size)) {
                    packing.pack(how, &term.weight, column, stretch, panel);
                }
            }
            Side::Across => packing.pack_across(how, &term.weight, columns, stretch, panels),
        }
    }

    /// The rows against all panels, a tile of rows at a time.
    fn multiply(
        &mut self,
        (isa, unit): (Isa, Unit),
        &Rows { numbers, step }: &Rows<E>,
        (rows, columns): (Range<usize>, usize),
        (from, to): (usize, usize),
        (sums, goes_on): (&mut [f32], bool),
    ) {
        let units = unit.count::<E>(to - from);
        let steps = Steps::packed(isa, units);
        self.tile.resize(self.tile.len().max(HEIGHT * units), 0);
        for first in rows.clone().step_by(HEIGHT) {
            let count = HEIGHT.min(rows.end - first);
            let stretch = |row: usize| &numbers[row * step + from..][..units * unit.numbers()];
            (first + count..rows.end).take(HEIGHT).for_each(|next| prefetch(stretch(next)));
            for (row, out) in (first..first + count).zip(self.tile.chunks_exact_mut(units)) {
                lay(isa, stretch(row), unit, out);
            }
            let tile = Units::of(&self.tile, units);
            let panels = self.panels.chunks_exact(units * WIDTH);
            let sums = sums.chunks_exact_mut(rows.len() * WIDTH);
            for ((panel, sums), column) in panels.zip(sums).zip((0..columns).step_by(WIDTH)) {
                let panel = Panel { units: Units::of(panel, steps.unit), steps };
                let panel = (panel, WIDTH.min(columns - column), units);
                let sums = &mut sums[(first - rows.start) * WIDTH..];
                tile::multiply((isa, unit), (tile, count), panel, (sums, WIDTH), goes_on);
            }
        }
    }
}

/// How many panels and rows go into one item. It decides who computes a number, never what comes out.
fn item_size(count: usize, panels: usize, most_rows: usize) -> (usize, usize) {
    let (enough, most_runs) = (ITEMS_A_THREAD * rayon::current_num_threads(), count.div_ceil(FEWEST_ROWS).max(1));
    let wide = (panels * most_runs / enough).clamp(1, PANELS_OF_AN_ITEM);
    let runs = enough.div_ceil(panels.div_ceil(wide).max(1)).max(count.div_ceil(most_rows)).min(most_runs);
    (wide, count.div_ceil(runs).next_multiple_of(HEIGHT))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use half::bf16;

    use super::*;
    use crate::kernel::element::bytes_of;
    use crate::kernel::rows::round;
    use crate::kernel::{Numbers, nf4};
    use crate::random::Random;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::named(seed, "kernel");
        (0..count).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
    }

    fn activations<E: Element>(values: &[f32], rows: usize, columns: usize) -> Vec<E> {
        let step = padded::<E>(columns);
        let mut out = vec![E::default(); rows * step];
        for (row, values) in values.chunks_exact(columns).enumerate() {
            round(Isa::Portable, values, &mut out[row * step..][..columns]);
        }
        out
    }

    /// (count, outputs)
    fn product<E: Element>(isa: Isa, count: usize, terms: &[Term<E>]) -> Vec<f32> {
        let outputs = terms[0].outputs();
        let out = Mutex::new(vec![f32::NAN; count * outputs]);
        Kernels::<E>::new(isa).multiply(count, [terms], |block: Block<1>| {
            let mut out = out.lock().unwrap();
            for (row, sums) in block.each_row(0) {
                out[row * outputs + block.columns.start..][..sums.len()].copy_from_slice(sums);
            }
        });
        out.into_inner().unwrap()
    }

    /// In f64, from the numbers as they are held.
    fn plain<E: Element>(x: &[E], step: usize, count: usize, weight: &Matrix) -> Vec<f64> {
        let mut row = vec![0.0; weight.columns];
        let mut out = vec![0.0; count * weight.rows];
        for output in 0..weight.rows {
            weight.decode_row(Isa::Portable, output, 0, &mut row);
            for index in 0..count {
                let x = &x[index * step..][..weight.columns];
                let terms =
                    x.iter().zip(&row).map(|(x, w)| f64::from(x.to_f32()) * f64::from(E::from_f32(*w).to_f32()));
                out[index * weight.rows + output] = terms.sum();
            }
        }
        out
    }

    fn agrees<E: Element>(count: usize, outputs: usize, columns: usize) {
        let (x, w) = (random(count * columns, 1), random(outputs * columns, 2));
        let x = activations::<E>(&x, count, columns);
        let step = padded::<E>(columns);
        let weight = Matrix { rows: outputs, columns, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
        let expected = plain(&x, step, count, &weight);
        let terms = [Term::along(Rows { numbers: &x, step }, weight)];
        let mut fused: Option<Vec<f32>> = None;
        for isa in Isa::supported() {
            let found = product(isa, count, &terms);
            for (ours, exact) in found.iter().zip(&expected) {
                let tolerance = 3e-6 * (columns as f64).sqrt();
                assert!((f64::from(*ours) - exact).abs() < tolerance, "{isa:?} {count} {outputs} {columns}");
            }
            if isa.arithmetic(E::GROUP == 2) == "fused" {
                assert_eq!(*fused.get_or_insert(found.clone()), found, "{isa:?}: the same bits");
            }
        }
    }

    #[test]
    fn every_level_agrees_with_plain_sums_on_odd_shapes() {
        for count in [1, 5, 6, 7, 63, 65] {
            for outputs in [1, 5, 63, 64, 65] {
                for columns in [1, 5, 63, 65, 128] {
                    agrees::<f32>(count, outputs, columns);
                    agrees::<bf16>(count, outputs, columns);
                }
            }
        }
        agrees::<f32>(7, 65, 2 * DEPTH + 3);
        agrees::<bf16>(7, 65, 2 * 2 * DEPTH + 3);
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        let (count, outputs, columns) = (150, 130, 2000);
        let (x, w) = (random(count * columns, 3), random(outputs * columns, 4));
        let weight = Matrix { rows: outputs, columns, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
        for isa in Isa::supported() {
            let x = activations::<bf16>(&x, count, columns);
            let all = product(isa, count, &[Term::along(Rows { numbers: &x, step: columns }, weight)]);
            for (first, some) in [(0, 1), (7, 5), (100, 50), (149, 1)] {
                let rows = Rows { numbers: &x[first * columns..], step: columns };
                let alone = product(isa, some, &[Term::along(rows, weight)]);
                assert_eq!(alone, all[first * outputs..][..some * outputs], "{isa:?} {first} {some}");
            }
        }
    }

    #[test]
    fn four_bits_multiply_as_what_they_decode_to() {
        let (count, outputs, columns) = (9, 70, 192);
        let x = activations::<bf16>(&random(count * columns, 5), count, columns);
        let packed: Vec<u8> = (0..outputs * columns / 2).map(|index| (index * 89 + 7) as u8).collect();
        let absmax: Vec<f32> = random(outputs * columns / 64, 6).iter().map(|value| value.abs()).collect();
        let numbers = Numbers::Nf4 { packed: &packed, absmax: nf4::Absmax::Plain(&absmax) };
        let quantized = Matrix { rows: outputs, columns, numbers, rounded_to_f16: false };
        let mut decoded = vec![0.0; outputs * columns];
        decoded.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| {
            quantized.decode_row(Isa::Portable, row, 0, out);
        });
        let plain = Matrix { numbers: Numbers::F32(bytes_of(&decoded)), ..quantized };
        for isa in Isa::supported() {
            let rows = Rows { numbers: &x[..], step: columns };
            let from_codes = product(isa, count, &[Term::along(rows, quantized)]);
            assert_eq!(from_codes, product(isa, count, &[Term::along(rows, plain)]), "{isa:?}");
        }
    }

    /// (rows, columns) to (columns, rows).
    fn turned(values: &[f32], columns: usize) -> Vec<f32> {
        (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
    }

    fn across_agrees<E: Element>(count: usize, outputs: usize, depth: usize) {
        let (x, w) = (random(count * depth, 1), random(depth * outputs, 2));
        let x = activations::<E>(&x, count, depth);
        let rows = Rows { numbers: &x[..], step: padded::<E>(depth) };
        let matrix = |rows, columns, values| Matrix {
            rows,
            columns,
            numbers: Numbers::F32(bytes_of::<f32>(values)),
            rounded_to_f16: false,
        };
        let turned = turned(&w, outputs);
        for isa in Isa::supported() {
            let across = product(isa, count, &[Term::across(rows, matrix(depth, outputs, &w))]);
            let along = product(isa, count, &[Term::along(rows, matrix(outputs, depth, &turned))]);
            assert_eq!(across, along, "{isa:?} {count} {outputs} {depth}");
        }
    }

    #[test]
    fn across_a_matrix_is_along_the_turned_one() {
        for count in [1, 7] {
            for outputs in [1, 63, 65, 130] {
                for depth in [1, 2, 5, 64, 129, 4 * DEPTH + 3] {
                    across_agrees::<f32>(count, outputs, depth);
                    across_agrees::<bf16>(count, outputs, depth);
                }
            }
        }
    }

    #[test]
    fn across_four_bits_and_blocks_is_across_what_they_decode_to() {
        let (count, rows, columns) = (5, 66, 192);
        let x = activations::<bf16>(&random(count * rows, 5), count, rows);
        let x = Rows { numbers: &x[..], step: padded::<bf16>(rows) };
        let packed: Vec<u8> = (0..rows * columns / 2).map(|index| (index * 89 + 7) as u8).collect();
        let absmax: Vec<f32> = random(rows * columns / 64, 6).iter().map(|value| value.abs()).collect();
        let codes = Numbers::Nf4 { packed: &packed, absmax: nf4::Absmax::Plain(&absmax) };
        // Blocks of 96 bytes that are 96 numbers each.
        let decode =
            |bytes: &[u8], out: &mut [f32]| out.iter_mut().zip(bytes).for_each(|(out, b)| *out = f32::from(*b));
        let bytes: Vec<u8> = (0..rows * columns).map(|index| (index * 37) as u8).collect();
        let blocks = Numbers::Blocks { bytes: &bytes, blocks: crate::kernel::Blocks { count: 96, bytes: 96, decode } };
        for numbers in [codes, blocks] {
            let stored = Matrix { rows, columns, numbers, rounded_to_f16: false };
            let mut decoded = vec![0.0; rows * columns];
            let lines = decoded.chunks_exact_mut(columns).enumerate();
            lines.for_each(|(row, out)| stored.decode_row(Isa::Portable, row, 0, out));
            let plain = Matrix { numbers: Numbers::F32(bytes_of(&decoded)), ..stored };
            for isa in Isa::supported() {
                let found = product(isa, count, &[Term::across(x, stored)]);
                assert_eq!(found, product(isa, count, &[Term::across(x, plain)]), "{isa:?}");
            }
        }
    }

    #[test]
    fn terms_add_up() {
        let (x, w) = ([1.0f32, 2.0, 3.0], [1.0, 1.0, 1.0, 0.5, 0.0, -1.0]);
        let first = Matrix { rows: 2, columns: 3, numbers: Numbers::F32(bytes_of(&w)), rounded_to_f16: false };
        let (low, b) = ([10.0f32], [1.0, 2.0]);
        let second = Matrix { rows: 2, columns: 1, numbers: Numbers::F32(bytes_of(&b)), rounded_to_f16: false };
        let terms = [
            Term::along(Rows { numbers: &x[..], step: 3 }, first),
            Term::along(Rows { numbers: &low[..], step: 1 }, second),
        ];
        assert_eq!(product(Isa::best(), 1, &terms), [6.0 + 10.0, 0.5 - 3.0 + 20.0]);
    }
}
