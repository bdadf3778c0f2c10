//! How a product is cut: into items for threads, and within an item into what is packed at a time. It decides who computes a
//! number, never what comes out: a number's parts are added in the same order whatever the cut.

use std::ops::Range;

use super::super::tile::WIDTH;

/// Units of depth that are packed at a time: a tile's rows of them stay in the first-level cache. A multiple of every block
/// that weights are stored in.
pub const DEPTH: usize = 768;
/// Units of depth, all panels together, that stay in the second-level cache (590 kB).
const ROOM: usize = 3 * DEPTH;
/// Panels of an item: more of them share the rows that come from far away, fewer leave longer runs of rows.
const MOST_PANELS: usize = 4;
/// Panels of an item whose parts have to be packed one after another.
const PANELS_OF_PASSES: usize = 3;
/// Rows of such an item, all products together: their sums, which wait for the last part, are 1.5 MB.
const ROWS_OF_PASSES: usize = 2048;
/// Below this, packing a panel costs more than multiplying it.
const FEWEST_ROWS: usize = 48;
/// A stretch of the depth of one term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub sum: usize,
    pub term: usize,
    /// Numbers of depth.
    pub from: usize,
    pub to: usize,
    /// The same as units.
    pub units: usize,
    /// Units of the parts before it in its pass.
    pub before: usize,
    /// Whether it adds to what a part of the same sum has left.
    pub goes_on: bool,
}

/// Which rows and columns go together, and in which order the parts of their sums are made.
pub struct Plan {
    /// Of each set of products that are made side by side.
    pub sets: Vec<Cut>,
    rows: usize,
    /// Rows of an item.
    run: usize,
}

/// How the columns and the depth of one of them are cut.
pub struct Cut {
    /// Parts that are packed together, in order.
    pub passes: Vec<Vec<Part>>,
    columns: usize,
    /// Panels of an item.
    wide: usize,
}

/// The rows of a product, and what their cut depends on beside the numbers.
#[derive(Clone, Copy)]
pub struct Shape {
    pub rows: usize,
    /// Rows of a tile.
    pub height: usize,
    /// Items for each thread, so that none waits long for the last.
    pub items_a_thread: usize,
}

/// What a thread takes at a time: some rows and columns of a set of products. It begins with a whole panel.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub set: usize,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Plan {
    /// For sets of `sums` products of the same rows, each with its columns and the parts of its sums. An item has whole runs of
    /// `together` columns.
    pub fn new(shape: Shape, together: usize, sums: usize, sets: Vec<(usize, Vec<Part>)>) -> Plan {
        let Shape { rows, height, items_a_thread } = shape;
        let threads = rayon::current_num_threads();
        let (enough, most_runs) = (items_a_thread * threads, rows.div_ceil(FEWEST_ROWS).max(1));
        let panels: usize = sets.iter().map(|(columns, _)| columns.div_ceil(WIDTH)).sum();
        let (wide, least) = (panels * most_runs / enough, together / gcd(together, WIDTH));
        let mut fewest_runs = 1;
        let cut = |(columns, parts): (usize, Vec<Part>)| {
            let (most_panels, most_rows) = most(&parts, sums);
            fewest_runs = fewest_runs.max(rows.div_ceil(most_rows));
            Cut::new(columns, wide.clamp(1, most_panels), least, parts)
        };
        let sets: Vec<Cut> = sets.into_iter().map(cut).collect();
        let stripes: usize = sets.iter().map(Cut::stripes).sum();
        // All items are about equal: so that no thread waits for the others to do one more, each gets as many.
        let even = threads / gcd(stripes, threads);
        let runs = enough.div_ceil(stripes.max(1)).max(fewest_runs).next_multiple_of(even).min(most_runs);
        Plan { sets, rows, run: rows.div_ceil(runs).next_multiple_of(height).max(height) }
    }

    pub fn items(&self) -> usize {
        self.stripes() * self.rows.div_ceil(self.run)
    }

    /// Items of the same rows follow one another.
    pub fn item(&self, item: usize) -> Item {
        let (first, mut stripe) = (item / self.stripes() * self.run, item % self.stripes());
        let mut set = 0;
        while stripe >= self.sets[set].stripes() {
            stripe -= self.sets[set].stripes();
            set += 1;
        }
        let rows = first..self.rows.min(first + self.run);
        Item { set, rows, columns: self.sets[set].stripe(stripe) }
    }

    fn stripes(&self) -> usize {
        self.sets.iter().map(Cut::stripes).sum()
    }
}

impl Item {
    pub fn panels(&self) -> usize {
        self.columns.len().div_ceil(WIDTH)
    }
}

