//! Which dialogue comes when: a new seeded shuffle for every pass over them, known for any place without the ones before.

use crate::random::Random;

/// The dialogues' indices, pass after pass.
pub struct Order {
    seed: u64,
    count: usize,
    /// The pass that `shuffled` belongs to.
    epoch: usize,
    shuffled: Vec<usize>,
}

impl Order {
    /// `count`: how many dialogues there are; not 0.
    pub fn new(seed: u64, count: usize) -> Order {
        debug_assert!(count > 0);
        Order { seed, count, epoch: 0, shuffled: shuffled(seed, count, "epoch 0") }
    }

    /// The index of the dialogue at `position`, counted from the start of the first pass.
    pub fn at(&mut self, position: usize) -> usize {
        let epoch = position / self.count;
        if epoch != self.epoch {
            self.epoch = epoch;
            self.shuffled = shuffled(self.seed, self.count, &format!("epoch {epoch}"));
        }
        self.shuffled[position % self.count]
    }
}

/// 0..count in the order that `name` draws under `seed`.
pub fn shuffled(seed: u64, count: usize, name: &str) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..count).collect();
    Random::named(seed, name).shuffle(&mut indices);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_holds_every_dialogue_in_an_order_of_its_own() {
        let mut order = Order::new(42, 50);
        let mut passes: Vec<Vec<usize>> =
            (0..3).map(|epoch| (0..50).map(|place| order.at(epoch * 50 + place)).collect()).collect();
        assert!(passes[0] != passes[1] && passes[1] != passes[2]);
        assert_eq!(Order::new(42, 50).at(103), passes[2][3], "any place is known at once");
        for pass in &mut passes {
            pass.sort_unstable();
            assert_eq!(*pass, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(shuffled(1, 50, "epoch 0"), shuffled(2, 50, "epoch 0"));
    }
}
