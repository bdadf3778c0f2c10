//! The memory that training weights themselves takes, in bytes: on this machine by candle's home, and on a card.
//!
//! The trained numbers are kept in f32 with a gradient and AdamW's two moments, always in the machine's memory; beside them
//! the decoder holds all weights (on the CPU in f32, on a card in the recipe's dtype). Micro-batches are computed side by
//! side, one a thread, each with a gradient of its own; a card takes one at a time.

use std::fmt;

use crate::memory::Memory;
use crate::model::candle::batch_bytes;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::train::budget::PROGRAM;
use crate::train::recipe::Recipe;

/// What is held for what, here and on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullNeeds {
    pub rows: Vec<(&'static str, [u64; 2])>,
    pub threads: u64,
}

impl FullNeeds {
    /// `trained`: how many numbers are.
    pub fn of(recipe: &Recipe, config: &ModelConfig, trained: u64) -> FullNeeds {
        let threads = rayon::current_num_threads() as u64;
        let all: u64 = names::tensors(config).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let tokens = (recipe.batch.dialogues * recipe.max_tokens) as u64;
        let graph = |recompute| batch_bytes(config, tokens, recipe.max_tokens as u64, recompute);
        let rows = vec![
            ("weights", [4 * all, recipe.dtype.bytes() as u64 * all]),
            ("trained numbers in f32", [4 * trained, 0]),
            ("gradients", [(4 + 8 * threads) * trained, 8 * trained]),
            ("AdamW's moments", [8 * trained, 0]),
            ("micro-batches at once", [threads * graph(recipe.recompute), graph(true)]),
            ("the program", [PROGRAM, 0]),
        ];
        FullNeeds { rows, threads }
    }

    /// Here and on a card.
    pub fn in_all(&self) -> [u64; 2] {
        [0, 1].map(|place| self.rows.iter().map(|(_, bytes)| bytes[place]).sum())
    }
}

impl fmt::Display for FullNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = format!("{} threads", self.threads);
        writeln!(f, "{:<26}{:>16}{:>12}", "memory (GiB)", here, "a card")?;
        for (what, bytes) in self.rows.iter().chain([&("in all", self.in_all())]) {
            let [here, card] = bytes.map(|bytes| bytes as f64 / (1u64 << 30) as f64);
            writeln!(f, "{what:<26}{here:>16.2}{card:>12.2}")?;
        }
        Ok(())
    }
}

impl FullNeeds {
    /// Whether that budget is enough here.
    pub fn show_within(&self, memory: Memory, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [needed, _] = self.in_all();
        match needed <= memory.0 {
            true => writeln!(f, "--memory {memory}: enough, peak {}", Memory(needed)),
            false => writeln!(f, "--memory {memory}: not enough, a step takes {}", Memory(needed)),
        }
    }
}
