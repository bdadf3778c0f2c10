//! A wave's sequences as one trie, made by sorting.
//!
//! Sequences in the order of their token ids are the trie read depth first: what a sequence shares with any earlier one
//! it shares with the one before it. So forks need no search, memory is a number a sequence, and the layout depends on
//! the set of sequences alone. A segment ends where sequences part and where one of them ends.
//!
//! Where a model rotates long sequences otherwise, these share nothing with others: they are sorted behind them.
//!
//! A request's last token is left out by the caller: only its probability is wanted, and that comes from the row before.

use std::ops::Range;

use crate::model::packed::Packed;

/// How far two sequences agree from the first item on.
pub fn shared<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether one of two sequences is long and the other is not.
pub fn are_apart(pair: [&[u32]; 2], short_length: usize) -> bool {
    (pair[0].len() > short_length) != (pair[1].len() > short_length)
}

/// The trie as a layout, and where each sequence ended in it.
#[derive(Debug)]
pub struct Laid {
    pub packed: Packed,
    /// The segment that each sequence ends with, in the order they were given.
    pub leaves: Vec<usize>,
}

impl Laid {
    /// Merges `sequences`; each has at least one token, and equal ones end in the same segment. Those of more than
    /// `short_length` tokens are laid apart from the others.
    pub fn of(sequences: &[&[u32]], short_length: usize) -> Laid {
        let sorted = Sorted::of(sequences, short_length);
        let mut laid = Laid { packed: Packed::default(), leaves: vec![0; sequences.len()] };
        let mut pending = vec![Branch { first: 0, end: sequences.len(), depth: 0, parent: None }];
        while let Some(branch) = pending.pop().filter(|branch| branch.first < branch.end) {
            let fork = sorted.fork(&branch);
            let parent = match fork > branch.depth {
                true => Some(laid.packed.push(&sorted.sequence(branch.first)[branch.depth..fork], branch.parent)),
                false => branch.parent,
            };
            let ended = (branch.first..branch.end).take_while(|&at| sorted.sequence(at).len() == fork);
            let ended = ended.map(|at| laid.leaves[sorted.order[at]] = parent.expect("a sequence has a token")).count();
            sorted.part(branch.first + ended..branch.end, fork, parent, &mut pending);
        }
        laid
    }

    /// The row of token `index` of the sequence given as number `sequence`.
    pub fn row(&self, sequence: usize, index: usize) -> usize {
        let segments = &self.packed.segments;
        let mut segment = &segments[self.leaves[sequence]];
        while segment.position > index {
            segment = &segments[segment.parent.expect("the first segment of a sequence begins at 0")];
        }
        segment.start + index - segment.position
    }
}

/// Sequences by their token ids.
struct Sorted<'a> {
    sequences: &'a [&'a [u32]],
    order: Vec<usize>,
    /// What each has in common with the one before it.
    common: Vec<usize>,
}

/// Sequences `first..end`, as sorted, that agree in their first `depth` tokens, which end with the segment `parent`.
struct Branch {
    first: usize,
    end: usize,
    depth: usize,
    parent: Option<usize>,
}

