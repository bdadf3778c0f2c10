//! Attention of a wave's rows: projections, rotation, and each query against what stands before it in its sequence.
//!
//! The work is cut into items of one key-value head and a run of queries. An item packs the keys and values of the path it
//! is on; going from a segment of the trie to the next, it keeps what the two have in common. A step of generation finds
//! its panels made.

use std::ops::Range;

use rayon::prelude::*;

use super::layer::Visit;
use super::linear::add_to;
use super::workspace::Workspace;
use super::{CpuDecoder, Past};
use crate::kernel::attention::{KeyValues, Queries, Scratch, Sight, attend};
use crate::kernel::product::{Rows, padded};
use crate::kernel::{Element, Isa, Shared, rows};
use crate::model::decoder::Pasts;
use crate::model::names::ATTENTION_LINEARS;
use crate::model::packed::Packed;

/// Its place in a layer's linears: attention's last.
pub(super) const OUTPUT: usize = ATTENTION_LINEARS - 1;

/// Queries of an item: enough to make packing its path's keys a small part, few enough to share them out.
const QUERIES_OF_AN_ITEM: usize = 256;

/// Consecutive queries of one segment, counted from its first token.
#[derive(Clone, Debug)]
struct Piece {
    segment: usize,
    queries: Range<usize>,
}

/// One worker's keys and values, and the path that they are of.
pub struct Path<E> {
    key_values: KeyValues<E>,
    /// Segments from the root on, with the rows of each that are packed.
    links: Vec<(usize, usize)>,
    scratch: Scratch<E>,
}

impl<E: Element> Default for Path<E> {
    fn default() -> Path<E> {
        Path { key_values: KeyValues::new(0), links: Vec::new(), scratch: Scratch::default() }
    }
}

/// One head's keys and values of the whole wave: (tokens, head_dim filled up) each.
#[derive(Clone, Copy)]
struct HeadRows<'a, E> {
    keys: &'a [E],
    values: &'a [E],
    step: usize,
}

/// Where heads go that attention reads.
struct Heads<'a, E> {
    all: [Shared<'a, E>; 3], // queries: (kv_heads, rows, group, step); keys, values: (kv_heads, tokens, step)
    group: usize,
    step: usize,
    /// Which of the wave's tokens the rows are.
    rows: Range<usize>,
    tokens: usize,
}

impl<E: Element> CpuDecoder<E> {
    /// Attention of some of the wave's rows, added to their states.
    pub(super) fn attention(
        &self,
        visit: &Visit,
        rows: Range<usize>,
        states: &mut [f32],
        pasts: &mut Pasts<Past<E>>,
        space: &mut Workspace<E>,
    ) {
        self.mix_heads(visit, rows, states, pasts, space);
        self.add_heads(visit, states, space);
    }

    /// Each head's mix of the values that some rows see, left in `mixed`.
    pub(super) fn mix_heads(
        &self,
        visit: &Visit,
        rows: Range<usize>,
        states: &[f32],
        pasts: &mut Pasts<Past<E>>,
        space: &mut Workspace<E>,
    ) {
        self.norm_rows(states, &visit.layer.input_norm, space.normed.take(states.len()));
        self.project(visit, rows.clone(), space);
        match pasts {
            Pasts::Continue(pasts) => self.mix_with_pasts(visit, pasts, space),
            Pasts::None | Pasts::Begin { .. } => self.mix(visit, rows, space),
        }
    }

    /// The output projection of what is `mixed`, added to the states.
    pub(super) fn add_heads(&self, visit: &Visit, states: &mut [f32], space: &mut Workspace<E>) {
        let (width, count) = (self.width(), states.len() / self.width());
        let inner = self.config.num_attention_heads * self.config.head_dim;
        let Workspace { mixed, low, update, .. } = space;
        let mixed = Rows { numbers: &mixed[..count * inner], step: inner };
        let pairs = &visit.layer.pairs.output;
        let low = pairs.project(&self.kernels, mixed, count, visit.spans, low);
        let terms = pairs.terms(0, mixed, visit.weights.matrix(OUTPUT), low);
        let norm = visit.layer.output_norms.as_ref().map(|[norm, _]| &norm[..]);
        self.add_update(states, norm, update, |out| add_to(&self.kernels, count, &terms, out, width));
    }

