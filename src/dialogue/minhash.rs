//! Near-duplicates by MinHash (Broder, 1997): which of the dialogues so far has nearly the same words in the same order.
//!
//! A dialogue is the set of its runs of five words. Of 128 seeded hash functions over these the smallest values are kept,
//! 16 bits each: the share of equal ones estimates the two sets' Jaccard similarity, with a standard error of 0.035 at
//! 0.8. Who is compared at all is found by 16 bands of 8 values: a pair at 0.8 meets in one with probability 0.95, at 0.9
//! with 0.9999.
//!
//! Memory grows by what is kept of a dialogue: 256 bytes of signature, 64 of chains and 16 entries of 9 bytes in tables
//! that are between 7/16 and 7/8 full: 485 to 650 bytes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use super::words::{Hashed, Word, gram, grams, mix};
use crate::random::Random;

/// Words a run.
const SHINGLE: usize = 5;
const HASHES: usize = 128;
const BANDS: usize = 16;
const ROWS: usize = HASHES / BANDS;
/// Dialogues a block of memory, so that growing copies nothing.
const BLOCK: usize = 1 << 14;
const NONE: u32 = u32::MAX;

/// What is kept of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    values: [u16; HASHES],
    /// A hash of each band's eight values, before they were cut to 16 bits.
    bands: [u32; BANDS],
}

/// The hash functions: `value -> upper half of (factor * value + term)`, factors odd.
pub struct MinHash {
    functions: Vec<(u64, u64)>,
}

impl Default for MinHash {
    fn default() -> MinHash {
        let mut random = Random::named(0, "minhash");
        MinHash { functions: (0..HASHES).map(|_| (random.next_u64() | 1, random.next_u64())).collect() }
    }
}

impl MinHash {
    /// The signature of a text's words; a text of fewer than five is one run.
    pub fn signature(&self, words: &[Word]) -> Signature {
        let mut smallest = [u32::MAX; HASHES];
        let whole = (words.len() < SHINGLE).then(|| gram(words));
        for shingle in grams(words, SHINGLE).chain(whole) {
            for (smallest, (factor, term)) in smallest.iter_mut().zip(&self.functions) {
                *smallest = (*smallest).min((shingle.wrapping_mul(*factor).wrapping_add(*term) >> 32) as u32);
            }
        }
        let band = |rows: &[u32]| rows.iter().fold(0, |hash, &row| mix(hash ^ u64::from(row))) as u32;
        let mut bands = [0; BANDS];
        bands.iter_mut().zip(smallest.chunks(ROWS)).for_each(|(to, rows)| *to = band(rows));
        Signature { values: smallest.map(|value| value as u16), bands }
    }
}

/// The dialogues so far.
pub struct Seen {
    /// So many of the values must be equal.
    needed: usize,
    blocks: Vec<Vec<Kept>>,
    count: usize,
    /// By band: its hash, and the last dialogue that has it.
    heads: Vec<HashMap<u32, u32, BuildHasherDefault<Hashed>>>,
}

struct Kept {
    values: [u16; HASHES],
    /// By band: the dialogue before with the same hash.
    before: [u32; BANDS],
}

impl Seen {
    /// `similarity`: from where on two dialogues are the same, 0 to 1.
    pub fn new(similarity: f64) -> Seen {
        Seen {
            needed: (similarity * HASHES as f64).ceil() as usize,
            blocks: Vec::new(),
            count: 0,
            heads: vec![HashMap::default(); BANDS],
        }
    }

    /// The number (from 0) of the dialogue that `signature` repeats and its similarity: the most similar, of equally
    /// similar ones the first. Where there is none, `signature` is the next dialogue.
    pub fn find_or_add(&mut self, signature: &Signature) -> Option<(usize, f64)> {
        let mut best: Option<(usize, usize)> = None;
        for (band, heads) in self.heads.iter().enumerate() {
            let mut next = heads.get(&signature.bands[band]).copied().unwrap_or(NONE);
            while next != NONE {
                let kept = &self.blocks[next as usize / BLOCK][next as usize % BLOCK];
                let equal = signature.values.iter().zip(&kept.values).filter(|(a, b)| a == b).count();
                let nearer = best.is_none_or(|(most, first)| (equal, first) > (most, next as usize));
                if equal >= self.needed && nearer {
                    best = Some((equal, next as usize));
                }
                next = kept.before[band];
            }
        }
        if best.is_none() {
            self.add(signature);
        }
        best.map(|(equal, number)| (number, equal as f64 / HASHES as f64))
    }

    fn add(&mut self, signature: &Signature) {
        let number = u32::try_from(self.count).ok().filter(|&number| number != NONE);
        let number = number.expect("four billion signatures are two terabytes");
        let mut before = [NONE; BANDS];
        for ((heads, hash), before) in self.heads.iter_mut().zip(signature.bands).zip(&mut before) {
            match heads.entry(hash) {
                Entry::Occupied(mut head) => *before = head.insert(number),
                Entry::Vacant(place) => {
                    place.insert(number);
                }
            }
        }
        if self.count.is_multiple_of(BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        self.blocks[self.count / BLOCK].push(Kept { values: signature.values, before });
        self.count += 1;
    }

    /// Dialogues kept.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialogue::words::words;

    /// `count` words, of which those in `changed` are others.
    fn text(seed: u64, count: usize, changed: std::ops::Range<usize>) -> String {
        let mut random = Random::new(seed);
        let mut text = String::new();
        for index in 0..count {
            let word = random.below(100_000) + if changed.contains(&index) { 1_000_000 } else { 0 };
            text.push_str(&format!("w{word} "));
        }
        text
    }

    fn equal(a: &Signature, b: &Signature) -> f64 {
        a.values.iter().zip(&b.values).filter(|(a, b)| a == b).count() as f64 / HASHES as f64
    }

    #[test]
    fn equal_values_estimate_the_similarity_of_the_sets() {
        let minhash = MinHash::default();
        for changed in [0, 20, 60, 150] {
            // `changed` words in a row take `changed + 4` of 496 runs with them.
            let different = if changed == 0 { 0.0 } else { changed as f64 + 4.0 };
            let true_similarity = (496.0 - different) / (496.0 + different);
            let mut estimates = Vec::new();
            for seed in 0..20 {
                let signature = |text: &str| minhash.signature(&words(text));
                estimates.push(equal(&signature(&text(seed, 500, 0..0)), &signature(&text(seed, 500, 9..9 + changed))));
            }
            let mean = estimates.iter().sum::<f64>() / 20.0;
            assert!((mean - true_similarity).abs() < 0.03, "{changed}: {mean} for {true_similarity}");
        }
    }

    #[test]
    fn near_duplicates_are_found_and_the_first_is_named() {
        let minhash = MinHash::default();
        let mut seen = Seen::new(0.8);
        let mut find = |text: &str| seen.find_or_add(&minhash.signature(&words(text)));
        for seed in 0..200 {
            assert_eq!(find(&text(seed, 300, 0..0)), None, "{seed}");
        }
        assert_eq!(find(&text(77, 300, 0..0)), Some((77, 1.0)));
        let (number, similarity) = find(&text(78, 300, 40..50)).unwrap();
        assert!(number == 78 && (0.8..1.0).contains(&similarity), "{number} {similarity}");
        assert_eq!(find(&text(79, 300, 0..150)), None, "half of it is new");
        assert_eq!(find("Hello, there!"), None);
        assert_eq!(find("hello there"), Some((201, 1.0)), "short texts are compared whole");
        assert_eq!(find("hello you"), None);
        assert_eq!(seen.len(), 203);
    }
}
