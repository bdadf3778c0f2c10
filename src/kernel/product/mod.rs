//! Products of rows with weights, spread over threads.
//!
//! The work is cut into items of a few panels (64 outputs each) and a run of rows ([`plan`]). A thread packs the panels, as
//! many stretches of depth as fit into its cache, and multiplies them with the run's rows, block after block and in a block
//! tile after tile: so rows come from far away once for all panels. The finished sums go to the caller's `finish`, panel
//! after panel, which adds, gates or rounds them while they are near. Nothing waits in a spin: rayon's threads sleep.

mod plan;

use std::ops::Range;

use rayon::prelude::*;

use self::plan::{DEPTH, Part, Plan};
use super::panel::Packing;
use super::tile::{self, HEIGHT, Panel, WIDTH};
use super::unit::{Laid, Unit, prefetch};
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

/// Rows whose sums are finished at a time, while they are in the cache: whole tiles.
const BLOCK: usize = 8 * HEIGHT;

/// The instructions to use, and buffers that are reused from call to call.
pub struct Kernels<E> {
    pub isa: Isa,
    buffers: Pool<Buffers<E>>,
}

/// One worker's buffers.
#[derive(Default)]
struct Buffers<E> {
    packing: Packing<E>,
    panels: Vec<u32>,    // of each part of a pass (panels, units, 64)
    laid: Laid,          // a tile's rows, where they are not held as what is multiplied
    sums: [Vec<f32>; 2], // of each product (panels, rows, 64)
}

/// What is to be multiplied, and how it is cut.
struct Work<'a, const N: usize, E> {
    how: (Isa, Unit),
    products: [&'a [Term<'a, E>]; N],
    plan: Plan,
}

/// What a thread takes at a time.
struct Item {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Rows of sums that are held: a block where one pass makes them, else all of the item's.
    height: usize,
}

impl<E: Element> Kernels<E> {
    pub fn new(isa: Isa) -> Kernels<E> {
        Kernels { isa, buffers: Pool::default() }
    }

    /// For `count` rows the sums of `products`, each a sum of terms; all terms have the same number of outputs. `finish` gets
    /// every sum exactly once.
    pub fn multiply<const N: usize>(&self, count: usize, products: [&[Term<E>]; N], finish: impl Fn(Block<N>) + Sync) {
        let work = Work::new(self.isa, count, products);
        (0..work.plan.items()).into_par_iter().with_max_len(1).for_each(|item| {
            self.buffers.with(|buffers| work.do_item(buffers, work.item(item), &finish));
        });
    }
}

