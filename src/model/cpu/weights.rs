//! Where a layer's frozen matrices come from: mapped files where all of them fit into memory, 4-bit copies made when the
//! model was opened, or a stream that reads the next layer, or the next part of one, while this one computes.
//!
//! Whoever walks asks for a layer group by group, in any order; forwards is the order that is read ahead.

use std::ops::Range;

use anyhow::Result;

use super::groups::Groups;
use crate::kernel::Matrix;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::weights::nf4::Nf4;
use crate::weights::stream::{self, LayerStream};
use crate::weights::{Checkpoint, Stored};

/// The frozen matrices of a model.
pub struct Weights {
    checkpoint: Checkpoint,
    /// The linears of each layer, in the order of [`names::linears`].
    linears: Vec<Vec<Linear>>,
    head: Linear,
    embedding: Linear,
    layers: Layers,
    groups: Groups,
    rounded_to_f16: bool,
}

/// A matrix in the checkpoint.
pub struct Linear {
    tensor: String,
    shape: [usize; 2],
}

/// How the layers' linears are held.
enum Layers {
    Mapped,
    Quantized(Vec<Vec<Nf4<'static>>>),
    Streamed(LayerStream),
}

/// A group of a layer while it is visited: a streamed one is in memory as long as this is.
pub struct Visited<'a> {
    weights: &'a Weights,
    layer: usize,
    places: Range<usize>,
    streamed: Option<stream::Layer<'a>>,
}

/// The matrices of a visited group, the first of which has place `first` in its layer.
pub enum LayerWeights<'a> {
    Stored { first: usize, linears: Vec<Stored<'a>>, rounded_to_f16: bool },
    Quantized { linears: &'a [Nf4<'static>], shapes: &'a [Linear] },
}

/// Buffers of a stream: one for the group in hand, one for the next.
const SLOTS: usize = 2;

impl Weights {
    pub fn new(checkpoint: Checkpoint, config: &ModelConfig, rounded_to_f16: bool) -> Weights {
        let linear = |tensor: &str, shape| Linear { tensor: tensor.to_owned(), shape };
        let of_layer = |layer: usize| {
            let linears = names::linears(config, layer).into_iter();
            linears.map(|found| linear(&names::weight(&found.module), [found.outputs, found.inputs])).collect()
        };
        let vocabulary = [config.vocab_size, config.hidden_size];
        let head = if config.tie_word_embeddings { names::EMBEDDING } else { names::HEAD };
        Weights {
            linears: (0..config.num_hidden_layers).map(of_layer).collect(),
            head: linear(head, vocabulary),
            embedding: linear(names::EMBEDDING, vocabulary),
            layers: Layers::Mapped,
            groups: Groups::whole(config),
            checkpoint,
            rounded_to_f16,
        }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Holds every linear of the layers in 4 bits from here on; one that is stored so is taken as it is.
    pub fn quantize(&mut self) -> Result<()> {
        let quantize = |linear: &Linear| -> Result<Nf4<'static>> {
            let stored = self.stored(linear)?;
            if let Some(nf4) = stored.nf4() {
                return Ok(nf4.into_owned());
            }
            let quantized = Nf4::quantize(&stored.to_f32()?, true);
            self.checkpoint.give_back(&linear.tensor)?;
            quantized.map_err(|error| error.context(format!("tensor {}", linear.tensor)))
        };
        let layer = |linears: &Vec<Linear>| linears.iter().map(quantize).collect();
        self.layers = Layers::Quantized(self.linears.iter().map(layer).collect::<Result<_>>()?);
        Ok(())
    }

    /// The groups to stream layers in, where `room` bytes are for the stream.
    pub fn groups_within(&self, room: usize, config: &ModelConfig) -> Result<Groups> {
        let bytes = |layer: usize, places: &Range<usize>| {
            LayerStream::buffer_bytes(&self.checkpoint, &self.tensors(layer, places))
        };
        Groups::within(room / SLOTS, config, bytes)
    }

    /// Bytes that streaming in these groups needs.
    pub fn streamed_bytes(groups: &Groups) -> usize {
        SLOTS * groups.largest
    }

    /// Reads each group when it is visited from here on.
    pub fn stream(&mut self, groups: Groups) -> Result<()> {
        let layers = 0..self.linears.len();
        let names = |layer| groups.of(layer).iter().map(move |places| (layer, places));
        let names: Vec<_> = layers.flat_map(names).map(|(layer, places)| self.tensors(layer, places)).collect();
        self.layers = Layers::Streamed(LayerStream::new(&self.checkpoint, &names, SLOTS)?);
        self.groups = groups;
        Ok(())
    }

