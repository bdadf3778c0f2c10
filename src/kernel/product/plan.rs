//! How a product is cut: into items for threads, and within an item into what is packed at a time. It decides who computes a
//! number, never what comes out: a number's parts are added in the same order whatever the cut.

use std::ops::Range;

use super::super::tile::{HEIGHT, WIDTH};

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
/// Items for each thread, so that none waits long for the last.
const ITEMS_A_THREAD: usize = 6;

/// A stretch of the depth of one term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub product: usize,
    pub term: usize,
    /// Numbers of depth.
    pub from: usize,
    pub to: usize,
    /// The same as units.
    pub units: usize,
    /// Units of the parts before it in its pass.
    pub before: usize,
    /// Whether it adds to what a part of the same product has left.
    pub goes_on: bool,
}

/// Which rows and columns go together, and in which order the parts of their sums are made.
pub struct Plan {
    /// Parts that are packed together, in order.
    pub passes: Vec<Vec<Part>>,
    rows: usize,
    columns: usize,
    /// Panels of an item.
    wide: usize,
    /// Rows of an item.
    run: usize,
}

impl Plan {
    /// For the sums of so many products over all `parts`, each (rows, columns).
    pub fn new((rows, columns): (usize, usize), products: usize, parts: Vec<Part>) -> Plan {
        let all: usize = parts.iter().map(|part| part.units).sum();
        let panels = columns.div_ceil(WIDTH);
        let most = match ROOM / all.max(1) {
            0 | 1 => (PANELS_OF_PASSES, ROWS_OF_PASSES / products),
            together => (together.min(MOST_PANELS), usize::MAX),
        };
        let (wide, run) = item_size((rows, panels), most);
        Plan { passes: passes(parts, wide), rows, columns, wide, run }
    }

    pub fn items(&self) -> usize {
        self.stripes() * self.rows.div_ceil(self.run)
    }

    /// Rows and columns of an item, which begins with a whole panel. Items of the same rows follow one another.
    pub fn item(&self, item: usize) -> (Range<usize>, Range<usize>) {
        let (first, column) = (item / self.stripes() * self.run, item % self.stripes() * self.wide * WIDTH);
        (first..self.rows.min(first + self.run), column..self.columns.min(column + self.wide * WIDTH))
    }

    fn stripes(&self) -> usize {
        self.columns.div_ceil(self.wide * WIDTH)
    }
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

/// How many panels and rows go into one item.
fn item_size((rows, panels): (usize, usize), (most_panels, most_rows): (usize, usize)) -> (usize, usize) {
    let (enough, most_runs) = (ITEMS_A_THREAD * rayon::current_num_threads(), rows.div_ceil(FEWEST_ROWS).max(1));
    let wide = (panels * most_runs / enough).clamp(1, most_panels);
    let stripes = panels.div_ceil(wide).max(1);
    let runs = enough.div_ceil(stripes).max(rows.div_ceil(most_rows)).min(most_runs);
    (panels.div_ceil(stripes).max(1), rows.div_ceil(runs).next_multiple_of(HEIGHT).max(HEIGHT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(product: usize, units: usize, goes_on: bool) -> Part {
        Part { product, term: 0, from: 0, to: 2 * units, units, before: 0, goes_on }
    }

    fn covers_once(plan: &Plan, rows: usize, columns: usize) {
        let mut times = vec![0; rows * columns.div_ceil(WIDTH)];
        for (rows, columns) in (0..plan.items()).map(|item| plan.item(item)) {
            assert_eq!(columns.start % WIDTH, 0);
            for row in rows {
                columns.clone().step_by(WIDTH).for_each(|column| times[row + column / WIDTH * plan.rows] += 1);
            }
        }
        assert!(times.iter().all(|&times| times == 1));
    }

    #[test]
    fn every_number_is_made_once() {
        for rows in [0, 1, 47, 49, 700, 5000] {
            for columns in [1, 64, 65, 576, 1600] {
                covers_once(&Plan::new((rows, columns), 1, vec![part(0, 288, false)]), rows, columns);
                covers_once(&Plan::new((rows, columns), 2, vec![part(0, DEPTH, false); 4]), rows, columns);
            }
        }
    }

    #[test]
    fn what_fits_is_packed_together() {
        let gate_and_up = vec![part(0, 288, false), part(1, 288, false)];
        let plan = Plan::new((4096, 1536), 2, gate_and_up);
        assert_eq!(plan.passes.len(), 1);
        assert_eq!(plan.passes[0][1].before, 288);
        let deep = vec![part(0, DEPTH, false), part(0, DEPTH, true), part(0, 8, true)];
        let plan = Plan::new((4096, 4096), 1, deep);
        assert!(plan.passes.iter().flatten().all(|part| part.before == 0));
        assert_eq!(plan.passes.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
