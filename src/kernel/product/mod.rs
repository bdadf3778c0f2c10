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

use self::plan::{DEPTH, Item, Part, Plan, Shape};
use super::panel::Packing;
use super::tile::{self, Panel, ROWS_AHEAD, WIDTH};
use super::unit::{Laid, Unit, prefetch};
use super::{Element, Isa, Lines, Matrix, Pool};

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

/// The sums of some rows and of several panels' columns, for each of `N` products.
pub struct Sums<'a, const N: usize> {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    sums: [&'a mut [f32]; N], // (panels, height, 64), of which `rows` are those from `first` on
    height: usize,
    first: usize,
    line: &'a mut Vec<f32>,
}

impl<const N: usize> Sums<'_, N> {
    /// Hands them out panel after panel.
    pub fn each_panel(&mut self, mut work: impl FnMut(Block<N>)) {
        let count = self.rows.len();
        for (panel, column) in self.columns.clone().step_by(WIDTH).enumerate() {
            let first = (panel * self.height + self.first) * WIDTH;
            let sums = self.sums.each_mut().map(|sums| &mut sums[first..first + count * WIDTH]);
            work(Block { rows: self.rows.clone(), columns: column..self.columns.end.min(column + WIDTH), sums });
        }
    }

    /// Some columns of a row of the first product, side by side: where they stand if one panel has them all.
    pub fn line(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let (within, mut column) = (self.first + row - self.rows.start, columns.start - self.columns.start);
        let at = |column: usize| (column / WIDTH * self.height + within) * WIDTH + column % WIDTH;
        if column % WIDTH + columns.len() <= WIDTH {
            return &mut self.sums[0][at(column)..at(column) + columns.len()];
        }
        let end = columns.end - self.columns.start;
        self.line.clear();
        while column < end {
            let to = end.min((column / WIDTH + 1) * WIDTH);
            self.line.extend_from_slice(&self.sums[0][at(column)..at(column) + to - column]);
            column = to;
        }
        self.line
    }
}

/// A row's length filled up to whole groups.
pub fn padded<E: Element>(columns: usize) -> usize {
    columns.next_multiple_of(E::GROUP)
}

/// Rows whose sums are finished at a time, while they are in the cache: whole tiles.
fn block(unit: Unit) -> usize {
    48usize.next_multiple_of(tile::height(unit))
}

/// Each item packs its panels anew, which is a smaller part of it where multiplying takes longer.
fn items_a_thread(unit: Unit) -> usize {
    match unit {
        Unit::F32 | Unit::Bf16Widened => 12,
        Unit::Bf16Pair | Unit::Bf16Tile => 6,
    }
}

/// The instructions to use, and buffers that are reused from call to call.
pub struct Kernels<E> {
    pub isa: Isa,
    buffers: Pool<Buffers<E>>,
}

/// One worker's buffers.
#[derive(Default)]
struct Buffers<E> {
    packing: Packing<E>,
    panels: Lines<u32>,    // of each part of a pass (panels, units, 64)
    laid: Laid,            // a tile's rows, where they are not held as what is multiplied
    sums: [Lines<f32>; 2], // of each product (panels, rows, 64)
    line: Vec<f32>,        // what Sums::line gives
}

/// What is to be multiplied, and how it is cut.
struct Work<'a, const N: usize, E> {
    how: (Isa, Unit),
    sets: &'a [[&'a [Term<'a, E>]; N]],
    plan: Plan,
}

impl<E: Element> Kernels<E> {
    pub fn new(isa: Isa) -> Kernels<E> {
        Kernels { isa, buffers: Pool::default() }
    }

    /// For `count` rows the sums of `products`, each a sum of terms; all terms have the same number of outputs. `finish` gets
    /// every sum exactly once.
    pub fn multiply<const N: usize>(&self, count: usize, products: [&[Term<E>]; N], finish: impl Fn(Block<N>) + Sync) {
        self.multiply_beside(count, 1, &[products], |_, mut sums| sums.each_panel(&finish));
    }

    /// The same for several sets of products of the same rows, side by side, so that no thread waits for the last of each.
    /// `finish` gets the number of the set, and whole runs of `together` columns.
    pub fn multiply_beside<const N: usize>(
        &self,
        count: usize,
        together: usize,
        sets: &[[&[Term<E>]; N]],
        finish: impl Fn(usize, Sums<N>) + Sync,
    ) {
        let work = Work::new(self.isa, (count, together), sets);
        (0..work.plan.items()).into_par_iter().with_max_len(1).for_each(|item| {
            self.buffers.with(|buffers| work.do_item(buffers, work.plan.item(item), &finish));
        });
    }
}

