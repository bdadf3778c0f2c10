//! What a run may hold: the sizes of a run's parts as its data and decoder have them, and the micro-batches of a step that
//! share a walk through the layers.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::arrangement::{Arrangement, Sizes};
use super::data::TrainingData;
use crate::memory::Memory;
use crate::model::training::{MicroBatch, Trainable};

/// The program itself and its thread stacks.
pub(super) const PROGRAM: u64 = 24 << 20;
/// Of a token of the vocabulary, in a tokenizer with its merges.
const VOCABULARY: u64 = 1200;
/// Of a trained number: itself and its gradient. (The decoder counts its copy.)
pub(super) const TRAINED: u64 = 8;
/// Of a trained number: two moments.
pub(super) const MOMENTS: u64 = 8;
/// Of a token of the data: its id and whether it is learnt.
const TOKEN: u64 = 5;

/// Bytes of the program with a tokenizer of so many tokens, as measured.
pub(super) fn program(vocabulary: usize) -> u64 {
    PROGRAM + VOCABULARY * vocabulary as u64
}

/// A budget without what a run holds whatever the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    memory: Memory,
    held: u64,
    moments: u64,
    /// Tokens of the largest micro-batch there can be.
    pub largest: usize,
    micro_batches: usize,
    recompute: bool,
}

impl Budget {
    /// `vocabulary`: tokens of the model's; `trained`: how many numbers are; a step has so many `micro_batches` of so many
    /// `dialogues`.
    pub fn new(
        memory: Memory,
        vocabulary: usize,
        trained: usize,
        data: &TrainingData,
        (micro_batches, dialogues): (usize, usize),
        recompute: bool,
    ) -> Budget {
        let held_out = data.held_out.iter().map(|example| example.ids.len());
        let mut lengths: Vec<usize> = (0..data.rows.len()).map(|row| data.row_tokens(row)).chain(held_out).collect();
        let tokens: usize = lengths.iter().sum();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        // A micro-batch that does not end with a pass over the rows reaches into the next ones, and may have a row once of
        // each.
        let rows = data.rows.len().max(1);
        let passes = if rows.is_multiple_of(dialogues) { 1 } else { 1 + (dialogues - 1).div_ceil(rows) };
        let longest = lengths.iter().flat_map(|&length| std::iter::repeat_n(length, passes));
        let (trained, largest) = (trained as u64, longest.take(dialogues).sum());
        let held = program(vocabulary) + TRAINED * trained + TOKEN * tokens as u64;
        Budget { memory, held, moments: MOMENTS * trained, largest, micro_batches, recompute }
    }

    /// What is to be kept where. An error if not even the largest micro-batch fits.
    ///
    /// `copy`: bytes that the decoder will hold of the adapter.
    pub fn arrange(&self, decoder: &dyn Trainable, copy: u64) -> Result<Arrangement> {
        let sizes = Sizes {
            memory: self.memory.0,
            held: self.held + copy,
            moments: self.moments,
            whole: decoder.held_bytes(),
            streamed: decoder.streamed_bytes(),
            layers: decoder.layers_bytes(),
            recompute: self.recompute,
            inputs: decoder.spilled_bytes(self.largest),
            micro_batches: self.micro_batches,
        };
        let found = sizes.arrange(|count, keep| decoder.walk_bytes(count * self.largest, self.largest, keep));
        ensure!(
            found.together > 0,
            "{} of memory can't hold a training step: one micro-batch of {} tokens needs {}; give more with --memory, \
             {}take fewer `dialogues` a micro-batch or a smaller `max_tokens`, or, if the model is brought into 4 bits as it \
             loads, store it so first (fireval quantize): then its layers can be streamed",
            self.memory,
            self.largest,
            Memory(found.peak),
            if self.recompute { "" } else { "let layers be computed again (`recompute = true`), " },
        );
        Ok(found)
    }

