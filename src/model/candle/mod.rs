//! The decoder on candle tensors: any device, differentiable. Correct first; on CPUs it is also the second opinion.
//!
//! On candle's CPU products are made in f32 whatever the weights' dtype: bf16 and f16 mean weights rounded to that type
//! (candle widens whole operands on every bf16 product, so nothing would be gained by more). In a device's memory
//! ([`residence`]) numbers have the type that was asked for.

mod attention;
mod cache;
mod cross_entropy;
mod decoder;
mod feed_forward;
mod footprint;
mod graft;
mod head;
mod linear;
mod load;
mod loss;
mod nf4;
mod ops;
mod residence;
mod rotary;
mod whole;

use std::borrow::Cow;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};

pub use cache::Cache;
pub use feed_forward::Routing;
pub use footprint::{batch_bytes, kept_bytes, wave_bytes};

use crate::model::adapter::{LoraPair, Matrix};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::packed::Packed;
use crate::weights::Dtype;
use attention::{Attention, Pass, Place, Recall};
use feed_forward::FeedForward;
use linear::{Linear, Lora, Mode};
use nf4::Tables;
use residence::Residence;
pub use residence::Room;
use rotary::Rotary;

/// How a decoder is made from a checkpoint.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub device: Device,
    /// Weights are rounded to it. Without a device of their own products are in f32 all the same.
    pub dtype: Dtype,
    /// Holds every linear of the layers (attention, experts, router) in NF4 with double quantisation.
    pub nf4: bool,
}

/// A loaded model.
pub struct CandleDecoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    /// What weights are rounded to.
    rounding: DType,
    embedding: Tensor, // (vocab, hidden)
    /// Rounded as the embedding is.
    embedding_scale: Option<f64>,
    layers: Vec<Layer>,
    residence: Residence,
    norm: Tensor, // (hidden)
    head: Tensor, // (vocab, hidden)
    rotary: Rotary,
    weight_bytes: usize,
    /// Modules of the adapter's pairs, in its order.
    adapted: Vec<String>,
    /// Tensors that are trained whole, in the adapter's order.
    whole: Vec<(String, Var)>,
}

#[derive(Clone)]
struct Layer {
    input_norm: Tensor, // (hidden)
    attention: Attention,
    attention_output_norm: Option<Tensor>, // (hidden)
    feed_forward_norm: Tensor,             // (hidden)
    feed_forward: FeedForward,
    feed_forward_output_norm: Option<Tensor>, // (hidden)
}

/// What a layer returns.
pub struct LayerOutput {
    pub hidden: Tensor, // (tokens, hidden)
    /// `None` for a dense layer.
    pub routing: Option<Routing>,
}

impl CandleDecoder {
    /// The experts that each layer's router chose, (tokens * top_k) a layer, best first; empty for a dense model.
    pub fn routes(&self, packed: &Packed) -> Result<Vec<Vec<u32>>> {
        let pass = self.pass(packed, Mode::default())?;
        let mut hidden = self.embed(packed)?;
        let mut routes = Vec::new();
        for layer in 0..self.layers.len() {
            let output = self.run_layer(layer, &hidden, &pass, None)?;
            routes.extend(output.routing.map(|routing| routing.chosen));
            hidden = output.hidden;
        }
        Ok(routes)
    }

    /// How many of the first layers stay in the memory that tokens are in; the others are copied there for each visit.
    pub fn resident_layers(&self) -> usize {
        match &self.residence {
            Residence::Machine => self.layers.len(),
            Residence::Device { split, .. } => split.resident,
        }
    }

    /// Bytes of weights in the memory that tokens are in.
    fn bytes_beside_tokens(&self) -> usize {
        match &self.residence {
            Residence::Machine => self.weight_bytes,
            Residence::Device { split, .. } => split.there as usize,
        }
    }

    fn pass<'a>(&self, packed: &'a Packed, mode: Mode<'a>) -> Result<Pass<'a>> {
        let angles = self.rotary.angles(packed, self.dtype, &self.device)?;
        Ok(Pass { packed, angles, mode })
    }