impl Cut {
    /// Into stripes of about `wide` panels: a multiple of `least`, all about as wide.
    fn new(columns: usize, wide: usize, least: usize, parts: Vec<Part>) -> Cut {
        let panels = columns.div_ceil(WIDTH);
        let stripes = panels.div_ceil((wide / least * least).max(least)).max(1);
        let wide = panels.div_ceil(stripes).next_multiple_of(least).max(least);
        Cut { passes: passes(parts, wide), columns, wide }
    }

    fn stripes(&self) -> usize {
        self.columns.div_ceil(self.wide * WIDTH)
    }

    fn stripe(&self, stripe: usize) -> Range<usize> {
        let first = stripe * self.wide * WIDTH;
        first..self.columns.min(first + self.wide * WIDTH)
    }
}

/// Panels and rows that an item can have.
fn most(parts: &[Part], sums: usize) -> (usize, usize) {
    match ROOM / parts.iter().map(|part| part.units).sum::<usize>().max(1) {
        0 | 1 => (PANELS_OF_PASSES, ROWS_OF_PASSES / sums),
        together => (together.min(MOST_PANELS), usize::MAX),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Parts that fit into the cache together, with so many panels of each.
fn passes(parts: Vec<Part>, panels: usize) -> Vec<Vec<Part>> {
    let mut passes: Vec<Vec<Part>> = Vec::new();
    let mut packed = usize::MAX;
    for mut part in parts {
        if packed.saturating_add(panels * part.units) > ROOM {
            passes.push(Vec::new());
            packed = 0;
        }
        part.before = packed / panels;
        packed += panels * part.units;
        passes.last_mut().expect("one was just begun").push(part);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize) -> Shape {
        Shape { rows, height: 6, items_a_thread: 6 }
    }

    fn part(sum: usize, units: usize, goes_on: bool) -> Part {
        Part { sum, term: 0, from: 0, to: 2 * units, units, before: 0, goes_on }
    }

    fn covers_once(plan: &Plan, rows: usize, together: usize, columns: &[usize]) {
        let mut times: Vec<_> = columns.iter().map(|columns| vec![0; rows * columns.div_ceil(WIDTH)]).collect();
        for Item { set, rows: of, columns } in (0..plan.items()).map(|item| plan.item(item)) {
            assert_eq!((columns.start % WIDTH, columns.start % together), (0, 0));
            for row in of {
                columns.clone().step_by(WIDTH).for_each(|column| times[set][row + column / WIDTH * rows] += 1);
            }
        }
        assert!(times.iter().flatten().all(|&times| times == 1));
    }

    #[test]
    fn every_number_is_made_once() {
        for rows in [0, 1, 47, 49, 700, 5000] {
            for columns in [1, 64, 65, 576, 1600] {
                for together in [1, 64, 128, 96, 80, 24] {
                    let shallow = |columns| (columns, vec![part(0, 288, false)]);
                    let deep = |columns| (columns, vec![part(0, DEPTH, false); 4]);
                    let one = Plan::new(shape(rows), together, 2, vec![deep(columns)]);
                    covers_once(&one, rows, together, &[columns]);
                    let three = Plan::new(shape(rows), together, 1, vec![shallow(columns), deep(960), shallow(192)]);
                    covers_once(&three, rows, together, &[columns, 960, 192]);
                }
            }
        }
    }

    #[test]
    fn threads_get_as_many_items_each() {
        for threads in [1, 2, 3, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for columns in [[576, 192, 192], [4096, 1024, 1024], [64, 64, 64]] {
                    let products = columns.map(|columns| (columns, vec![part(0, 288, false)]));
                    let plan = Plan::new(shape(10_000), 64, 1, products.to_vec());
                    assert_eq!(plan.items() % threads, 0, "{columns:?} on {threads} threads");
                }
            });
        }
    }

    #[test]
    fn what_fits_is_packed_together() {
        let gate_and_up = vec![part(0, 288, false), part(1, 288, false)];
        let plan = &Plan::new(shape(4096), 1, 2, vec![(1536, gate_and_up)]).sets[0];
        assert_eq!(plan.passes.len(), 1);
        assert_eq!(plan.passes[0][1].before, 288);
        let deep = vec![part(0, DEPTH, false), part(0, DEPTH, true), part(0, 8, true)];
        let plan = &Plan::new(shape(4096), 1, 1, vec![(4096, deep)]).sets[0];
        assert!(plan.passes.iter().flatten().all(|part| part.before == 0));
        assert_eq!(plan.passes.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
