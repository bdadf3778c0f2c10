//! Counts distinct tokens while sequences come one after another: a radix tree that knows which prefixes were there.
//!
//! [`super::trie`] lays out a wave that is complete; this says beforehand how much a document would add to one, and, for a
//! plan, how many tokens a whole evaluation has. It holds each distinct token once, in 4 bytes, and some 40 bytes a fork.

use std::collections::HashMap;

use super::trie::shared;

/// A set of sequences' prefixes, those of long sequences apart from the others'.
pub struct Prefixes {
    short_length: usize,
    tokens: Vec<u32>,
    runs: Vec<Run>,
    /// The run that continues a run (or, below a root, begins a sequence) with a token.
    below: HashMap<(u32, u32), u32>,
}

/// Tokens without a fork, `tokens[start..end]`.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    end: usize,
    above: u32,
}

/// Above a first run.
const ROOT: u32 = u32::MAX;
const ROOT_OF_LONG: u32 = ROOT - 1;

/// Where a sequence leaves the tree.
struct Parting {
    /// Tokens that are in the tree.
    known: usize,
    /// The last run that was entered, and how many of its tokens agree.
    run: u32,
    within: usize,
}

impl Prefixes {
    /// An empty set; sequences of more than `short_length` tokens are long.
    pub fn new(short_length: usize) -> Prefixes {
        Prefixes { short_length, tokens: Vec::new(), runs: Vec::new(), below: HashMap::new() }
    }

    /// Distinct tokens so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of `ids`, from the first on, that are there already.
    pub fn known(&self, ids: &[u32]) -> usize {
        self.follow(ids).known
    }

    /// Adds a sequence and returns how many of its tokens were new.
    pub fn insert(&mut self, ids: &[u32]) -> usize {
        let Parting { known, run, within } = self.follow(ids);
        if known == ids.len() {
            return 0;
        }
        let above = if run >= ROOT_OF_LONG { run } else { self.split(run, within) };
        let start = self.tokens.len();
        self.tokens.extend_from_slice(&ids[known..]);
        let fresh = self.add(Run { start, end: self.tokens.len(), above });
        self.below.insert((above, ids[known]), fresh);
        ids.len() - known
    }

    fn follow(&self, ids: &[u32]) -> Parting {
        let root = if ids.len() > self.short_length { ROOT_OF_LONG } else { ROOT };
        let mut at = Parting { known: 0, run: root, within: 0 };
        while let Some(&run) = ids.get(at.known).and_then(|&token| self.below.get(&(at.run, token))) {
            let Run { start, end, .. } = self.runs[run as usize];
            let within = shared(&ids[at.known..], &self.tokens[start..end]);
            at = Parting { known: at.known + within, run, within };
            if within < end - start {
                break;
            }
        }
        at
    }

    /// Makes the first `within` tokens of a run a run of their own (which keeps the number), and returns it.
    fn split(&mut self, run: u32, within: usize) -> u32 {
        let Run { start, end, above } = self.runs[run as usize];
        if within == end - start {
            return run;
        }
        // The upper part is the new one, so that what hangs below the run stays as it is.
        let upper = self.add(Run { start, end: start + within, above });
        self.runs[run as usize] = Run { start: start + within, end, above: upper };
        self.below.insert((above, self.tokens[start]), upper);
        self.below.insert((upper, self.tokens[start + within]), run);
        upper
    }

    fn add(&mut self, run: Run) -> u32 {
        self.runs.push(run);
        u32::try_from(self.runs.len() - 1).ok().filter(|&run| run < ROOT_OF_LONG).expect("fewer than 4 billion forks")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::random::Random;

    #[test]
    fn only_new_tokens_count() {
        let mut prefixes = Prefixes::new(usize::MAX);
        assert_eq!(prefixes.insert(&[1, 2, 3, 4]), 4);
        assert_eq!(prefixes.insert(&[1, 2, 5]), 1);
        assert_eq!(prefixes.insert(&[1, 2, 3]), 0);
        assert_eq!(prefixes.insert(&[1, 2, 3, 4, 5, 6]), 2);
        assert_eq!((prefixes.known(&[1, 2, 5, 9]), prefixes.known(&[9]), prefixes.known(&[])), (3, 0, 0));
        assert_eq!(prefixes.len(), 7);
    }

    #[test]
    fn long_sequences_count_by_themselves() {
        let mut prefixes = Prefixes::new(3);
        assert_eq!(prefixes.insert(&[1, 2, 3]), 3);
        assert_eq!(prefixes.insert(&[1, 2, 3, 4]), 4);
        assert_eq!((prefixes.insert(&[1, 2, 3, 5]), prefixes.insert(&[1, 2, 4])), (1, 1));
    }

    #[test]
    fn any_sequences_count_like_the_set_of_their_prefixes() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (mut prefixes, mut naive) = (Prefixes::new(usize::MAX), HashSet::new());
            for _ in 0..60 {
                let ids: Vec<u32> = (0..1 + random.below(9)).map(|_| random.below(3) as u32).collect();
                let known = (1..=ids.len()).filter(|&end| naive.contains(&ids[..end])).count();
                assert_eq!(prefixes.known(&ids), known, "seed {seed}");
                assert_eq!(prefixes.insert(&ids), ids.len() - known, "seed {seed}");
                naive.extend((1..=ids.len()).map(|end| ids[..end].to_vec()));
                assert_eq!(prefixes.len(), naive.len(), "seed {seed}");
            }
        }
    }
}
