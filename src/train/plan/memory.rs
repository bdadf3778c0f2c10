//! The memory that a recipe takes, in bytes, on this machine by the kernels' home and on a card by candle's.
//!
//! Frozen linears in NF4 take half a byte a weight, a byte per block of 64, a float per 256 blocks and one per matrix;
//! everything else that is frozen the recipe's dtype; adapter, gradients and AdamW's two moments f32. On the machine the
//! decoder holds a copy of the adapter, and a walk is what `model::cpu` says of its buffers. On a card a micro-batch
//! takes what `model::candle` says of graphs; "layer by layer" has two layers on the card at a time (one computing, one
//! arriving), head, adapter, gradients and moments likewise, the rest waiting in host memory.

use std::fmt;

use half::bf16;

use crate::memory::Memory;
use crate::model::candle::batch_bytes;
use crate::model::config::ModelConfig;
use crate::model::training::Inputs;
use crate::model::{cpu, names};
use crate::train::arrangement::{Arrangement, Sizes};
use crate::train::budget::{MOMENTS, PROGRAM};
use crate::train::recipe::{Dtype, Quantization, Recipe};

const MOMENTS_ROW: &str = "AdamW's moments";
const WALK_ROW: &str = "one micro-batch";
const CARDS: [u64; 2] = [16, 32];
/// Bytes a second from host to card (PCIe 3.0 x 16 in practice).
const LINK: f64 = 12e9;

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
    /// Bytes of all frozen linears.
    linears: u64,
}

impl Held {
    fn both(bytes: u64) -> Held {
        Held { whole: bytes, by_layer: bytes }
    }
}

impl Needs {
    /// `trained`: how many numbers are.
    pub fn of(recipe: &Recipe, config: &ModelConfig, trained: u64) -> Needs {
        let layers = config.num_hidden_layers as u64;
        let sizes = |layer: usize| names::linears(config, layer).into_iter().map(|l| (l.inputs * l.outputs) as u64);
        let held = |weights: u64| match recipe.quantization {
            Quantization::Nf4 => nf4_bytes(weights),
            Quantization::None => weights * recipe.dtype.bytes(),
        };
        let all: u64 = names::tensors(config).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let in_linears: u64 = (0..config.num_hidden_layers).flat_map(sizes).sum();
        let linears: u64 = (0..config.num_hidden_layers).flat_map(sizes).map(held).sum();
        let ends = (all - in_linears) * recipe.dtype.bytes();
        let head = (config.vocab_size * config.hidden_size) as u64 * recipe.dtype.bytes();
        let at_once = |bytes: u64| bytes * layers.min(2) / layers;
        let tokens = recipe.batch.dialogues * recipe.max_tokens;
        let graph = batch_bytes(config, tokens as u64, recipe.max_tokens as u64, recipe.recompute);
        let row = |what, machine, card| Row { what, machine, card };
        let trained_row = |what, machine: u64, card: u64| {
            row(what, Held::both(machine * trained), Held { whole: card * trained, by_layer: at_once(card * trained) })
        };
        let linears_row = Held { whole: linears, by_layer: at_once(linears) };
        let rows = vec![
            row("frozen linears", linears_row, linears_row),
            row("embedding, head, norms", Held::both(ends), Held { whole: ends, by_layer: head }),
            trained_row("adapter", 8, 4),
            trained_row("gradients", 4, 4),
            trained_row(MOMENTS_ROW, MOMENTS, 8),
            row(
                WALK_ROW,
                Held::both(walk_bytes(recipe.dtype, config, tokens, tokens, Inputs::InMemory)),
                Held::both(graph),
            ),
            row("the program", Held::both(PROGRAM), Held::both(0)),
        ];
        let accumulation = recipe.batch.accumulation;
        Needs { rows, config: config.clone(), dtype: recipe.dtype, micro_batch: tokens, accumulation, linears }
    }

    /// On the machine and on a card, in all.
    pub fn in_all(&self) -> (Held, Held) {
        let sum = |of: fn(&Row) -> Held| Held {
            whole: self.rows.iter().map(|row| of(row).whole).sum(),
            by_layer: self.rows.iter().map(|row| of(row).by_layer).sum(),
        };
        (sum(|row| row.machine), sum(|row| row.card))
    }

    /// What a run with that budget does on this machine.
    pub fn within(&self, memory: Memory) -> Arrangement {
        let row = |what: &str| self.rows.iter().find(|row| row.what == what).map_or(0, |row| row.machine.whole);
        let (moments, all) = (row(MOMENTS_ROW), self.in_all().0);
        let beside = row(WALK_ROW) + moments;
        let sizes = Sizes {
            memory: memory.0,
            held: 0, // what is not the model is counted with it
            moments,
            whole: all.whole - beside,
            streamed: Some(all.by_layer - beside),
            layers: self.linears,
            inputs: Some(cpu::spilled_bytes(&self.config, self.micro_batch)),
            micro_batches: self.accumulation,
        };
        sizes.arrange(|count, inputs| {
            walk_bytes(self.dtype, &self.config, count * self.micro_batch, self.micro_batch, inputs)
        })
    }

    /// What this machine would do with that budget.
    pub fn show_within(&self, memory: Memory, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = self.within(memory);
        match within.together {
            0 => writeln!(f, "--memory {memory}: not enough, a step takes {}", Memory(within.peak)),
            _ => writeln!(f, "--memory {memory}: {within} (a step has {} micro-batches)", self.accumulation),
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
        for size in CARDS {
            let fits = |bytes: u64| if bytes <= size << 30 { "fits" } else { "does not" };
            let (whole, by_layer) = (fits(card.whole), fits(card.by_layer));
            writeln!(f, "{:<50}{whole:>16}{by_layer:>12}", format!("a card of {size} GB"))?;
        }
        let bytes = (2 * self.linears * self.accumulation as u64) as f64;
        writeln!(
            f,
            "(by layer, a card gets {:.1} GB a step over its link: {:.0} s at {:.0} GB/s; this version keeps the whole model \
             on a card)",
            bytes / 1e9,
            bytes / LINK,
            LINK / 1e9
        )
    }
}

/// Of so many tokens, `largest` in one micro-batch, in the kernels' home.
fn walk_bytes(dtype: Dtype, config: &ModelConfig, tokens: usize, largest: usize, inputs: Inputs) -> u64 {
    let threads = rayon::current_num_threads();
    match dtype {
        Dtype::Bf16 => cpu::walk_bytes::<bf16>(config, tokens, largest, threads, inputs),
        Dtype::F32 | Dtype::F16 => cpu::walk_bytes::<f32>(config, tokens, largest, threads, inputs),
    }
}

pub fn nf4_bytes(weights: u64) -> u64 {
    let blocks = weights.div_ceil(64);
    weights.div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 4
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
