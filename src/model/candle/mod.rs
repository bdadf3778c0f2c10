//! The decoder on candle tensors: any device, differentiable. Correct first; on CPUs it is also the second opinion.
//!
//! On candle's CPU products are made in f32 whatever the weights' dtype: bf16 and f16 mean weights rounded to that type
//! (candle widens whole operands on every bf16 product, so nothing would be gained by more).

mod attention;
mod cache;
mod dropout;
mod feed_forward;
mod graft;
mod head;
mod linear;
mod load;
mod loss;
mod ops;
mod rotary;

use std::collections::HashMap;

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor, Var};

pub use cache::Cache;
pub use feed_forward::Routing;
pub use head::{TokenScore, Wanted};
pub use loss::{Loss, LossOptions, PairGradient};

use crate::model::adapter::{Adapter, LoraPair, Matrix};
use crate::model::config::ModelConfig;
use crate::model::packed::Packed;
use attention::{Attention, Pass};
use feed_forward::FeedForward;
use linear::{Linear, Lora, Mode};
use rotary::Rotary;

/// How weights are held and products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    F32,
    /// On candle's CPU: weights rounded to bf16, products in f32.
    BF16,
    /// As `BF16`, in f16.
    F16,
}

/// How a decoder is made from a checkpoint.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub device: Device,
    pub numerics: Numerics,
    /// Holds every linear of the layers (attention, experts, router) in NF4 with double quantisation.
    pub nf4: bool,
}

/// A loaded model.
pub struct CandleDecoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    embedding: Tensor, // (vocab, hidden)
    layers: Vec<Layer>,
    norm: Tensor, // (hidden)
    head: Tensor, // (vocab, hidden)
    rotary: Rotary,
    /// Modules of the adapter's pairs, in its order.
    adapted: Vec<String>,
}

struct Layer {
    input_norm: Tensor, // (hidden)
    attention: Attention,
    post_norm: Tensor, // (hidden)
    feed_forward: FeedForward,
}

/// What a layer returns.
pub struct LayerOutput {
    pub hidden: Tensor, // (tokens, hidden)
    /// `None` for a dense layer.
    pub routing: Option<Routing>,
}

impl CandleDecoder {
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Puts `adapter` beside the weights (replacing an earlier one). A pair whose module or shape the model does not
    /// have is an error that names it.
    pub fn set_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        let mut pairs: HashMap<&str, &LoraPair> =
            adapter.pairs.iter().map(|pair| (pair.module.as_str(), pair)).collect();
        if pairs.len() < adapter.pairs.len() {
            bail!("the adapter has two pairs for the same module");
        }
        for linear in self.layers.iter_mut().flat_map(Layer::linears_mut) {
            linear.lora = match pairs.remove(linear.module.as_str()) {
                Some(pair) => Some(Lora::new(pair, linear.inputs, linear.outputs, self.dtype, &self.device)?),
                None => None,
            };
        }
        if !pairs.is_empty() {
            let mut unused: Vec<&str> = pairs.into_keys().collect();
            unused.sort_unstable();
            bail!("the adapter has pairs for modules that this model does not have: {}", unused.join(", "));
        }
        self.adapted = adapter.pairs.iter().map(|pair| pair.module.clone()).collect();
        Ok(())
    }

    /// The hidden states after the last layer, before the final norm: (tokens, hidden).
    pub fn forward(&self, packed: &Packed) -> Result<Tensor> {
        let pass = self.pass(packed, Mode::default())?;
        let mut hidden = self.embed(packed)?;
        for layer in 0..self.layers.len() {
            hidden = self.layer(layer, &hidden, &pass, None)?.hidden;
        }
        Ok(hidden)
    }

    /// As `forward`, where segment i continues the sequence in `caches[i]` and is appended to it.
    pub fn continue_from(&self, packed: &Packed, caches: &mut [Cache]) -> Result<Tensor> {
        let pass = self.pass(packed, Mode::default())?;
        let mut hidden = self.embed(packed)?;
        for layer in 0..self.layers.len() {
            hidden = self.layer(layer, &hidden, &pass, Some(caches))?.hidden;
        }
        Ok(hidden)
    }

    /// The experts that each layer's router chose, (tokens * top_k) a layer, best first; empty for a dense model.
    pub fn routes(&self, packed: &Packed) -> Result<Vec<Vec<u32>>> {
        let pass = self.pass(packed, Mode::default())?;
        let mut hidden = self.embed(packed)?;
        let mut routes = Vec::new();
        for layer in 0..self.layers.len() {
            let output = self.layer(layer, &hidden, &pass, None)?;
            routes.extend(output.routing.map(|routing| routing.chosen));
            hidden = output.hidden;
        }
        Ok(routes)
    }

    /// An empty cache with room for `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        Cache::new(&self.config, capacity, self.dtype, &self.device)
    }

    fn pass<'a>(&self, packed: &'a Packed, mode: Mode<'a>) -> Result<Pass<'a>> {
        let (cos, sin) = self.rotary.angles(packed, &self.device)?;
        Ok(Pass { packed, cos: cos.to_dtype(self.dtype)?, sin: sin.to_dtype(self.dtype)?, mode })
    }

    fn embed(&self, packed: &Packed) -> Result<Tensor> {
        if let Some(id) = packed.ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            bail!("token {id} is outside the model's vocabulary of {}", self.config.vocab_size);
        }
        let ids = Tensor::from_slice(&packed.ids, packed.len(), &self.device)?;
        Ok(self.embedding.index_select(&ids, 0)?)
    }

    fn layer(&self, index: usize, hidden: &Tensor, pass: &Pass, caches: Option<&mut [Cache]>) -> Result<LayerOutput> {
        let layer = &self.layers[index];
        let normed = ops::rms_norm(hidden, &layer.input_norm, self.config.rms_norm_eps)?;
        let caches = caches.map(|caches| (index, caches));
        let hidden = (hidden + layer.attention.forward(&normed, pass, &self.config, caches)?)?;
        let normed = ops::rms_norm(&hidden, &layer.post_norm, self.config.rms_norm_eps)?;
        let (update, routing) = layer.feed_forward.forward(&normed, pass.mode)?;
        Ok(LayerOutput { hidden: (hidden + update)?, routing })
    }
}

impl Lora {
    fn new(pair: &LoraPair, inputs: usize, outputs: usize, dtype: DType, device: &Device) -> Result<Lora> {
        if pair.a.columns != inputs || pair.b.rows != outputs || pair.a.rows != pair.b.columns {
            bail!(
                "adapter pair of {}: A is {} x {} and B {} x {}, but the linear takes {inputs} and gives {outputs}",
                pair.module,
                pair.a.rows,
                pair.a.columns,
                pair.b.rows,
                pair.b.columns
            );
        }
        let var = |matrix: &Matrix| -> Result<Var> {
            let tensor = Tensor::from_slice(&matrix.values, (matrix.rows, matrix.columns), device)?;
            Ok(Var::from_tensor(&tensor.to_dtype(dtype)?)?)
        };
        Ok(Lora { a: var(&pair.a)?, b: var(&pair.b)?, scale: f64::from(pair.scale) })
    }
}

impl Layer {
    fn linears(&self) -> Vec<&Linear> {
        let Attention { q, k, v, o } = &self.attention;
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

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Attention { q, k, v, o } = &mut self.attention;
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