    /// The layer in the memory of the device; one that waits elsewhere is copied there, and is gone again with the copy.
    fn visited(&self, index: usize) -> Result<Cow<'_, Layer>> {
        let layer = &self.layers[index];
        match self.residence.tables_of_waiting(index) {
            Some(tables) => Ok(Cow::Owned(layer.moved(tables)?)),
            None => Ok(Cow::Borrowed(layer)),
        }
    }

    fn run_layer(&self, index: usize, hidden: &Tensor, pass: &Pass, recall: Option<Recall>) -> Result<LayerOutput> {
        let layer = &*self.visited(index)?;
        let angles = self.rotary.of(&pass.angles, index);
        let place = Place { config: &self.config, angles, window: self.config.window(index) };
        let norm = |x: &Tensor, weight: &Tensor| ops::rms_norm(x, weight, self.config.rms_norm_eps);
        let after = |x: Tensor, weight: &Option<Tensor>| match weight {
            Some(weight) => norm(&x, weight),
            None => Ok(x),
        };
        let update = layer.attention.forward(&norm(hidden, &layer.input_norm)?, pass, &place, recall)?;
        let hidden = (hidden + after(update, &layer.attention_output_norm)?)?;
        let (update, routing) = layer.feed_forward.forward(&norm(&hidden, &layer.feed_forward_norm)?, pass.mode)?;
        let hidden = (&hidden + after(update, &layer.feed_forward_output_norm)?)?;
        Ok(LayerOutput { hidden, routing })
    }
}

impl Lora {
    fn new(pair: &LoraPair, inputs: usize, outputs: usize, dtype: DType, device: &Device) -> Result<Lora> {
        pair.check(inputs, outputs)?;
        let var = |matrix: &Matrix| -> Result<Var> {
            let tensor = Tensor::from_slice(&matrix.values, (matrix.rows, matrix.columns), device)?;
            Ok(Var::from_tensor(&tensor.to_dtype(dtype)?)?)
        };
        Ok(Lora { a: var(&pair.a)?, b: var(&pair.b)?, scale: f64::from(pair.scale) })
    }
}

impl Layer {
    fn linears(&self) -> Vec<&Linear> {
        let Attention { q, k, v, o, .. } = &self.attention;
        let mut linears = vec![q, k, v, o];
        match &self.feed_forward {
            FeedForward::Dense(mlp) => linears.extend([&mlp.w1, &mlp.w2, &mlp.w3]),
            FeedForward::Mixture(mixture) => {
                linears.push(&mixture.router);
                linears.extend(mixture.experts.iter().flat_map(|mlp| [&mlp.w1, &mlp.w2, &mlp.w3]));
            }
        }
        linears
    }

    /// The same in the memory of the device that `tables` are on, LoRA pairs shared.
    fn moved(&self, tables: &Tables) -> Result<Layer> {
        let mut layer = self.clone();
        for norm in layer.norms_mut() {
            *norm = norm.to_device(tables.device())?;
        }
        for linear in layer.linears_mut() {
            linear.weight = linear.weight.moved(tables)?;
            if let Some(bias) = &mut linear.bias {
                *bias = bias.to_device(tables.device())?;
            }
        }
        Ok(layer)
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let heads = self.attention.head_norms.as_mut().map(|norms| [&mut norms.q, &mut norms.k]);
        let outputs = [&mut self.attention_output_norm, &mut self.feed_forward_output_norm];
        let plain = [&mut self.input_norm, &mut self.feed_forward_norm];
        plain.into_iter().chain(outputs.into_iter().flatten()).chain(heads.into_iter().flatten())
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Attention { q, k, v, o, .. } = &mut self.attention;
        let mut linears = vec![q, k, v, o];
        match &mut self.feed_forward {
            FeedForward::Dense(mlp) => linears.extend([&mut mlp.w1, &mut mlp.w2, &mut mlp.w3]),
            FeedForward::Mixture(mixture) => {
                linears.push(&mut mixture.router);
                linears.extend(mixture.experts.iter_mut().flat_map(|mlp| [&mut mlp.w1, &mut mlp.w2, &mut mlp.w3]));
            }
        }
        linears
    }
}
