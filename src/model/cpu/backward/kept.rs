//! What the way forward leaves behind: every layer's input, in memory, or in a file where the budget asks for it.

use std::path::Path;

use anyhow::Result;

use crate::model::cpu::workspace::take;
use crate::spill::Spill;

/// The inputs of layers, by portion.
pub enum Kept {
    /// By layer and portion: (tokens, hidden).
    InMemory(Vec<Vec<Vec<f32>>>),
    /// A record for each portion of each layer.
    Spilled { file: Spill, portions: usize, buffer: Vec<f32> },
}

impl Kept {
    /// For so many layers; `states` are as those that will be kept.
    pub fn new(layers: usize, states: &[Vec<f32>], spill: Option<&Path>) -> Result<Kept> {
        let Some(folder) = spill else { return Ok(Kept::InMemory(Vec::with_capacity(layers))) };
        let lengths = (0..layers).flat_map(|_| states.iter().map(Vec::len));
        let file = Spill::create(folder, "layer-inputs", lengths)?;
        Ok(Kept::Spilled { file, portions: states.len(), buffer: Vec::new() })
    }

    /// Keeps the inputs of a layer; layers come in their order.
    pub fn keep(&mut self, layer: usize, states: &[Vec<f32>]) -> Result<()> {
        match self {
            Kept::InMemory(layers) => layers.push(states.to_vec()),
            Kept::Spilled { file, portions, .. } => {
                for (portion, states) in states.iter().enumerate() {
                    file.write(layer * *portions + portion, states)?;
                }
            }
        }
        Ok(())
    }

    /// The input of a portion of a layer.
    pub fn input(&mut self, layer: usize, portion: usize) -> Result<&[f32]> {
        match self {
            Kept::InMemory(layers) => Ok(&layers[layer][portion]),
            Kept::Spilled { file, portions, buffer } => {
                let record = layer * *portions + portion;
                let numbers = take(buffer, file.numbers(record));
                file.read(record, numbers)?;
                Ok(numbers)
            }
        }
    }

    /// Lets go of a layer that has been gone back through.
    pub fn forget(&mut self, layer: usize) {
        if let Kept::InMemory(layers) = self {
            layers.truncate(layer);
        }
    }
}