    /// q, k and v of the normed rows, put where attention reads them.
    fn project(&self, visit: &Visit, rows: Range<usize>, space: &mut Workspace<E>) {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let (head_dim, step) = (self.config.head_dim, padded::<E>(self.config.head_dim));
        let (count, tokens) = (rows.len(), visit.packed.len());
        let Workspace { normed, low, queries, keys, values, .. } = space;
        let x = Rows { numbers: &normed[..count * self.width()], step: self.width() };
        let pairs = &visit.layer.pairs.inputs;
        let low = pairs.project(&self.kernels, x, count, visit.spans, low);
        let terms = [0, 1, 2].map(|place| pairs.terms(place, x, visit.weights.matrix(place), low));
        let places = self.places(visit, rows.clone());
        let of_keys = tokens * kv_heads * step;
        let all = [queries.take(count * heads * step), keys.take(of_keys), values.take(of_keys)].map(Shared::new);
        let out = Heads { all, group: heads / kv_heads, step, rows, tokens };
        let sets = terms.each_ref().map(|terms| [&terms[..]]);
        self.kernels.multiply_beside(count, head_dim, &sets, |which, mut sums| {
            for first in sums.columns.clone().step_by(head_dim) {
                for row in sums.rows.clone() {
                    let head = sums.line(row, first..first + head_dim);
                    self.finish_head(visit, (which, first), places[row], head);
                    // SAFETY: each head of each row is finished once.
                    rows::round(self.kernels.isa, head, unsafe { out.head(which, first / head_dim, row, head_dim) });
                }
            }
        });
    }

    /// Adds the bias, norms and rotates: the columns from `first` on of q, k or v of a row whose angles stand at `place`.
    fn finish_head(&self, visit: &Visit, (which, first): (usize, usize), place: usize, head: &mut [f32]) {
        if let Some(biases) = &visit.layer.biases {
            rows::add(self.kernels.isa, &biases[which][first..first + head.len()], head);
        }
        if which < 2 {
            if let Some(norms) = &visit.layer.head_norms {
                rows::rms_norm_in_place(self.kernels.isa, head, &norms[which], self.config.rms_norm_eps);
            }
            let (cosines, sines) = visit.angles.at(place);
            rows::rotate(self.kernels.isa, head, cosines, sines);
        }
    }

    /// Where the angles of some rows stand in their table.
    pub(super) fn places(&self, visit: &Visit, rows: Range<usize>) -> Vec<usize> {
        let length = self.config.short_length();
        let is_long = if length < usize::MAX { visit.packed.longer_than(length) } else { Vec::new() };
        let is_long = |segment: usize| is_long.get(segment).copied().unwrap_or(false);
        let positions = positions(visit.packed, rows);
        positions.map(|(segment, position)| visit.angles.place(position, is_long(segment))).collect()
    }

    /// Each query against its ancestors and what stands before it in its segment.
    fn mix(&self, visit: &Visit, rows: Range<usize>, space: &mut Workspace<E>) {
        let heads = self.config.num_attention_heads;
        let (kv_heads, head_dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let (step, count) = (padded::<E>(head_dim), rows.len());
        let group = heads / kv_heads;
        let Workspace { queries, keys, values, mixed, .. } = space;
        let (queries, keys, values) = (&queries[..], &keys[..], &values[..]);
        let mixed = Shared::new(mixed.take(count * heads * head_dim));
        let pieces = match self.read(visit, &rows) {
            None => pieces(visit.packed, rows.clone()),
            Some(read) => runs(read).flat_map(|run| pieces(visit.packed, run)).collect(),
        };
        let items = items(pieces);
        let size = visit.packed.len() * step;
        (0..items.len() * kv_heads).into_par_iter().with_max_len(1).for_each(|item| {
            let (head, pieces) = (item % kv_heads, &items[item / kv_heads]);
            let of_head = head * size..(head + 1) * size;
            let source = HeadRows { keys: &keys[of_head.clone()], values: &values[of_head], step };
            let queries = &queries[head * count * group * step..][..count * group * step];
            self.paths.with(|path| {
                path.restart(head_dim);
                for piece in pieces {
                    path.reach(self.kernels.isa, visit.packed, piece, source);
                    let segment = visit.packed.segments[piece.segment];
                    let first = segment.start + piece.queries.start - rows.start;
                    let size = group * step;
                    let queries = Queries {
                        numbers: &queries[first * size..(first + piece.queries.len()) * size],
                        group,
                        first: segment.position + piece.queries.start,
                    };
                    self.attend(visit, queries, &path.key_values, &mut path.scratch, head, first, &mixed);
                }
            });
        });
    }

    /// Each segment's rows join its past, and its queries see all of that.
    fn mix_with_pasts(&self, visit: &Visit, pasts: &mut [Past<E>], space: &mut Workspace<E>) {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let (head_dim, step, count) = (self.config.head_dim, padded::<E>(self.config.head_dim), visit.packed.len());
        let group = heads / kv_heads;
        let Workspace { queries, keys, values, mixed, .. } = space;
        let (queries, keys, values) = (&queries[..], &keys[..], &values[..]);
        let mixed = Shared::new(mixed.take(count * heads * head_dim));
        let heads_of = pasts.par_iter_mut().enumerate().flat_map_iter(|(segment, past)| {
            past.layer_mut(visit.index).iter_mut().enumerate().map(move |(head, seen)| (segment, head, seen))
        });
        heads_of.for_each(|(segment, head, seen)| {
            let segment = visit.packed.segments[segment];
            let part = (head * count + segment.start) * step..(head * count + segment.start + segment.len) * step;
            seen.extend(self.kernels.isa, &keys[part.clone()], &values[part]);
            let size = group * step;
            let at = (head * count + segment.start) * size;
            let numbers = &queries[at..at + segment.len * size];
            let queries = Queries { numbers, group, first: segment.position };
            self.paths.with(|path| {
                self.attend(visit, queries, seen, &mut path.scratch, head, segment.start, &mixed);
            });
        });
    }

    /// Attends and writes the mixed values of row `first` and those after it.
    #[allow(clippy::too_many_arguments)] // the two kinds of attention have nothing else in common
    fn attend(
        &self,
        visit: &Visit,
        queries: Queries<E>,
        seen: &KeyValues<E>,
        scratch: &mut Scratch<E>,
        head: usize,
        first: usize,
        mixed: &Shared<E>,
    ) {
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim);
        let group = queries.group;
        let sight = self.sight(visit);
        attend(self.kernels.isa, queries, seen, sight, scratch, |row, values, inverse| {
            let at = ((first + row / group) * heads + head * group + row % group) * head_dim;
            // SAFETY: each head of each row is written once.
            rows::round_scaled(self.kernels.isa, values, inverse, unsafe { mixed.part(at..at + head_dim) });
        });
    }

