//! The one layout of tokens, for scoring and for training: segments laid end to end, no padding.
//!
//! A segment attends to itself causally and to all of its ancestors whole; so a trie of requests, a batch of
//! dialogues (no parents) and a step of generation (parents in the cache) are the same thing.

use std::ops::Range;

/// A run of tokens that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first row in `Packed::ids`.
    pub start: usize,
    pub len: usize,
    /// Index of the segment it continues; always a smaller index.
    pub parent: Option<usize>,
    /// Position of its first token in its sequence (what rotary embedding sees).
    pub position: usize,
}

/// Tokens of many sequences, flat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pub ids: Vec<u32>,
    pub segments: Vec<Segment>,
    /// Rows whose hidden states are read after the last layer, in order; `None`: all. The last layer may leave the others
    /// as they are: only their keys and values are needed.
    pub read: Option<Vec<usize>>,
}

impl Packed {
    /// Sequences that share nothing, one segment each.
    pub fn rows<T: AsRef<[u32]>>(sequences: &[T]) -> Packed {
        let mut packed = Packed::default();
        for sequence in sequences {
            packed.push(sequence.as_ref(), None);
        }
        packed
    }

    /// Appends a segment and returns its index.
    pub fn push(&mut self, ids: &[u32], parent: Option<usize>) -> usize {
        let position = parent.map_or(0, |index| self.segments[index].position + self.segments[index].len);
        self.segments.push(Segment { start: self.ids.len(), len: ids.len(), parent, position });
        self.ids.extend_from_slice(ids);
        self.segments.len() - 1
    }

    /// Appends a segment that continues a cached sequence of `position` tokens.
    pub fn push_at(&mut self, ids: &[u32], position: usize) {
        self.segments.push(Segment { start: self.ids.len(), len: ids.len(), parent: None, position });
        self.ids.extend_from_slice(ids);
    }

    /// Says that only these rows are read, in any order.
    pub fn read_only(&mut self, mut rows: Vec<usize>) {
        rows.sort_unstable();
        rows.dedup();
        self.read = Some(rows);
    }

    /// Those of `rows` that are read; `None`: all.
    pub fn read_of(&self, rows: &Range<usize>) -> Option<&[usize]> {
        let read = self.read.as_ref()?;
        Some(&read[read.partition_point(|&row| row < rows.start)..read.partition_point(|&row| row < rows.end)])
    }

    /// For each segment whether its sequences have more than `length` tokens, ancestors and what follows counted. Those
    /// that share a segment must be alike in this (the engine's trie sees to it).
    pub fn longer_than(&self, length: usize) -> Vec<bool> {
        let mut longer = vec![false; self.segments.len()];
        for (index, segment) in self.segments.iter().enumerate().rev() {
            longer[index] |= segment.position + segment.len > length;
            if let Some(parent) = segment.parent {
                longer[parent] |= longer[index];
            }
        }
        longer
    }

    /// One more than the largest position.
    pub fn positions(&self) -> usize {
        self.segments.iter().map(|segment| segment.position + segment.len).max().unwrap_or(0)
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The segments a segment attends to whole, outermost first.
    pub fn ancestors(&self, index: usize) -> Vec<usize> {
        let mut chain: Vec<usize> =
            std::iter::successors(self.segments[index].parent, |&parent| self.segments[parent].parent).collect();
        chain.reverse();
        chain
    }
}
