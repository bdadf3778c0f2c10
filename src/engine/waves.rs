//! Documents cut into waves: in evaluation order, as many as fit, each wave one trie.
//!
//! Where a wave ends, what the next document shares with it is computed again. So of the last places where it could end
//! the one is taken where least is shared, such as between two subjects of MMLU.

use std::collections::VecDeque;

use anyhow::Result;

use super::budget::Room;
use super::prefixes::Prefixes;
use super::tokens::Pair;
use super::trie::{Laid, are_apart, shared};
use crate::model::decoder::Wanted;

/// The first wave is small, so that scores begin to arrive.
const FIRST: usize = 2048;
/// A wave may end this share of its tokens early ...
const EARLY: usize = 2;
/// ... and that many tokens early to spare one that would be computed again.
const WORTH: usize = 32;

/// A document's pairs, and its place in the work.
pub struct Encoded {
    pub document: usize,
    pub pairs: Vec<Pair>,
}

/// A document in its wave.
pub struct Placed {
    pub encoded: Encoded,
    /// Tokens that its requests add to those before it in the wave.
    pub adds: usize,
    /// The tokens it begins with that were there already, and would be computed again in another wave.
    shares: usize,
}

/// Documents that are walked together.
pub struct Wave {
    pub documents: Vec<Placed>,
    /// The pairs' tokens, those of all documents in order.
    pub laid: Laid,
}

/// Cuts `documents` as they come.
pub struct Waves<I> {
    documents: I,
    room: Room,
    /// Taken and left for the next wave.
    left: VecDeque<Encoded>,
    is_first: bool,
}

impl<I: Iterator<Item = Result<Encoded>>> Waves<I> {
    pub fn new(documents: I, room: Room) -> Waves<I> {
        Waves { documents, room, left: VecDeque::new(), is_first: true }
    }

    fn take(&mut self) -> Option<Result<Encoded>> {
        self.left.pop_front().map(Ok).or_else(|| self.documents.next())
    }

    /// The next wave's documents.
    fn fill(&mut self) -> Result<Vec<Placed>> {
        let most = if self.is_first { self.room.wave_tokens().min(FIRST) } else { self.room.wave_tokens() };
        let mut prefixes = Prefixes::new(self.room.short_length);
        let mut placed: Vec<Placed> = Vec::new();
        while let Some(encoded) = self.take().transpose()? {
            let (adds, shares) = cost(&prefixes, &encoded, self.room.short_length);
            if placed.is_empty() {
                self.room.check(encoded.document, self.room.wave_bytes(adds))?;
            } else if prefixes.len() + adds > most {
                self.left.push_front(encoded);
                let kept = cut(&placed, shares, most);
                let left = placed.split_off(kept).into_iter().map(|placed| placed.encoded);
                left.rev().for_each(|encoded| self.left.push_front(encoded));
                break;
            }
            for pair in &encoded.pairs {
                prefixes.insert(pair.fed());
            }
            placed.push(Placed { encoded, adds, shares });
        }
        self.is_first = false;
        Ok(placed)
    }
}

impl<I: Iterator<Item = Result<Encoded>>> Iterator for Waves<I> {
    type Item = Result<Wave>;

    fn next(&mut self) -> Option<Result<Wave>> {
        match self.fill() {
            Ok(placed) if placed.is_empty() => None,
            Ok(placed) => Some(Ok(Wave::of(placed, self.room.short_length))),
            Err(error) => Some(Err(error)),
        }
    }
}

/// What a document adds to `prefixes`, and the longest beginning that it finds there.
fn cost(prefixes: &Prefixes, encoded: &Encoded, short_length: usize) -> (usize, usize) {
    let mut sequences: Vec<&[u32]> = encoded.pairs.iter().map(Pair::fed).collect();
    sequences.sort_unstable_by_key(|ids| (ids.len() > short_length, *ids));
    let (mut adds, mut shares, mut before): (usize, usize, &[u32]) = (0, 0, &[]);
    for ids in sequences {
        let there = prefixes.known(ids);
        let with_before = if are_apart([before, ids], short_length) { 0 } else { shared(before, ids) };
        adds += ids.len() - with_before.max(there);
        shares = shares.max(there);
        before = ids;
    }
    (adds, shares)
}

/// How many of `placed` stay in a wave that the next document, sharing `shares` tokens, does not fit into.
fn cut(placed: &[Placed], shares: usize, most: usize) -> usize {
    let mut best = (shares, placed.len());
    let mut unused = 0;
    for kept in (1..placed.len()).rev() {
        unused += placed[kept].adds;
        if unused > most / EARLY {
            break;
        }
        let cost = placed[kept].shares + unused / WORTH;
        if cost < best.0 {
            best = (cost, kept);
        }
    }
    best.1
}