impl<'a, const N: usize, E: Element> Work<'a, N, E> {
    fn new(isa: Isa, (count, together): (usize, usize), sets: &'a [[&'a [Term<'a, E>]; N]]) -> Work<'a, N, E> {
        let unit = Unit::of::<E>(isa);
        let cut = |products: &[&[Term<E>]; N]| {
            let parts = products.iter().enumerate().flat_map(|(sum, terms)| parts(sum, terms, unit));
            (products[0][0].outputs(), parts.collect())
        };
        let shape = Shape { rows: count, height: tile::height(unit), items_a_thread: items_a_thread(unit) };
        let plan = Plan::new(shape, together, N, sets.iter().map(cut).collect());
        Work { how: (isa, unit), sets, plan }
    }

    /// Sums that one pass makes are finished block by block; those of several wait for the last.
    fn do_item(&self, buffers: &mut Buffers<E>, item: Item, finish: impl Fn(usize, Sums<N>)) {
        let passes = &self.plan.sets[item.set].passes;
        let block = block(self.how.1);
        let height = if passes.len() == 1 { block } else { item.rows.len() };
        buffers.sums[..N].iter_mut().for_each(|sums| _ = sums.take(item.panels() * height * WIDTH));
        for (index, pass) in passes.iter().enumerate() {
            self.pack(buffers, pass, &item);
            for first in item.rows.clone().step_by(block) {
                let rows = first..item.rows.end.min(first + block);
                let place = |row: usize| (row - item.rows.start) % height;
                let step = tile::even_height(self.how.1, rows.len());
                for first in rows.clone().step_by(step) {
                    let tile = first..rows.end.min(first + step);
                    self.multiply(buffers, pass, &item, (tile, place(first), height));
                }
                if index + 1 == passes.len() {
                    let (first, columns) = (place(first), item.columns.clone());
                    let Buffers { sums, line, .. } = &mut *buffers;
                    let mut sums = sums.iter_mut();
                    let sums = std::array::from_fn(|_| &mut sums.next().expect("there are at most two products")[..]);
                    finish(item.set, Sums { rows, columns, sums, height, first, line });
                }
            }
        }
    }

    fn term(&self, item: &Item, part: &Part) -> &Term<'a, E> {
        &self.sets[item.set][part.sum][part.term]
    }

    /// Packs the item's panels of all parts of a pass.
    fn pack(&self, buffers: &mut Buffers<E>, pass: &[Part], item: &Item) {
        let Buffers { packing, panels, .. } = buffers;
        let (count, columns) = (item.panels(), &item.columns);
        for part in pass {
            let (size, stretch) = (part.units * WIDTH, (part.from, part.to));
            let (first, end) = (part.before * count * WIDTH, part.before * count * WIDTH + count * size);
            panels.grow(end);
            let (weight, panels) = (&self.term(item, part).weight, &mut panels[first..end]);
            match self.term(item, part).side {
                Side::Along => {
                    for (column, panel) in columns.clone().step_by(WIDTH).zip(panels.chunks_exact_mut(size)) {
                        packing.pack(self.how, weight, column, stretch, panel);
                    }
                }
                Side::Across => packing.pack_across(self.how, weight, columns.clone(), stretch, panels),
            }
        }
    }

    /// A tile of rows against all panels of a pass. Its sums stand at `place` of `height` rows.
    fn multiply(
        &self,
        buffers: &mut Buffers<E>,
        pass: &[Part],
        item: &Item,
        (tile, place, height): (Range<usize>, usize, usize),
    ) {
        let Buffers { panels, laid, sums, .. } = buffers;
        let (first, count) = (tile.start, tile.len());
        // Parts that read the same numbers have them laid once.
        for parts in pass.chunk_by(|one, other| self.reads(item, one) == self.reads(item, other)) {
            let (Rows { numbers, step }, Part { from, to, .. }) = (self.term(item, &parts[0]).rows, parts[0]);
            self.fetch_next(item, parts, tile.clone());
            let rows = laid.tile(self.how, &numbers[first * step + from..], step, (count, to - from));
            let each = parts.iter().flat_map(|part| (0..item.panels()).map(move |index| (part, index)));
            for (nth, (part, index)) in each.enumerate() {
                let size = part.units * WIDTH;
                let panel = &panels[part.before * item.panels() * WIDTH + index * size..][..size];
                let wanted = WIDTH.min(item.columns.len() - index * WIDTH);
                let panel = (Panel::packed(self.how, panel, part.units), wanted, part.units);
                let sums = &mut sums[part.sum][(index * height + place) * WIDTH..];
                let ahead = self.ahead(item, part, first, nth).filter(|_| rows.step * self.how.1.numbers() == step);
                tile::multiply(self.how, (rows, count), panel, (sums, WIDTH), part.goes_on, ahead);
            }
        }
    }

    /// Asks for the rows of the tile after this, unless its kernel does so.
    fn fetch_next(&self, item: &Item, parts: &[Part], tile: Range<usize>) {
        let (Rows { numbers, step }, Part { from, to, .. }) = (self.term(item, &parts[0]).rows, parts[0]);
        if self.how.1 != Unit::Bf16Tile {
            let next = (tile.end..item.rows.end).take(tile.len());
            next.for_each(|row| prefetch(&numbers[row * step..][from..to]));
        }
    }

    /// What a kernel of tiles asks for with the `nth` panel: after a few it has been through the next tile's rows.
    fn ahead(&self, item: &Item, part: &Part, first: usize, nth: usize) -> Option<*const u32> {
        let (Rows { numbers, step }, height) = (self.term(item, part).rows, tile::height(self.how.1));
        let row = first + height + nth * ROWS_AHEAD % height;
        (row < item.rows.end).then(|| numbers[row * step + part.from..].as_ptr().cast())
    }

    /// Which numbers of which rows a part is made of.
    fn reads(&self, item: &Item, part: &Part) -> (*const E, usize, usize, usize) {
        let Rows { numbers, step } = self.term(item, part).rows;
        (numbers.as_ptr(), step, part.from, part.to)
    }
}

/// The stretches of depth of a product's terms.
fn parts<E: Element>(sum: usize, terms: &[Term<E>], unit: Unit) -> Vec<Part> {
    let long = DEPTH * unit.numbers();
    let stretches = terms.iter().enumerate().flat_map(|(term, of)| {
        let depth = of.depth();
        (0..depth).step_by(long).map(move |from| (term, from, depth.min(from + long)))
    });
    let part = |(index, (term, from, to))| {
        let units = unit.count::<E>(to - from);
        Part { sum, term, from, to, units, before: 0, goes_on: index > 0 }
    };
    stretches.enumerate().map(part).collect()
}
