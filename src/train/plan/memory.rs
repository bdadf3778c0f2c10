//! The memory that a recipe takes, in bytes, on this machine by the kernels' home and on a card by candle's.
//!
//! Frozen linears in NF4 take half a byte a weight, a byte per block of 64, a float per 256 blocks and one per matrix;
//! everything else that is frozen the recipe's dtype; adapter, gradients and AdamW's two moments f32. On the machine the
//! decoder holds a copy of the adapter, and a walk is what `model::cpu` says of its buffers. On a card a micro-batch
//! takes what `model::candle` says of graphs, and the moments are in the machine's memory. "By layer" has two layers at a time
//! in memory.

use std::fmt;

use half::bf16;

use super::card::CardNeeds;
use crate::memory::Memory;
use crate::model::candle::{batch_bytes, kept_bytes};
use crate::model::config::ModelConfig;
use crate::model::device::CONTEXT;
use crate::model::training::Keep;
use crate::model::{cpu, names};
use crate::train::arrangement::{Arrangement, Sizes};
use crate::train::budget::{MOMENTS, program};
use crate::train::recipe::{Quantization, Recipe};
use crate::weights::Dtype;

/// Of one micro-batch.
const KEPT_ROW: &str = "kept for the way back";
const WORKSPACE_ROW: &str = "workspace";
const LINEARS_ROW: &str = "frozen linears";
const GRADIENTS_ROW: &str = "gradients";
const MOMENTS_ROW: &str = "AdamW's moments";
/// What a V100 came with, in GiB.
const CARDS: [u64; 2] = [16, 32];

/// With the whole model in memory, and with two layers of it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub whole: u64,
    pub by_layer: u64,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub what: &'static str,
    pub machine: Held,
    pub card: Held,
}

/// All rows, and what is needed to ask what fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    pub rows: Vec<Row>,
    config: ModelConfig,
    dtype: Dtype,
    micro_batch: usize,
    accumulation: usize,
    recompute: bool,
    /// Bytes of the frozen linears, by layer.
    linears: Vec<u64>,
}

impl Held {
    fn both(bytes: u64) -> Held {
        Held { whole: bytes, by_layer: bytes }
    }
}

impl Needs {
    /// `trained`: how many numbers are.
    pub fn of(recipe: &Recipe, config: &ModelConfig, trained: u64) -> Needs {
        let sizes = |layer: usize| names::linears(config, layer).into_iter().map(|l| (l.inputs * l.outputs) as u64);
        let held = |weights: u64| match recipe.quantization {
            Quantization::Nf4 => nf4_bytes(weights),
            Quantization::None => weights * recipe.dtype.bytes() as u64,
        };
        let all: u64 = names::tensors(config).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let in_linears: u64 = (0..config.num_hidden_layers).flat_map(sizes).sum();
        let linears: Vec<u64> = (0..config.num_hidden_layers).map(|layer| sizes(layer).map(held).sum()).collect();
        let two = linears.windows(2).map(|two| two[0] + two[1]).max().unwrap_or(linears.iter().sum());
        let linears_row = Held { whole: linears.iter().sum(), by_layer: two };
        let ends = (all - in_linears) * recipe.dtype.bytes() as u64;
        let tokens = recipe.batch.dialogues * recipe.max_tokens;
        let (long, recompute) = (recipe.max_tokens as u64, recipe.recompute);
        let keep = if recompute { Keep::Inputs } else { Keep::Activations };
        let walk = walk_bytes(recipe.dtype, config, tokens, tokens, keep);
        let left = left_bytes(recipe.dtype, config, tokens, keep);
        let graph = batch_bytes(config, tokens as u64, long, recompute);
        let kept = kept_bytes(config, tokens as u64, long, recompute);
        let row = |what, machine, card| Row { what, machine: Held::both(machine), card: Held::both(card) };
        let rows = vec![
            Row { what: LINEARS_ROW, machine: linears_row, card: linears_row },
            row("embedding, head, norms", ends, ends),
            row("adapter", 8 * trained, 4 * trained),
            row(GRADIENTS_ROW, 4 * trained, 4 * trained),
            row(MOMENTS_ROW, MOMENTS * trained, 0),
            row(KEPT_ROW, left, kept),
            row(WORKSPACE_ROW, walk - left, graph - kept),
            row("the program", program(config.vocab_size), 0),
        ];
        let accumulation = recipe.batch.accumulation;
        let (config, dtype) = (config.clone(), recipe.dtype);
        Needs { rows, config, dtype, micro_batch: tokens, accumulation, recompute, linears }
    }