impl<'a, const N: usize, E: Element> Work<'a, N, E> {
    fn new(isa: Isa, count: usize, products: [&'a [Term<'a, E>]; N]) -> Work<'a, N, E> {
        let unit = Unit::of::<E>(isa);
        let parts = products.iter().enumerate().flat_map(|(product, terms)| parts(product, terms, unit));
        let plan = Plan::new((count, products[0][0].outputs()), N, parts.collect());
        Work { how: (isa, unit), products, plan }
    }

    fn item(&self, item: usize) -> Item {
        let (rows, columns) = self.plan.item(item);
        let height = if self.plan.passes.len() == 1 { BLOCK } else { rows.len() };
        Item { rows, columns, height }
    }

    /// Sums that one pass makes are finished block by block; those of several wait for the last.
    fn do_item(&self, buffers: &mut Buffers<E>, item: Item, finish: impl Fn(Block<N>)) {
        let size = item.panels() * item.height * WIDTH;
        buffers.sums[..N].iter_mut().for_each(|sums| sums.resize(sums.len().max(size), 0.0));
        for (index, pass) in self.plan.passes.iter().enumerate() {
            self.pack(buffers, pass, &item.columns);
            for first in item.rows.clone().step_by(BLOCK) {
                let block = first..item.rows.end.min(first + BLOCK);
                for tile in block.clone().step_by(HEIGHT) {
                    self.multiply(buffers, pass, &item, tile);
                }
                if index + 1 == self.plan.passes.len() {
                    item.finish(&mut buffers.sums, block, &finish);
                }
            }
        }
    }

    fn term(&self, part: &Part) -> &Term<'a, E> {
        &self.products[part.product][part.term]
    }

    /// Packs the columns' panels of all parts of a pass.
    fn pack(&self, buffers: &mut Buffers<E>, pass: &[Part], columns: &Range<usize>) {
        let Buffers { packing, panels, .. } = buffers;
        let count = columns.len().div_ceil(WIDTH);
        for part in pass {
            let (size, stretch) = (part.units * WIDTH, (part.from, part.to));
            let (first, end) = (part.before * count * WIDTH, part.before * count * WIDTH + count * size);
            panels.resize(panels.len().max(end), 0);
            let (weight, panels) = (&self.term(part).weight, &mut panels[first..end]);
            match self.term(part).side {
                Side::Along => {
                    for (column, panel) in columns.clone().step_by(WIDTH).zip(panels.chunks_exact_mut(size)) {
                        packing.pack(self.how, weight, column, stretch, panel);
                    }
                }
                Side::Across => packing.pack_across(self.how, weight, columns.clone(), stretch, panels),
            }
        }
    }

    /// The tile of rows from `first` on against all panels of a pass.
    fn multiply(&self, buffers: &mut Buffers<E>, pass: &[Part], item: &Item, first: usize) {
        let Buffers { panels, laid, sums, .. } = buffers;
        let (count, next) = (HEIGHT.min(item.rows.end - first), (first + HEIGHT..item.rows.end).take(HEIGHT));
        // Parts that read the same numbers have them laid once.
        for parts in pass.chunk_by(|one, other| self.reads(one) == self.reads(other)) {
            let (Rows { numbers, step }, length) = (self.term(&parts[0]).rows, parts[0].to - parts[0].from);
            let from = |row: usize| &numbers[row * step + parts[0].from..];
            next.clone().for_each(|row| prefetch(&from(row)[..length]));
            let tile = laid.tile(self.how, from(first), step, (count, length));
            for part in parts {
                let of_part = panels[part.before * item.panels() * WIDTH..].chunks_exact(part.units * WIDTH);
                for (index, panel) in of_part.enumerate().take(item.panels()) {
                    let wanted = WIDTH.min(item.columns.len() - index * WIDTH);
                    let panel = (Panel::packed(self.how.0, panel, part.units), wanted, part.units);
                    let sums = &mut sums[part.product][item.place(index, first)..];
                    tile::multiply(self.how, (tile, count), panel, (sums, WIDTH), part.goes_on);
                }
            }
        }
    }

    /// Which numbers of which rows a part is made of.
    fn reads(&self, part: &Part) -> (*const E, usize, usize, usize) {
        let Rows { numbers, step } = self.term(part).rows;
        (numbers.as_ptr(), step, part.from, part.to)
    }
}

impl Item {
    fn panels(&self) -> usize {
        self.columns.len().div_ceil(WIDTH)
    }

    /// Where the sums of a panel and a row stand.
    fn place(&self, panel: usize, row: usize) -> usize {
        (panel * self.height + (row - self.rows.start) % self.height) * WIDTH
    }

    /// Hands out the sums of a block of rows, panel after panel.
    fn finish<const N: usize>(&self, sums: &mut [Vec<f32>; 2], rows: Range<usize>, finish: impl Fn(Block<N>)) {
        for (index, column) in self.columns.clone().step_by(WIDTH).enumerate() {
            let mut of_products = sums.iter_mut();
            let sums = std::array::from_fn(|_| {
                let sums = of_products.next().expect("there are at most two products");
                &mut sums[self.place(index, rows.start)..][..rows.len() * WIDTH]
            });
            finish(Block { rows: rows.clone(), columns: column..self.columns.end.min(column + WIDTH), sums });
        }
    }
}

/// The stretches of depth of a product's terms.
fn parts<E: Element>(product: usize, terms: &[Term<E>], unit: Unit) -> Vec<Part> {
    let long = DEPTH * unit.numbers();
    let stretches = terms.iter().enumerate().flat_map(|(term, of)| {
        let depth = of.depth();
        (0..depth).step_by(long).map(move |from| (term, from, depth.min(from + long)))
    });
    let part = |(index, (term, from, to))| {
        let units = unit.count::<E>(to - from);
        Part { product, term, from, to, units, before: 0, goes_on: index > 0 }
    };
    stretches.enumerate().map(part).collect()
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
