//! What the way forward leaves behind of every layer: its input, in memory or in a file where the budget asks for it, or all
//! that the way back needs.

use std::path::Path;

use anyhow::Result;

use crate::kernel::Lines;
use crate::model::cpu::workspace::{GateUp, Workspace};
use crate::spill::Spill;

/// What is kept of layers, by portion.
pub struct Kept<E> {
    inputs: Inputs,
    /// By layer and portion; none where layers are computed again.
    activations: Option<Vec<Vec<Activations<E>>>>,
}

/// The inputs of layers, by portion.
enum Inputs {
    /// By layer and portion: (tokens, hidden).
    InMemory(Vec<Vec<Vec<f32>>>),
    /// A record for each portion of each layer.
    Spilled { file: Spill, portions: usize, buffer: Lines<f32> },
}

/// What a layer computed of a portion, as [`Workspace`] has it.
pub struct Activations<E> {
    queries: Lines<E>,
    keys: Lines<E>,
    values: Lines<E>,
    mixed: Lines<E>,
    /// The states between attention and feed-forward, (tokens, hidden).
    middle: Lines<f32>,
    inner: Vec<GateUp>,
}

impl<E> Kept<E> {
    /// For so many layers; `states` are as those that will be kept.
    pub fn new(layers: usize, states: &[Vec<f32>], spill: Option<&Path>, activations: bool) -> Result<Kept<E>> {
        let inputs = match spill {
            None => Inputs::InMemory(Vec::with_capacity(layers)),
            Some(folder) => {
                let lengths = (0..layers).flat_map(|_| states.iter().map(Vec::len));
                let file = Spill::create(folder, "layer-inputs", lengths)?;
                Inputs::Spilled { file, portions: states.len(), buffer: Lines::default() }
            }
        };
        Ok(Kept { inputs, activations: activations.then(Vec::new) })
    }

    /// Keeps the inputs of a layer; layers come in their order.
    pub fn keep(&mut self, layer: usize, states: &[Vec<f32>]) -> Result<()> {
        match &mut self.inputs {
            Inputs::InMemory(layers) => layers.push(states.to_vec()),
            Inputs::Spilled { file, portions, .. } => {
                for (portion, states) in states.iter().enumerate() {
                    file.write(layer * *portions + portion, states)?;
                }
            }
        }
        self.activations.iter_mut().for_each(|layers| layers.push(Vec::new()));
        Ok(())
    }

    /// Where the activations of a layer's portions go, one after another; `None`: they are not kept.
    pub fn activations(&mut self, layer: usize) -> Option<&mut Vec<Activations<E>>> {
        self.activations.as_mut().map(|layers| &mut layers[layer])
    }

    /// The input of a portion of a layer.
    pub fn input(&mut self, layer: usize, portion: usize) -> Result<&[f32]> {
        match &mut self.inputs {
            Inputs::InMemory(layers) => Ok(&layers[layer][portion]),
            Inputs::Spilled { file, portions, buffer } => {
                let record = layer * *portions + portion;
                let numbers = buffer.take(file.numbers(record));
                file.read(record, numbers)?;
                Ok(numbers)
            }
        }
    }

    /// Lets go of a layer that has been gone back through.
    pub fn forget(&mut self, layer: usize) {
        if let Inputs::InMemory(layers) = &mut self.inputs {
            layers.truncate(layer);
        }
        self.activations.iter_mut().for_each(|layers| layers.truncate(layer));
    }
}

impl<E> Activations<E> {
    /// Takes what attention left; `middle` is what came of it. What gates and ups return is to follow.
    pub fn of_attention(space: &mut Workspace<E>, middle: &[f32]) -> Activations<E> {
        Activations {
            queries: std::mem::take(&mut space.queries),
            keys: std::mem::take(&mut space.keys),
            values: std::mem::take(&mut space.values),
            mixed: std::mem::take(&mut space.mixed),
            middle: Lines::copy(middle),
            inner: Vec::new(),
        }
    }

    /// With what the feed-forward left.
    pub fn with_inner(self, space: &mut Workspace<E>) -> Activations<E> {
        Activations { inner: space.inner.take().unwrap_or_default(), ..self }
    }

    /// Puts back what attention left, and gives the rest.
    pub fn restore(self, space: &mut Workspace<E>) -> (Lines<f32>, Vec<GateUp>) {
        (space.queries, space.keys, space.values, space.mixed) = (self.queries, self.keys, self.values, self.mixed);
        (self.middle, self.inner)
    }
}