    pub(super) fn sight(&self, visit: &Visit) -> Sight {
        Sight {
            scale: self.config.attention_scale as f32,
            soft_cap: self.config.attention_softcap.map(|cap| cap as f32),
            window: self.config.window(visit.index),
        }
    }

    /// Leaves the chain of each leaf in its past.
    pub(super) fn begin_pasts(&self, visit: &Visit, pasts: &mut Pasts<Past<E>>, space: &Workspace<E>) {
        let Pasts::Begin { pasts, leaves } = pasts else { return };
        let (tokens, step) = (visit.packed.len(), padded::<E>(self.config.head_dim));
        pasts.par_iter_mut().zip(leaves.par_iter()).for_each(|(past, &leaf)| {
            let chain = chain(visit.packed, leaf);
            for (head, seen) in past.layer_mut(visit.index).iter_mut().enumerate() {
                for rows in chain.iter().map(|&part| segment_rows(visit.packed, part)) {
                    let part = (head * tokens + rows.start) * step..(head * tokens + rows.end) * step;
                    seen.extend(self.kernels.isa, &space.keys[part.clone()], &space.values[part]);
                }
            }
        });
    }
}

impl<E> Heads<'_, E> {
    /// A head of a row's queries, keys or values.
    ///
    /// # Safety
    /// Nobody else has the same.
    #[allow(clippy::mut_from_ref)]
    unsafe fn head(&self, which: usize, head: usize, row: usize, head_dim: usize) -> &mut [E] {
        let at = match which {
            0 => (head / self.group * self.rows.len() + row) * self.group + head % self.group,
            _ => head * self.tokens + self.rows.start + row,
        };
        // SAFETY: heads do not overlap; the rest is the caller's promise.
        unsafe { self.all[which].part(at * self.step..at * self.step + head_dim) }
    }
}

impl<E: Element> Path<E> {
    fn restart(&mut self, head_dim: usize) {
        self.links.clear();
        self.key_values.restart(head_dim);
    }

    /// Packs the keys and values of everything up to the piece's last query, keeping what is there already.
    fn reach(&mut self, isa: Isa, packed: &Packed, piece: &Piece, source: HeadRows<E>) {
        let chain = chain(packed, piece.segment);
        let shared = self.links.iter().zip(&chain).take_while(|((link, _), segment)| link == *segment).count();
        self.links.truncate(shared);
        if let Some(&(segment, rows)) = self.links.last() {
            self.key_values.truncate(packed.segments[segment].position + rows);
        } else {
            self.key_values.truncate(0);
        }
        for (depth, &segment) in chain.iter().enumerate() {
            let Range { start, end } = segment_rows(packed, segment);
            let wanted = if segment == piece.segment { piece.queries.end } else { end - start };
            if depth == self.links.len() {
                self.links.push((segment, 0));
            }
            let there = &mut self.links[depth].1;
            let fresh = (start + *there) * source.step..(start + wanted.max(*there)) * source.step;
            self.key_values.extend(isa, &source.keys[fresh.clone()], &source.values[fresh]);
            *there = wanted.max(*there);
        }
    }
}

