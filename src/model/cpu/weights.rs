//! Where a layer's frozen matrices come from: mapped files, or 4-bit copies made when the model was opened.

use anyhow::Result;

use crate::kernel::Matrix;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::weights::nf4::Nf4;
use crate::weights::{Checkpoint, Stored};

/// The frozen matrices of a model.
pub struct Weights {
    checkpoint: Checkpoint,
    /// Tensor names of each layer's linears, in the order of [`names::linears`].
    linears: Vec<Vec<Linear>>,
    head: Linear,
    embedding: Linear,
    /// Instead of the checkpoint's linears.
    quantized: Option<Vec<Vec<Nf4<'static>>>>,
    rounded_to_f16: bool,
}

pub struct Linear {
    tensor: String,
    shape: [usize; 2],
}

/// One layer's matrices while it is visited.
pub enum LayerWeights<'a> {
    Stored { linears: Vec<Stored<'a>>, rounded_to_f16: bool },
    Quantized { linears: &'a [Nf4<'static>], shapes: &'a [Linear] },
}

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
            quantized: None,
            checkpoint,
            rounded_to_f16,
        }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Holds every linear of the layers in 4 bits from here on.
    pub fn quantize(&mut self) -> Result<()> {
        let quantize = |linear: &Linear| -> Result<Nf4<'static>> {
            let values = self.checkpoint.tensor(&linear.tensor, &linear.shape)?.to_f32()?;
            Nf4::quantize(&values, true).map_err(|error| error.context(format!("tensor {}", linear.tensor)))
        };
        let layer = |linears: &Vec<Linear>| linears.iter().map(quantize).collect();
        self.quantized = Some(self.linears.iter().map(layer).collect::<Result<_>>()?);
        Ok(())
    }

    /// Bytes in memory when all of it has been used.
    pub fn bytes(&self) -> usize {
        let held = |layers: &Vec<Vec<Nf4<'static>>>| layers.iter().flatten().map(Nf4::bytes).sum::<usize>();
        match &self.quantized {
            None => self.checkpoint.weights_bytes() as usize,
            Some(layers) => held(layers) + 4 * self.head.shape[0] * self.head.shape[1],
        }
    }

    /// The matrices of a layer.
    pub fn layer(&self, layer: usize) -> Result<LayerWeights<'_>> {
        let linears = &self.linears[layer];
        match &self.quantized {
            Some(quantized) => Ok(LayerWeights::Quantized { linears: &quantized[layer], shapes: linears }),
            None => Ok(LayerWeights::Stored {
                linears: linears.iter().map(|linear| self.stored(linear)).collect::<Result<_>>()?,
                rounded_to_f16: self.rounded_to_f16,
            }),
        }
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

impl LayerWeights<'_> {
    /// The matrix at a place in the order of [`names::linears`].
    pub fn matrix(&self, place: usize) -> Matrix<'_> {
        match self {
            LayerWeights::Stored { linears, rounded_to_f16 } => linears[place].matrix(*rounded_to_f16),
            LayerWeights::Quantized { linears, shapes } => {
                let [rows, columns] = shapes[place].shape;
                Matrix { rows, columns, numbers: linears[place].numbers(), rounded_to_f16: false }
            }
        }
    }
}