impl Wave {
    fn of(documents: Vec<Placed>, short_length: usize) -> Wave {
        let pairs = documents.iter().flat_map(|placed| &placed.encoded.pairs);
        let laid = Laid::of(&pairs.map(Pair::fed).collect::<Vec<_>>(), short_length);
        let mut wave = Wave { documents, laid };
        wave.laid.packed.read_only(wave.wanted().into_iter().map(|wanted| wanted.row).collect());
        wave
    }

    /// Every scored token, in the order of documents, requests and tokens.
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let pairs = self.documents.iter().flat_map(|placed| &placed.encoded.pairs);
        for (sequence, pair) in pairs.enumerate() {
            let rows = pair.scored_after().map(|index| self.laid.row(sequence, index));
            wanted.extend(rows.zip(pair.continuation()).map(|(row, &token)| Wanted { row, token }));
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::budget::Limits;
    use crate::memory::Memory;
    use crate::model::decoder::Footprint;

    /// Room for waves of `wave_tokens`, and for one document of `most`.
    fn room(wave_tokens: usize, most: u64) -> Room {
        let footprint = Footprint { fixed: 0, per_token: 512, per_past_token: 0 }; // 1,024 bytes a token with its layout
        Room::new(footprint, 0, Limits { memory: Memory(most * 1024), wave_tokens, running: 1 }).unwrap()
    }

    /// Documents of a header and one request each.
    fn encoded(document: usize, header: &[u32], rest: usize) -> Encoded {
        let own = (0..rest as u32).map(|index| 1000 + 100 * document as u32 + index);
        let context: Vec<u32> = header.iter().copied().chain(own).collect();
        Encoded { document, pairs: vec![Pair::new(&context, &[1, 2]), Pair::new(header, &[3])] }
    }

    fn cut_into(documents: Vec<Encoded>, room: Room) -> Vec<Vec<usize>> {
        let mut waves = Waves::new(documents.into_iter().map(Ok), room);
        waves.is_first = false;
        let numbers = |wave: Wave| wave.documents.iter().map(|placed| placed.encoded.document).collect();
        waves.map(|wave| numbers(wave.unwrap())).collect()
    }

    #[test]
    fn a_wave_is_filled_and_never_overfilled() {
        // A header of 10 once, then 5 tokens a document (4 and the first of the two that are scored): 30 hold four.
        let header: Vec<u32> = (0..10).collect();
        let documents = || (0..10).map(|document| encoded(document, &header, 4)).collect();
        assert_eq!(cut_into(documents(), room(30, 100)), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        let waves = Waves::new(documents().into_iter().map(Ok), room(30, 100)).map(Result::unwrap);
        let laid: Vec<(usize, usize)> =
            waves.map(|wave| (wave.laid.packed.len(), wave.documents.iter().map(|placed| placed.adds).sum())).collect();
        assert_eq!(laid, [(30, 30), (30, 30), (20, 20)], "what documents add is what is laid out");
    }

    #[test]
    fn a_wave_ends_where_little_is_shared() {
        let (one, two): (Vec<u32>, Vec<u32>) = ((0..10).collect(), (50..60).collect());
        let header = |document: usize| if document < 16 { &one } else { &two };
        // 10 + 16 * 5 = 90 tokens under the first header, then 15; 110 would hold 18 documents.
        let documents = (0..30).map(|document| encoded(document, header(document), 4)).collect();
        assert_eq!(cut_into(documents, room(110, 1000)), [(0..16).collect::<Vec<_>>(), (16..30).collect()]);
    }

    #[test]
    fn the_first_wave_is_small() {
        let documents = (0..100).map(|document| Ok(encoded(document, &[7], 99)));
        let mut waves = Waves::new(documents, room(5000, 5000));
        let mut next = || waves.next().unwrap().unwrap().laid.packed.len();
        assert_eq!((next(), next()), (1 + 20 * 100, 1 + 49 * 100));
    }

    #[test]
    fn a_document_larger_than_a_wave_is_a_wave_and_one_larger_than_memory_an_error() {
        let documents = || vec![encoded(0, &[7], 4), encoded(1, &[7], 50), encoded(2, &[7], 4)];
        assert_eq!(cut_into(documents(), room(20, 100)), [vec![0], vec![1], vec![2]]);
        let mut waves = Waves::new(documents().into_iter().map(Ok), room(20, 51));
        assert!(waves.next().unwrap().is_ok());
        let error = waves.next().unwrap().err().unwrap().to_string();
        assert!(error.contains("document 1") && error.contains("--memory"), "{error}");
    }

    #[test]
    fn every_scored_token_has_the_row_before_it() {
        let pairs = vec![Pair::new(&[5, 6], &[7, 8]), Pair::new(&[5, 6], &[9])];
        let wave = Wave::of(vec![Placed { encoded: Encoded { document: 0, pairs }, adds: 3, shares: 0 }], usize::MAX);
        assert_eq!(wave.laid.packed.ids, [5, 6, 7]);
        let wanted: Vec<(usize, u32)> = wave.wanted().iter().map(|wanted| (wanted.row, wanted.token)).collect();
        assert_eq!(wanted, [(1, 7), (2, 8), (1, 9)]);
    }
}