impl<'a> Sorted<'a> {
    fn of(sequences: &'a [&'a [u32]], short_length: usize) -> Sorted<'a> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&index| (sequences[index].len() > short_length, sequences[index]));
        let neighbours = order.windows(2).map(|pair| {
            let pair = [sequences[pair[0]], sequences[pair[1]]];
            if are_apart(pair, short_length) { 0 } else { shared(pair[0], pair[1]) }
        });
        let common = [0].into_iter().chain(neighbours).collect();
        Sorted { sequences, order, common }
    }

    fn sequence(&self, at: usize) -> &'a [u32] {
        self.sequences[self.order[at]]
    }

    /// In how many tokens all of a branch agree.
    fn fork(&self, branch: &Branch) -> usize {
        let common = self.common[branch.first + 1..branch.end].iter().copied();
        common.min().unwrap_or(self.sequence(branch.first).len())
    }

    /// Puts the branches that `range` parts into at `depth` on the stack, the first on top.
    fn part(&self, range: Range<usize>, depth: usize, parent: Option<usize>, pending: &mut Vec<Branch>) {
        let mut end = range.end;
        for first in range.clone().rev() {
            if first == range.start || self.common[first] == depth {
                pending.push(Branch { first, end, depth, parent });
                end = first;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::random::Random;

    #[test]
    fn a_shared_prefix_is_laid_once() {
        let laid = Laid::of(&[&[1, 2, 3, 4], &[1, 2, 5], &[9], &[1, 2, 3]], usize::MAX);
        assert_eq!(laid.packed.ids, [1, 2, 3, 4, 5, 9]);
        let segments = laid.packed.segments.iter();
        let parents: Vec<(Option<usize>, usize)> = segments.map(|segment| (segment.parent, segment.position)).collect();
        assert_eq!(parents, [(None, 0), (Some(0), 2), (Some(1), 3), (Some(0), 2), (None, 0)]);
        assert_eq!(laid.leaves, [2, 3, 4, 1]);
        assert_eq!((laid.row(0, 3), laid.row(1, 2), laid.row(3, 2), laid.row(0, 0)), (3, 4, 2, 0));
    }

    #[test]
    fn long_sequences_are_laid_apart() {
        let laid = Laid::of(&[&[1, 2, 3, 4], &[1, 2, 5], &[1, 2, 3, 5], &[1, 2]], 3);
        assert_eq!(laid.packed.ids, [1, 2, 5, 1, 2, 3, 4, 5]);
        let parents: Vec<Option<usize>> = laid.packed.segments.iter().map(|segment| segment.parent).collect();
        assert_eq!(parents, [None, Some(0), None, Some(2), Some(2)]);
        assert_eq!(laid.leaves, [3, 1, 4, 0]);
        assert_eq!(laid.packed.longer_than(3), [false, false, true, true, true]);
    }

    #[test]
    fn equal_sequences_are_one() {
        let laid = Laid::of(&[&[5, 6], &[5, 6], &[5]], usize::MAX);
        assert_eq!(laid.packed.ids, [5, 6]);
        assert_eq!(laid.leaves, [1, 1, 0]);
        assert!(Laid::of(&[], usize::MAX).packed.is_empty());
    }

    /// Sequences over few tokens, so that they share, end inside others and repeat.
    pub fn sequences(seed: u64, count: usize) -> Vec<Vec<u32>> {
        let mut random = Random::new(seed);
        (0..count).map(|_| (0..1 + random.below(9)).map(|_| random.below(3) as u32).collect()).collect()
    }

    #[test]
    fn any_sequences_are_laid_like_the_set_of_their_prefixes() {
        for seed in 0..200 {
            let owned = sequences(seed, 1 + seed as usize % 40);
            let given: Vec<&[u32]> = owned.iter().map(Vec::as_slice).collect();
            let laid = Laid::of(&given, usize::MAX);
            let prefixes: HashSet<&[u32]> =
                given.iter().flat_map(|ids| (1..=ids.len()).map(|end| &ids[..end])).collect();
            assert_eq!(laid.packed.len(), prefixes.len(), "seed {seed}");
            for (at, ids) in given.iter().enumerate() {
                let read: Vec<u32> = (0..ids.len()).map(|index| laid.packed.ids[laid.row(at, index)]).collect();
                assert_eq!(read, *ids, "seed {seed}");
                let leaf = &laid.packed.segments[laid.leaves[at]];
                assert_eq!(leaf.position + leaf.len, ids.len(), "a sequence ends with its segment");
            }
            let mut reversed = given.clone();
            reversed.reverse();
            assert_eq!(Laid::of(&reversed, usize::MAX).packed, laid.packed, "the order given does not matter");
        }
    }
}