    /// Whether they lie in files as they are used.
    pub fn can_be_streamed(&self) -> bool {
        matches!(self.layers, Layers::Mapped | Layers::Streamed(_))
    }

    /// What [`Weights::bytes`] would be, streamed by whole layers; `None` where they can't be.
    pub fn streamed_whole_bytes(&self) -> Option<usize> {
        let bytes = |linears: &Vec<Linear>| {
            let names: Vec<String> = linears.iter().map(|linear| linear.tensor.clone()).collect();
            LayerStream::buffer_bytes(&self.checkpoint, &names).ok()
        };
        let largest = self.linears.iter().map(bytes).try_fold(0, |most, bytes| Some(most.max(bytes?)))?;
        self.can_be_streamed().then_some(SLOTS.min(self.linears.len()) * largest + self.end_bytes())
    }

    fn tensors(&self, layer: usize, places: &Range<usize>) -> Vec<String> {
        self.linears[layer][places.clone()].iter().map(|linear| linear.tensor.clone()).collect()
    }

    /// What a wave goes through one after the other in each layer; one group where layers are not cut.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn are_streamed(&self) -> bool {
        matches!(self.layers, Layers::Streamed(_))
    }

    /// Whether the linears are stored in 4 bits as they are.
    pub fn are_nf4(&self) -> Result<bool> {
        let first = self.linears.first().and_then(|linears| linears.first());
        first.map_or(Ok(false), |linear| Ok(self.stored(linear)?.nf4().is_some()))
    }

    /// Bytes in memory when all of it has been used.
    pub fn bytes(&self) -> usize {
        let ends = self.end_bytes();
        match &self.layers {
            Layers::Mapped => self.checkpoint.weights_bytes() as usize,
            Layers::Quantized(layers) => layers.iter().flatten().map(Nf4::bytes).sum::<usize>() + ends,
            Layers::Streamed(stream) => stream.footprint() + ends,
        }
    }

    /// What of that is the layers'.
    pub fn layers_bytes(&self) -> usize {
        self.bytes() - self.end_bytes()
    }

    /// Embedding and head, which are mapped in any case.
    fn end_bytes(&self) -> usize {
        let bytes = |linear: &Linear| self.stored(linear).map_or(0, |stored| stored.bytes.len());
        if self.head.tensor == self.embedding.tensor {
            return bytes(&self.head);
        }
        bytes(&self.head) + bytes(&self.embedding)
    }

    /// A group of a layer, in memory from here on. A read that fails is an error that names file and tensor.
    pub fn visit(&self, layer: usize, group: usize) -> Result<Visited<'_>> {
        let streamed = match &self.layers {
            Layers::Streamed(stream) => Some(stream.layer(self.groups.index(layer, group))?),
            Layers::Mapped | Layers::Quantized(_) => None,
        };
        Ok(Visited { weights: self, layer, places: self.groups.of(layer)[group].clone(), streamed })
    }

    pub fn head(&self) -> Result<Stored<'_>> {
        self.stored(&self.head)
    }

    pub fn embedding(&self) -> Result<Stored<'_>> {
        self.stored(&self.embedding)
    }

    pub fn rounded_to_f16(&self) -> bool {
        self.rounded_to_f16
    }

    fn stored(&self, linear: &Linear) -> Result<Stored<'_>> {
        self.checkpoint.tensor(&linear.tensor, &linear.shape)
    }
}

impl Visited<'_> {
    pub fn matrices(&self) -> Result<LayerWeights<'_>> {
        let shapes = &self.weights.linears[self.layer];
        if let Layers::Quantized(layers) = &self.weights.layers {
            return Ok(LayerWeights::Quantized { linears: &layers[self.layer], shapes });
        }
        let stored = |linear: &Linear| match &self.streamed {
            Some(layer) => layer.stored(&linear.tensor),
            None => self.weights.stored(linear),
        };
        let linears = shapes[self.places.clone()].iter().map(stored).collect::<Result<_>>()?;
        Ok(LayerWeights::Stored { first: self.places.start, linears, rounded_to_f16: self.weights.rounded_to_f16 })
    }

    /// Which of the layer's linears are in the group.
    pub fn places(&self) -> Range<usize> {
        self.places.clone()
    }
}

impl LayerWeights<'_> {
    /// The matrix at a place of the group, in the order of [`names::linears`].
    pub fn matrix(&self, place: usize) -> Matrix<'_> {
        match self {
            LayerWeights::Stored { first, linears, rounded_to_f16 } => linears[place - first].matrix(*rounded_to_f16),
            LayerWeights::Quantized { linears, shapes } => {
                let [rows, columns] = shapes[place].shape;
                Matrix { rows, columns, numbers: linears[place].numbers(), rounded_to_f16: false }
            }
        }
    }
}
