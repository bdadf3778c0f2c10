//! A decoder from a checkpoint: every tensor by its usual name, with the shape its config says.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::attention::Attention;
use super::feed_forward::{FeedForward, Mixture, Mlp};
use super::linear::{Linear, Weight};
use super::rotary::Rotary;
use super::{CandleDecoder, Layer, LoadOptions, Numerics};
use crate::model::config::ModelConfig;
use crate::model::names::{self, ExpertPart};
use crate::weights::nf4::Nf4;
use crate::weights::{Checkpoint, Format};

impl CandleDecoder {
    pub fn load(checkpoint: &Checkpoint, config: &ModelConfig, options: &LoadOptions) -> Result<CandleDecoder> {
        let loader = Loader { checkpoint, config, options };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = loader.tensor(names::EMBEDDING, &[vocab, hidden])?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => loader.tensor(names::HEAD, &[vocab, hidden])?,
        };
        let layers = (0..config.num_hidden_layers).into_par_iter().map(|index| loader.layer(index));
        Ok(CandleDecoder {
            config: config.clone(),
            device: options.device.clone(),
            dtype: loader.dtype(),
            embedding,
            layers: layers.collect::<Result<_>>()?,
            norm: loader.tensor(names::NORM, &[hidden])?,
            head,
            rotary: Rotary::new(config),
            weight_bytes: loader.bytes(),
            adapted: Vec::new(),
        })
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
}

impl Loader<'_> {
    /// Bytes of all weights as they are held.
    fn bytes(&self) -> usize {
        let width = self.dtype().size_in_bytes();
        let held = |(_, shape): &(String, Vec<usize>)| match self.options.nf4 && shape.len() == 2 {
            true => shape.iter().product::<usize>() * 33 / 64, // 4 bits, and one byte for 64 of them
            false => shape.iter().product::<usize>() * width,
        };
        names::tensors(self.config).iter().map(held).sum()
    }

    /// Whether linears are quantised here. A checkpoint that holds NF4 itself has chosen which are.
    fn quantizes(&self) -> bool {
        self.options.nf4 && !self.checkpoint.holds(Format::Nf4)
    }

    /// The dtype tensors have here: candle's CPU multiplies in f32 alone.
    fn dtype(&self) -> DType {
        match (self.options.device.is_cpu(), self.options.numerics) {
            (true, _) | (false, Numerics::F32) => DType::F32,
            (false, Numerics::BF16) => DType::BF16,
            (false, Numerics::F16) => DType::F16,
        }
    }

    fn rounding(&self) -> DType {
        match self.options.numerics {
            Numerics::F32 => DType::F32,
            Numerics::BF16 => DType::BF16,
            Numerics::F16 => DType::F16,
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.checkpoint.tensor(name, shape)?.to_f32().with_context(|| format!("tensor {name}"))?;
        let tensor =
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.rounding())?.to_dtype(self.dtype())?;
        Ok(tensor.to_device(&self.options.device)?)
    }

    fn linear(&self, module: String, outputs: usize, inputs: usize) -> Result<Linear> {
        let name = names::weight(&module);
        let stored = self.checkpoint.tensor(&name, &[outputs, inputs])?;
        let weight = match stored.nf4() {
            Some(nf4) => Weight::Nf4(Arc::new(nf4.into_owned())),
            None if self.quantizes() => {
                let nf4 = Nf4::quantize(&stored.to_f32()?, true).with_context(|| format!("tensor {name}"))?;
                Weight::Nf4(Arc::new(nf4))
            }
            None => Weight::Dense(self.tensor(&name, &[outputs, inputs])?),
        };
        Ok(Linear { module, outputs, inputs, weight, lora: None })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let hidden = self.config.hidden_size;
        Ok(Layer {
            input_norm: self.tensor(&names::input_norm(index), &[hidden])?,
            attention: self.attention(index)?,
            post_norm: self.tensor(&names::feed_forward_norm(self.config, index), &[hidden])?,
            feed_forward: self.feed_forward(index)?,
        })
    }

    fn attention(&self, index: usize) -> Result<Attention> {
        let hidden = self.config.hidden_size;
        let queries = self.config.num_attention_heads * self.config.head_dim;
        let keys = self.config.num_key_value_heads * self.config.head_dim;
        Ok(Attention {
            q: self.linear(names::q_proj(index), queries, hidden)?,
            k: self.linear(names::k_proj(index), keys, hidden)?,
            v: self.linear(names::v_proj(index), keys, hidden)?,
            o: self.linear(names::o_proj(index), hidden, queries)?,
        })
    }

    fn feed_forward(&self, index: usize) -> Result<FeedForward> {
        let Some(mixture) = self.config.mixture else {
            return Ok(FeedForward::Dense(self.mlp([
                names::gate_proj(index),
                names::down_proj(index),
                names::up_proj(index),
            ])?));
        };
        let parts = [ExpertPart::W1, ExpertPart::W2, ExpertPart::W3];
        let expert = |expert: usize| self.mlp(parts.map(|part| names::expert(self.config, index, expert, part)));
        Ok(FeedForward::Mixture(Mixture {
            router: self.linear(names::router(self.config, index), mixture.experts, self.config.hidden_size)?,
            experts: (0..mixture.experts).map(expert).collect::<Result<_>>()?,
            top_k: mixture.top_k,
        }))
    }

    fn mlp(&self, [w1, w2, w3]: [String; 3]) -> Result<Mlp> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        Ok(Mlp {
            w1: self.linear(w1, inner, hidden)?,
            w2: self.linear(w2, hidden, inner)?,
            w3: self.linear(w3, inner, hidden)?,
        })
    }
}