    /// On the machine and on a card, in all.
    pub fn in_all(&self) -> (Held, Held) {
        let sum = |of: fn(&Row) -> Held| Held {
            whole: self.rows.iter().map(|row| of(row).whole).sum(),
            by_layer: self.rows.iter().map(|row| of(row).by_layer).sum(),
        };
        (sum(|row| row.machine), sum(|row| row.card))
    }

    fn row(&self, what: &str) -> Row {
        *self.rows.iter().find(|row| row.what == what).expect("every table has it")
    }

    /// What a card holds.
    pub fn on_card(&self) -> CardNeeds {
        CardNeeds {
            layers: self.linears.clone(),
            beside: self.in_all().1.whole - self.row(LINEARS_ROW).card.whole,
            gradients: self.row(GRADIENTS_ROW).card.whole,
            micro_batches: self.accumulation as u64,
        }
    }

    /// What a run with that budget does on this machine.
    pub fn within(&self, memory: Memory) -> Arrangement {
        let (moments, all) = (self.row(MOMENTS_ROW).machine.whole, self.in_all().0);
        let beside = self.row(KEPT_ROW).machine.whole + self.row(WORKSPACE_ROW).machine.whole + moments;
        let sizes = Sizes {
            memory: memory.0,
            held: 0, // what is not the model is counted with it
            moments,
            whole: all.whole - beside,
            streamed: Some(all.by_layer - beside),
            layers: self.linears.iter().sum(),
            recompute: self.recompute,
            inputs: Some(cpu::input_bytes(&self.config, self.micro_batch)),
            micro_batches: self.accumulation,
        };
        sizes.arrange(|count, keep| {
            walk_bytes(self.dtype, &self.config, count * self.micro_batch, self.micro_batch, keep)
        })
    }

    /// What this machine would do with that budget.
    pub fn show_within(&self, memory: Memory, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = self.within(memory);
        match within.together {
            0 => writeln!(f, "--memory {memory}: not enough, a step takes {}", Memory(within.peak)),
            _ => writeln!(f, "--memory {memory}: {within}"),
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<26}{:>24}{:>28}", "memory (GiB)", "this machine", "a card")?;
        let columns = ["whole model", "by layer", "whole model", "by layer"];
        writeln!(f, "{:<26}{:>12}{:>12}{:>16}{:>12}", "", columns[0], columns[1], columns[2], columns[3])?;
        let (machine, card) = self.in_all();
        let all = Row { what: "in all", machine, card };
        for Row { what, machine, card } in self.rows.iter().chain([&all]) {
            let [a, b, c, d] = [machine.whole, machine.by_layer, card.whole, card.by_layer].map(gibibytes);
            writeln!(f, "{what:<26}{a:>12.2}{b:>12.2}{c:>16.2}{d:>12.2}")?;
        }
        let needs = self.on_card();
        writeln!(
            f,
            "on a card, whose driver and kernels take {}; the moments are in the machine's memory",
            Memory(CONTEXT)
        )?;
        for size in CARDS {
            match needs.on((size << 30) - CONTEXT) {
                Ok(found) => writeln!(f, "  of {size} GB: {found}")?,
                Err(least) => writeln!(f, "  of {size} GB: not enough, one layer at a time takes {}", Memory(least))?,
            }
        }
        Ok(())
    }
}

/// Of so many tokens, `largest` in one micro-batch, in the kernels' home.
fn walk_bytes(dtype: Dtype, config: &ModelConfig, tokens: usize, largest: usize, keep: Keep) -> u64 {
    let threads = rayon::current_num_threads();
    match dtype {
        Dtype::BF16 => cpu::walk_bytes::<bf16>(config, tokens, largest, threads, keep),
        Dtype::F32 | Dtype::F16 => cpu::walk_bytes::<f32>(config, tokens, largest, threads, keep),
    }
}

/// What of it the way forward leaves behind.
fn left_bytes(dtype: Dtype, config: &ModelConfig, tokens: usize, keep: Keep) -> u64 {
    match dtype {
        Dtype::BF16 => cpu::left_bytes::<bf16>(config, tokens, keep),
        Dtype::F32 | Dtype::F16 => cpu::left_bytes::<f32>(config, tokens, keep),
    }
}

pub fn nf4_bytes(weights: u64) -> u64 {
    let blocks = weights.div_ceil(64);
    weights.div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 4
}

pub fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
