//! What a run may hold: everything that does not depend on how many tokens walk together is taken off the budget, and the
//! rest says how many micro-batches of a step share a walk through the layers. It decides who computes a number when,
//! never which number.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::data::TrainingData;
use crate::memory::Memory;
use crate::model::training::{MicroBatch, Trainable};

/// The program itself, its tokenizer, its thread stacks.
pub(super) const PROGRAM: u64 = 96 << 20;
/// Of a trained number: itself, its gradient and two moments.
const TRAINED: u64 = 16;
/// Of a token of the data: its id and whether it is learnt.
const TOKEN: u64 = 5;

/// A budget without what a run holds whatever the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    memory: Memory,
    held: u64,
    /// Tokens of the largest micro-batch there can be.
    pub largest: usize,
}

impl Budget {
    /// `trained`: how many numbers are; `dialogues`: of a micro-batch.
    pub fn new(memory: Memory, trained: usize, data: &TrainingData, dialogues: usize) -> Budget {
        let mut lengths: Vec<usize> =
            data.train.iter().chain(&data.held_out).map(|example| example.ids.len()).collect();
        let tokens: usize = lengths.iter().sum();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let largest = lengths.iter().take(dialogues).sum();
        Budget { memory, held: PROGRAM + TRAINED * trained as u64 + TOKEN * tokens as u64, largest }
    }

    /// What a decoder and its walks may take.
    pub fn room(&self) -> Memory {
        Memory(self.memory.0.saturating_sub(self.held))
    }

    /// An error if not even the largest micro-batch fits.
    pub fn check(&self, decoder: &dyn Trainable) -> Result<()> {
        let needed = self.held + decoder.held_bytes() + decoder.walk_bytes(self.largest, self.largest);
        ensure!(
            needed <= self.memory.0,
            "{} of memory can't hold a training step: one micro-batch of {} tokens needs {}; give more with --memory, \
             take fewer `dialogues` a micro-batch or a smaller `max_tokens`, or, if the model is brought into 4 bits as it \
             loads, store it so first (fireval quantize): then its layers can be streamed",
            self.memory,
            self.largest,
            Memory(needed)
        );
        Ok(())
    }

    /// The micro-batches of a step that walk together, in order.
    pub fn groups(&self, decoder: &dyn Trainable, batches: &[MicroBatch]) -> Vec<Range<usize>> {
        let room = self.room().0.saturating_sub(decoder.held_bytes());
        let mut groups: Vec<Range<usize>> = Vec::new();
        let (mut tokens, mut largest) = (0, 0);
        for (index, batch) in batches.iter().enumerate() {
            tokens += batch.packed.len();
            largest = largest.max(batch.packed.len());
            match groups.last_mut().filter(|_| decoder.walk_bytes(tokens, largest) <= room) {
                Some(group) => group.end = index + 1,
                None => {
                    groups.push(index..index + 1);
                    (tokens, largest) = (batch.packed.len(), batch.packed.len());
                }
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::Adapter;
    use crate::model::packed::Packed;
    use crate::model::training::{Gradients, Loss, LossOptions};
    use crate::train::format::Example;

    /// Holds a mebibyte, and a walk a kibibyte a token.
    struct Simple;

    impl Trainable for Simple {
        fn adapt(&mut self, _: &Adapter) -> Result<()> {
            Ok(())
        }

        fn held_bytes(&self) -> u64 {
            1 << 20
        }

        fn walk_bytes(&self, tokens: usize, _: usize) -> u64 {
            1024 * tokens as u64
        }

        fn losses(&self, _: &[MicroBatch], _: &LossOptions) -> Result<Vec<Loss>> {
            unreachable!("only its size is asked for")
        }

        fn gradients(&self, _: &[MicroBatch], _: &LossOptions, _: f32, _: &mut Gradients) -> Result<Vec<Loss>> {
            unreachable!("only its size is asked for")
        }
    }

    fn budget(memory: u64) -> Budget {
        let example = |length| Example { ids: vec![1; length], learnt: vec![true; length] };
        let data =
            TrainingData { train: vec![example(10), example(30)], held_out: vec![example(20)], ..Default::default() };
        Budget::new(Memory(memory), 100, &data, 2)
    }

    #[test]
    fn groups_are_as_large_as_the_room() {
        let batches = [10, 20, 30, 40]
            .map(|length| MicroBatch { packed: Packed::rows(&[vec![1; length]]), ..Default::default() });
        let held = PROGRAM + 1600 + 5 * 60 + (1 << 20);
        for (tokens, expected) in [(100, vec![4]), (99, vec![3, 4]), (60, vec![3, 4]), (1, vec![1, 2, 3, 4])] {
            let groups = budget(held + 1024 * tokens).groups(&Simple, &batches);
            assert_eq!(groups.iter().map(|group| group.end).collect::<Vec<_>>(), expected, "room for {tokens}");
        }
    }

    #[test]
    fn a_budget_too_small_for_any_step_says_what_is_needed() {
        let budget_of = |tokens: u64| budget(PROGRAM + 1900 + (1 << 20) + 1024 * tokens);
        assert_eq!(budget_of(0).largest, 50, "the two longest");
        budget_of(50).check(&Simple).unwrap();
        let error = budget_of(49).check(&Simple).unwrap_err().to_string();
        assert!(error.contains("98 MiB") && error.contains("--memory") && error.contains("50 tokens"), "{error}");
    }
}
