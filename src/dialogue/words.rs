//! Texts as words, for comparing them: what differs in case, spacing or punctuation alone is equal here.
//!
//! A word is a run of letters and digits, in lower case; of scripts without spaces (Chinese, Japanese) every character
//! is one. Words and runs of them are known by hashes of 64 bits, which are the same on every machine.

use std::hash::Hasher;
use std::ops::Range;

/// One word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub hash: u64,
    /// Where it stands, in bytes.
    pub place: Range<usize>,
}

/// The words of `text`, in order.
pub fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut open: Option<Word> = None;
    for (start, character) in text.char_indices() {
        let end = start + character.len_utf8();
        if !character.is_alphanumeric() {
            words.extend(open.take());
        } else if is_word_by_itself(character) {
            words.extend(open.take());
            words.push(Word { hash: add(START, character), place: start..end });
        } else {
            let word = open.get_or_insert(Word { hash: START, place: start..end });
            word.hash = character.to_lowercase().fold(word.hash, add);
            word.place.end = end;
        }
    }
    words.extend(open);
    words
}

/// A hash of each run of `length` words; of fewer words than that, none.
pub fn grams(words: &[Word], length: usize) -> impl Iterator<Item = u64> {
    words.windows(length).map(gram)
}

/// A hash of `words` as one run.
pub fn gram(words: &[Word]) -> u64 {
    words.iter().fold(START, |hash, word| mix(hash ^ word.hash))
}

/// The hasher of tables whose keys are such hashes already.
#[derive(Default)]
pub struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = mix(self.0 ^ u64::from(byte)));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write_u32(&mut self, hash: u32) {
        self.0 = mix(u64::from(hash));
    }
}

/// FNV-1a's offset and prime.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

fn add(hash: u64, character: char) -> u64 {
    (hash ^ u64::from(u32::from(character))).wrapping_mul(PRIME)
}

/// SplitMix64's finaliser: every bit of a hash depends on every bit of `value`.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Kana and Han.
fn is_word_by_itself(character: char) -> bool {
    matches!(u32::from(character), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let text = "It's  4 o'Clock, Zoë";
        let found: Vec<&str> = words(text).into_iter().map(|word| &text[word.place]).collect();
        assert_eq!(found, ["It", "s", "4", "o", "Clock", "Zoë"]);
        let text = "我有2只cats";
        let found: Vec<&str> = words(text).into_iter().map(|word| &text[word.place]).collect();
        assert_eq!(found, ["我", "有", "2", "只", "cats"]);
    }

    #[test]
    fn case_and_punctuation_do_not_matter_and_order_does() {
        let hash = |text: &str| gram(&words(text));
        assert_eq!(hash("The CAT, sat!"), hash("the cat\nsat"));
        assert_ne!(hash("the cat sat"), hash("sat the cat"));
        assert_ne!(hash("ab c"), hash("a bc"));
        // FNV-1a of the byte 'a', as published with the function.
        assert_eq!(words("a")[0].hash, 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn grams_are_all_runs_of_a_length() {
        let all = words("a b c d");
        assert_eq!(grams(&all, 3).collect::<Vec<_>>(), [gram(&all[..3]), gram(&all[1..])]);
        assert_eq!(grams(&all, 5).count(), 0);
    }
}
