//! Which layers lie in a device's memory, and which wait in the machine's until they are visited.
//!
//! A card's memory holds embedding, head and adapter, as many of the first layers as fit, and room for one more: a layer
//! that waits is copied there as it is stored (NF4: half a byte a weight over the link) when its turn comes, and is gone
//! when the next one comes. The answers have the same bits wherever a layer lies.

use anyhow::{Result, ensure};

use super::nf4::Tables;
use crate::memory::Memory;

/// A device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes for everything.
    pub memory: u64,
    /// Of them for everything but weights: tokens on their way, an adapter, a decoded matrix.
    pub reserve: u64,
}

/// Where a decoder's layers are.
pub enum Residence {
    /// All in the machine's memory, NF4 decoded by the processor's kernels.
    Machine,
    /// The first ones in the device's memory, the others waiting in the machine's.
    Device { tables: Tables, split: Split },
}

/// How a model's layers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// So many of the first layers stay in the device's memory.
    pub resident: usize,
    /// Bytes of weights there at most, a layer on its visit among them.
    pub there: u64,
    /// Bytes of the layers that wait.
    pub waiting: u64,
}

impl Residence {
    /// What a layer is copied to the device with, if it waits.
    pub fn tables_of_waiting(&self, layer: usize) -> Option<&Tables> {
        match self {
            Residence::Device { tables, split } if layer >= split.resident => Some(tables),
            Residence::Device { .. } | Residence::Machine => None,
        }
    }

    /// Whether weights are in the memory of a device, in the type that was asked for.
    pub fn is_device(&self) -> bool {
        matches!(self, Residence::Device { .. })
    }
}

impl Room {
    /// How many of the first layers, of so many bytes each, can stay beside `ends` bytes of embedding and head. An error if
    /// not even one at a time fits.
    pub fn split(&self, ends: u64, layers: &[u64]) -> Result<Split> {
        // With the first `resident` there, room for the largest of the others is needed too.
        let split = |resident: usize| {
            let (here, waiting) = layers.split_at(resident);
            let there = ends + here.iter().sum::<u64>() + waiting.iter().max().unwrap_or(&0);
            Split { resident, there, waiting: waiting.iter().sum() }
        };
        let needed = |split: Split| split.there + self.reserve;
        let best = (0..=layers.len()).rev().map(split).find(|&split| needed(split) <= self.memory);
        ensure!(
            best.is_some(),
            "{} of the card's memory can't hold one layer at a time, which takes {} (of them {} for weights that stay, {} \
             for tokens and what is trained); give more with --device-memory, or take shorter or fewer dialogues at a time \
             or --quantization nf4",
            Memory(self.memory),
            Memory(needed(split(0))),
            Memory(ends),
            Memory(self.reserve)
        );
        Ok(best.unwrap_or(split(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_stay_as_leave_room_for_the_largest_other() {
        let split = |memory| Room { memory, reserve: 5 }.split(10, &[20, 20, 30, 20]);
        let resident = |memory| split(memory).ok().map(|split| split.resident);
        assert_eq!(split(84).unwrap(), Split { resident: 1, there: 60, waiting: 70 });
        // 15 and all of 90; 15 + 70 + 20; 15 + 40 + 30, 15 + 20 + 30 and 15 + 30.
        assert_eq!(
            [105, 104, 85, 84, 65, 64, 45, 44].map(resident),
            [Some(4), Some(2), Some(2), Some(1), Some(1), Some(0), Some(0), None]
        );
    }

    #[test]
    fn too_little_says_what_is_needed() {
        let room = Room { memory: 1 << 30, reserve: 1 << 30 };
        let error = room.split(1 << 29, &[1 << 29]).unwrap_err().to_string();
        assert!(error.contains("1.0 GiB") && error.contains("2.0 GiB") && error.contains("--device-memory"), "{error}");
    }
}
