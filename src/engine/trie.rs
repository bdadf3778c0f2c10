//! The token trie of a wave: sequences merged by prefix, every distinct token once.
//!
//! A sequence's last token is not put in: only its probability is wanted, and that comes from the row before it.

use std::collections::HashMap;

use crate::model::packed::Packed;

const ROOT: usize = usize::MAX;

/// Sequences merged by prefix.
#[derive(Default)]
pub struct Trie {
    nodes: Vec<Node>,
    children: HashMap<(usize, u32), usize>,
}

struct Node {
    token: u32,
    parent: usize,
    children: Vec<usize>,
}

/// The trie as a layout, and where each node landed in it.
pub struct Laid {
    pub packed: Packed,
    rows: Vec<usize>,
}

/// Where a sequence's tokens are in the trie.
#[derive(Clone, Debug)]
pub struct Path(Vec<usize>);

impl Trie {
    /// Distinct tokens so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Merges a sequence (all of its tokens: leave out the one that is only scored).
    pub fn insert(&mut self, ids: impl IntoIterator<Item = u32>) -> Path {
        let mut at = ROOT;
        let step = |token| {
            at = self.child(at, token);
            at
        };
        Path(ids.into_iter().map(step).collect())
    }

    fn child(&mut self, parent: usize, token: u32) -> usize {
        let fresh = self.nodes.len();
        let child = *self.children.entry((parent, token)).or_insert(fresh);
        if child == fresh {
            self.nodes.push(Node { token, parent, children: Vec::new() });
            if parent != ROOT {
                self.nodes[parent].children.push(child);
            }
        }
        child
    }

    /// Lays the trie out depth first: a run of nodes without a fork is one segment.
    pub fn lay_out(&self) -> Laid {
        let mut laid = Laid { packed: Packed::default(), rows: vec![0; self.nodes.len()] };
        let roots = (0..self.nodes.len()).filter(|&node| self.nodes[node].parent == ROOT);
        let mut pending: Vec<(usize, Option<usize>)> = roots.rev().map(|node| (node, None)).collect();
        while let Some((first, parent)) = pending.pop() {
            let run = self.run(first);
            for (offset, &node) in run.iter().enumerate() {
                laid.rows[node] = laid.packed.len() + offset;
            }
            let ids: Vec<u32> = run.iter().map(|&node| self.nodes[node].token).collect();
            let segment = laid.packed.push(&ids, parent);
            let last = run[run.len() - 1];
            pending.extend(self.nodes[last].children.iter().rev().map(|&child| (child, Some(segment))));
        }
        laid
    }

    /// The nodes from `first` down to the next fork or leaf.
    fn run(&self, first: usize) -> Vec<usize> {
        std::iter::successors(Some(first), |&node| match self.nodes[node].children[..] {
            [only] => Some(only),
            _ => None,
        })
        .collect()
    }
}

impl Laid {
    /// The row of a sequence's token `index`.
    pub fn row(&self, path: &Path, index: usize) -> usize {
        self.rows[path.0[index]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(sequences: &[&[u32]]) -> (Laid, Vec<Path>) {
        let mut trie = Trie::default();
        let paths = sequences.iter().map(|ids| trie.insert(ids.iter().copied())).collect();
        (trie.lay_out(), paths)
    }

    #[test]
    fn a_shared_prefix_is_laid_once() {
        let (laid, paths) = lay(&[&[1, 2, 3, 4], &[1, 2, 5], &[9], &[1, 2, 3]]);
        assert_eq!(laid.packed.ids, [1, 2, 3, 4, 5, 9]);
        let parents: Vec<Option<usize>> = laid.packed.segments.iter().map(|segment| segment.parent).collect();
        assert_eq!(parents, [None, Some(0), Some(0), None]);
        let positions: Vec<usize> = laid.packed.segments.iter().map(|segment| segment.position).collect();
        assert_eq!(positions, [0, 2, 2, 0]);
        assert_eq!((laid.row(&paths[0], 3), laid.row(&paths[1], 2), laid.row(&paths[3], 2)), (3, 4, 2));
    }

    #[test]
    fn every_sequence_can_be_read_back() {
        let sequences: [&[u32]; 5] = [&[7, 7, 7], &[7, 7], &[7, 8, 7], &[8], &[7, 8, 9, 9]];
        let (laid, paths) = lay(&sequences);
        for (ids, path) in sequences.iter().zip(&paths) {
            for (index, &id) in ids.iter().enumerate() {
                assert_eq!(laid.packed.ids[laid.row(path, index)], id);
            }
        }
        assert_eq!(laid.packed.len(), 8);
    }
}
