//! How far apart the ways to run an adapter are: on its base in 4 bits, as it was trained; on the base in the base's own
//! dtype; and merged into the weights.
//!
//! They are three models with three scores. A 4-bit base is another function than the one it was made from, and the adapter
//! has learnt to make up for that difference; a merge takes the base that was not quantised, and rounds the sum (peft's
//! issue 1043 is this surprise). Each decoder is opened, asked and closed in turn.

use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::memory::Memory;
use crate::model::decoder::{Decoder, Pasts, Wanted};
use crate::model::home::{DecoderUser, Held, Home, Stored};
use crate::model::packed::Packed;
use crate::model_id::own_dtype;
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, Dtype, Format};

/// What is asked: prose, a question, arithmetic, code and a talk.
const PROMPTS: [&str; 5] = [
    "The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote down the weather and the ships.",
    "Question: Why do leaves turn yellow in autumn?\nAnswer: Because the tree takes back the green pigment",
    "A farmer has 17 sheep and buys 3 times as many. How many are there now? 17 + 3 * 17 = 68, so the answer is 68.",
    "def mean(numbers):\n    total = 0\n    for number in numbers:\n        total += number\n    return total / len(numbers)",
    "User: Can you help me plan a walk?\nAssistant: Of course. How long should it be, and do you like hills?",
];
/// Rows whose whole vocabulary is asked for at once.
const ROWS: usize = 8;

/// A way to run the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On the base in NF4.
    FourBits,
    /// On the base in its own dtype.
    Plain(Dtype),
    Merged(Dtype),
}

/// How far two ways are apart, in natural logs of a token's probability, over the whole vocabulary after every token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub ways: [Way; 2],
    pub largest: f64,
    pub mean: f64,
    /// Places where the most probable token is another.
    pub other_picks: usize,
}

/// The ways of one adapter, held against each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    pub prompts: usize,
    pub tokens: usize,
    pub differences: Vec<Difference>,
}

/// Asks `model` with the adapter in the folder `adapter`, and `merged`, which `merge` made of the two. A model that is
/// stored in 4 bits has no other base, so there the merged one stands against the 4-bit one alone. `memory`: what the
/// process may use; layers that do not fit are streamed.
pub fn verify(model: &Path, adapter: &Path, merged: &Path, home: Home, memory: Memory) -> Result<Verification> {
    let tokenizer = Tokenizer::open(model)?;
    let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_>>()?;
    let packed = Packed::rows(&prompts);
    ensure!(!packed.is_empty(), "{}: its tokenizer makes no token of the bundled prompts", model.display());
    let checkpoint = Checkpoint::open(model)?;
    let (dtype, in_four_bits) = (own_dtype(&checkpoint)?, checkpoint.holds(Format::Nf4));
    let merged_dtype = own_dtype(&Checkpoint::open(merged)?)?;
    drop(checkpoint);

    let four_bits = Stored { checkpoint: model, adapter: Some(adapter), held: Held { dtype, nf4: true }, home, memory };
    let mut ways = vec![(Way::FourBits, four_bits.open(Ask(&packed))?)];
    if !in_four_bits {
        let plain = Stored { held: Held { dtype, nf4: false }, ..four_bits };
        ways.push((Way::Plain(dtype), plain.open(Ask(&packed))?));
    }
    let held = Held { dtype: merged_dtype, nf4: false };
    let after = Stored { checkpoint: merged, adapter: None, held, home, memory };
    ways.push((Way::Merged(merged_dtype), after.open(Ask(&packed))?));
    let differences = (0..ways.len()).flat_map(|first| (first + 1..ways.len()).map(move |second| (first, second)));
    let difference = |(first, second)| Difference::of([&ways[first], &ways[second]], packed.len());
    let differences = differences.map(difference).collect();
    Ok(Verification { prompts: prompts.len(), tokens: packed.len(), differences })
}

/// Asks a model about every token of the vocabulary: natural logs of probabilities, (tokens, vocabulary).
struct Ask<'a>(&'a Packed);

impl DecoderUser for Ask<'_> {
    type Output = Vec<f32>;

    fn take<D: Decoder>(self, decoder: D) -> Result<Vec<f32>> {
        log_probabilities(&decoder, self.0)
    }
}

fn log_probabilities(decoder: &impl Decoder, packed: &Packed) -> Result<Vec<f32>> {
    let hidden = decoder.walk(packed, Pasts::None)?;
    let vocabulary = decoder.config().vocab_size;
    let mut found = Vec::with_capacity(packed.len() * vocabulary);
    for first in (0..packed.len()).step_by(ROWS) {
        let rows = first..packed.len().min(first + ROWS);
        let tokens = |row| (0..vocabulary as u32).map(move |token| Wanted { row, token });
        let scores = decoder.score(&hidden, &rows.flat_map(tokens).collect::<Vec<_>>())?;
        found.extend(scores.iter().map(|score| score.log_probability as f32));
    }
    Ok(found)
}

impl Difference {
    /// Of two ways' answers, (rows, vocabulary).
    fn of([(one, first), (other, second)]: [&(Way, Vec<f32>); 2], rows: usize) -> Difference {
        let width = first.len() / rows;
        let (mut largest, mut sum) = (0f64, 0f64);
        for (first, second) in first.iter().zip(second) {
            let apart = f64::from((first - second).abs());
            largest = largest.max(apart);
            sum += apart;
        }
        let picks = first.chunks(width).zip(second.chunks(width));
        let other_picks = picks.filter(|(first, second)| pick(first) != pick(second)).count();
        Difference { ways: [*one, *other], largest, mean: sum / first.len() as f64, other_picks }
    }
}

/// The first of the largest.
fn pick(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, index| if row[index] > row[best] { index } else { best })
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::FourBits => write!(f, "adapter on 4 bits"),
            Way::Plain(dtype) => write!(f, "adapter on {}", dtype.name()),
            Way::Merged(dtype) => write!(f, "merged, {}", dtype.name()),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verification { prompts, tokens, .. } = self;
        writeln!(
            f,
            "log-probabilities of every token of the vocabulary after {tokens} tokens of {prompts} bundled prompts:"
        )?;
        writeln!(f, "{:<40}{:>10}{:>10}{:>14}", "", "largest", "mean", "other picks")?;
        for Difference { ways: [first, second], largest, mean, other_picks } in &self.differences {
            let ways = format!("{first} against {second}");
            writeln!(f, "{ways:<40}{largest:>10.4}{mean:>10.5}{:>14}", format!("{other_picks} of {tokens}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_worked_by_hand() {
        let of = |first: &[f32], second: &[f32], rows| {
            let [first, second] = [(Way::FourBits, first.to_vec()), (Way::Merged(Dtype::BF16), second.to_vec())];
            Difference::of([&first, &second], rows)
        };
        // Differences 0.5, 0, 0 and 1; where two are equally probable the first is picked.
        let found = of(&[-1.0, -2.0, -1.0, -2.0], &[-1.5, -2.0, -1.0, -1.0], 2);
        assert_eq!((found.largest, found.mean, found.other_picks), (1.0, 0.375, 0));
        let found = of(&[-1.0, -2.0], &[-2.0, -1.0], 1);
        assert_eq!((found.largest, found.mean, found.other_picks), (1.0, 1.0, 1));
        let shown = Verification { prompts: 1, tokens: 1, differences: vec![found] }.to_string();
        assert!(shown.contains("adapter on 4 bits against merged, bf16") && shown.contains("1 of 1"), "{shown}");
    }
}