    /// The micro-batches of a step that walk together, in order. `decoder` holds the adapter and is as it was arranged.
    pub fn groups(
        &self,
        decoder: &dyn Trainable,
        arrangement: &Arrangement,
        batches: &[MicroBatch],
    ) -> Vec<Range<usize>> {
        let moments = if arrangement.spills_moments { 0 } else { self.moments };
        let room = self.memory.0.saturating_sub(self.held + moments + decoder.held_bytes());
        let fits = |tokens, largest| decoder.walk_bytes(tokens, largest, arrangement.keep) <= room;
        let mut groups: Vec<Range<usize>> = Vec::new();
        let (mut tokens, mut largest) = (0, 0);
        for (index, batch) in batches.iter().enumerate() {
            tokens += batch.packed.len();
            largest = largest.max(batch.packed.len());
            match groups.last_mut().filter(|_| fits(tokens, largest)) {
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
    use crate::model::training::{Gradients, Keep, Loss, LossOptions};
    use crate::train::format::Example;
    use crate::train::order::Order;

    /// Holds a mebibyte, and a walk a kibibyte a token.
    struct Simple;

    impl Trainable for Simple {
        fn adapt(&mut self, _: &Adapter) -> Result<()> {
            Ok(())
        }

        fn held_bytes(&self) -> u64 {
            1 << 20
        }

        fn walk_bytes(&self, tokens: usize, _: usize, _: Keep) -> u64 {
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
        let data = TrainingData {
            train: vec![example(10), example(30)],
            held_out: vec![example(20)],
            rows: vec![vec![0], vec![1]],
            ..Default::default()
        };
        Budget::new(Memory(memory), 0, 100, &data, (4, 2), true)
    }

    #[test]
    fn groups_are_as_large_as_the_room() {
        let batches = [10, 20, 30, 40]
            .map(|length| MicroBatch { packed: Packed::rows(&[vec![1; length]]), ..Default::default() });
        let held = PROGRAM + 800 + 5 * 60 + (1 << 20);
        let arrangement = budget(1 << 30).arrange(&Simple, 0).unwrap();
        assert!(!arrangement.spills_moments, "{arrangement}");
        for (tokens, expected) in [(100, vec![4]), (99, vec![3, 4]), (60, vec![3, 4]), (1, vec![1, 2, 3, 4])] {
            let ends = |moments: u64, arrangement: &Arrangement| -> Vec<usize> {
                let budget = budget(held + moments + 1024 * tokens);
                budget.groups(&Simple, arrangement, &batches).iter().map(|group| group.end).collect()
            };
            assert_eq!(ends(800, &arrangement), expected, "room for {tokens}");
            let spilled = Arrangement { spills_moments: true, ..arrangement };
            assert_eq!(ends(0, &spilled), expected, "room for {tokens}, and the moments elsewhere");
        }
    }

    #[test]
    fn a_budget_too_small_for_any_step_says_what_is_needed() {
        let arranged = |tokens: u64| budget(PROGRAM + 1500 + (1 << 20) + 1024 * tokens).arrange(&Simple, 400);
        assert_eq!(budget(0).largest, 50, "the two longest");
        let found = arranged(50).unwrap();
        assert!(found.spills_moments && found.together == 1, "{found}");
        let error = arranged(49).unwrap_err().to_string();
        assert!(error.contains("26 MiB") && error.contains("--memory") && error.contains("50 tokens"), "{error}");
    }

    #[test]
    fn no_micro_batch_is_larger_than_the_largest() {
        let example = |length| Example { ids: vec![1; length], learnt: vec![true; length] };
        let train: Vec<Example> = [3, 50, 8, 1, 20].map(example).into();
        let rows = (0..train.len()).map(|index| vec![index]).collect();
        let data = TrainingData { train, rows, ..Default::default() };
        for dialogues in 1..=23 {
            let largest = Budget::new(Memory(0), 0, 0, &data, (1, dialogues), true).largest;
            let mut order = Order::new(7, data.rows.len());
            let mut tokens = |batch: usize| -> usize {
                (batch * dialogues..(batch + 1) * dialogues).map(|position| data.row_tokens(order.at(position))).sum()
            };
            assert!((0..200).all(|batch| tokens(batch) <= largest), "{dialogues} dialogues: {largest} tokens");
        }
    }
}