/// A segment with its ancestors, outermost first.
fn chain(packed: &Packed, segment: usize) -> Vec<usize> {
    let mut chain = packed.ancestors(segment);
    chain.push(segment);
    chain
}

pub(super) fn segment_rows(packed: &Packed, segment: usize) -> Range<usize> {
    let segment = packed.segments[segment];
    segment.start..segment.start + segment.len
}

/// Segments and positions of some rows in their sequences.
fn positions(packed: &Packed, rows: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    pieces(packed, rows).into_iter().flat_map(|Piece { segment, queries }| {
        let first = packed.segments[segment].position;
        queries.map(move |query| (segment, first + query))
    })
}

/// The parts of segments that lie in `rows`.
fn pieces(packed: &Packed, rows: Range<usize>) -> Vec<Piece> {
    let first = packed.segments.partition_point(|segment| segment.start + segment.len <= rows.start);
    let inside = packed.segments.iter().enumerate().skip(first).take_while(|(_, segment)| segment.start < rows.end);
    inside
        .map(|(index, segment)| Piece {
            segment: index,
            queries: rows.start.saturating_sub(segment.start)..segment.len.min(rows.end - segment.start),
        })
        .collect()
}

/// Rows that follow each other.
fn runs(rows: &[usize]) -> impl Iterator<Item = Range<usize>> {
    rows.chunk_by(|row, next| row + 1 == *next).map(|run| run[0]..run[run.len() - 1] + 1)
}

/// Runs of pieces of about as many queries each; a long piece is cut.
fn items(pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let mut items: Vec<Vec<Piece>> = vec![Vec::new()];
    let mut room = QUERIES_OF_AN_ITEM;
    for Piece { segment, queries } in pieces {
        let mut start = queries.start;
        while start < queries.end {
            if room == 0 {
                items.push(Vec::new());
                room = QUERIES_OF_AN_ITEM;
            }
            let end = queries.end.min(start + room);
            items.last_mut().expect("there is always an item").push(Piece { segment, queries: start..end });
            room -= end - start;
            start = end;
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed() -> Packed {
        let mut packed = Packed::default();
        let stem = packed.push(&[1; 600], None);
        let branch = packed.push(&[2; 5], Some(stem));
        packed.push(&[3; 7], Some(branch));
        packed.push(&[4; 3], Some(stem));
        packed.push(&[5; 2], None);
        packed
    }

    #[test]
    fn pieces_cover_rows_once_and_know_their_positions() {
        let packed = packed();
        let found = pieces(&packed, 598..613);
        let cut: Vec<_> = found.iter().map(|piece| (piece.segment, piece.queries.clone())).collect();
        assert_eq!(cut, [(0, 598..600), (1, 0..5), (2, 0..7), (3, 0..1)]);
        let expected: Vec<usize> = (598..612).chain([600]).collect();
        assert_eq!(positions(&packed, 598..613).map(|(_, position)| position).collect::<Vec<_>>(), expected);
        let items = items(pieces(&packed, 0..617));
        let queries = items.iter().flatten().map(|piece| piece.queries.len()).sum::<usize>();
        assert_eq!((queries, items.len()), (617, 617_usize.div_ceil(QUERIES_OF_AN_ITEM)));
        assert_eq!(runs(&[0, 1, 2, 7, 9, 10]).collect::<Vec<_>>(), [0..3, 7..8, 9..11]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn a_path_holds_just_what_its_last_piece_sees() {
        let packed = packed();
        let numbers: Vec<f32> = (0..packed.len()).map(|row| row as f32).flat_map(|row| [row, row]).collect();
        let source = HeadRows { keys: &numbers, values: &numbers, step: 2 };
        let mut path = Path::<f32>::default();
        path.restart(2);
        let mut expect = |segment: usize, queries: Range<usize>, rows: Vec<usize>| {
            path.reach(Isa::best(), &packed, &Piece { segment, queries }, source);
            let mut alone = KeyValues::<f32>::new(2);
            rows.iter().for_each(|&row| alone.push(&numbers[2 * row..2 * row + 2], &numbers[2 * row..2 * row + 2]));
            assert_eq!(path.key_values.len(), alone.len());
            assert!((0..alone.len()).all(|at| path.key_values.value(at) == alone.value(at)));
        };
        expect(0, 0..600, (0..600).collect());
        expect(1, 0..5, (0..605).collect());
        expect(2, 0..3, (0..608).collect());
        expect(2, 3..7, (0..612).collect());
        expect(3, 0..3, (0..600).chain(612..615).collect());
        expect(4, 0..2, (615..617).collect());
        expect(2, 0..1, (0..606).collect());
    }
}
