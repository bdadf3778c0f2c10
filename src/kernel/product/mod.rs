//! Products of rows with weights, spread over threads.
//!
//! The work is cut into items of a few panels (64 outputs each) and a run of rows ([`plan`]). A thread packs the panels, as
//! many stretches of depth as fit into its cache, and multiplies them with the run's rows, block after block and in a block
//! tile after tile: so rows come from far away once for all panels. The finished sums go to the caller's `finish`, panel
//! after panel, which adds, gates or rounds them while they are near. Nothing waits in a spin: rayon's threads sleep.

mod plan;
#[cfg(test)]
mod tests;

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
            self.pack(buffers, pass, &item);
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

    /// Packs the item's panels of all parts of a pass.
    fn pack(&self, buffers: &mut Buffers<E>, pass: &[Part], item: &Item) {
        let Buffers { packing, panels, .. } = buffers;
        let (count, columns) = (item.panels(), &item.columns);
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
