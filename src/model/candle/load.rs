//! A decoder from a checkpoint: every tensor by its usual name, with the shape its config says.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::attention::{Attention, HeadNorms};
use super::feed_forward::{FeedForward, Mixture, Mlp};
use super::linear::{Linear, Weight};
use super::nf4::{DeviceNf4, Tables};
use super::residence::{Residence, Room};
use super::rotary::Rotary;
use super::{CandleDecoder, Layer, LoadOptions};
use crate::model::config::ModelConfig;
use crate::model::names::{self, ExpertPart};
use crate::weights::nf4::{BLOCK, NESTED_BLOCK, Nf4};
use crate::weights::{Checkpoint, Dtype, Format};

impl CandleDecoder {
    /// Into this machine's memory.
    pub fn load(checkpoint: &Checkpoint, config: &ModelConfig, options: &LoadOptions) -> Result<CandleDecoder> {
        ensure!(options.device.is_cpu(), "a card's memory has an end: it is loaded into with `load_onto`");
        Loader { checkpoint, config, options, room: None }.load()
    }

    /// Into the memory of `options.device`, as far as `room` goes (the CPU may be that device: the same lines on the machine
    /// itself).
    pub fn load_onto(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        options: &LoadOptions,
        room: Room,
    ) -> Result<CandleDecoder> {
        Loader { checkpoint, config, options, room: Some(room) }.load()
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    /// Of a device.
    room: Option<Room>,
}

impl Loader<'_> {
    fn load(&self) -> Result<CandleDecoder> {
        let (loader, config, options) = (self, self.config, self.options);
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = loader.tensor(names::EMBEDDING, &[vocab, hidden])?.to_device(&options.device)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => loader.tensor(names::HEAD, &[vocab, hidden])?.to_device(&options.device)?,
        };
        let residence = loader.residence()?;
        let layers: Result<Vec<Layer>> = match &residence {
            Residence::Machine => {
                (0..config.num_hidden_layers).into_par_iter().map(|index| loader.layer(index)).collect()
            }
            // One after the other: those that stay on the card do not gather here first.
            Residence::Device { tables, split } => (0..config.num_hidden_layers)
                .map(|index| {
                    let layer = loader.layer(index)?;
                    if index < split.resident { layer.moved(tables) } else { Ok(layer) }
                })
                .collect(),
        };
        Ok(CandleDecoder {
            config: config.clone(),
            device: options.device.clone(),
            dtype: loader.dtype(),
            rounding: loader.rounding(),
            embedding,
            embedding_scale: config.embedding_scale.map(|scale| loader.rounded(scale)).transpose()?,
            layers: layers?,
            residence,
            norm: loader.norm(names::NORM, hidden)?.to_device(&options.device)?,
            head,
            rotary: Rotary::new(config),
            weight_bytes: loader.bytes(),
            adapted: Vec::new(),
            whole: Vec::new(),
        })
    }

    fn residence(&self) -> Result<Residence> {
        let Some(room) = self.room else { return Ok(Residence::Machine) };
        let layers: Vec<u64> =
            (0..self.config.num_hidden_layers).map(|index| self.layer_bytes(index)).collect::<Result<_>>()?;
        let split = room.split(self.ends_bytes(), &layers)?;
        Ok(Residence::Device { tables: Tables::new(&self.options.device)?, split })
    }

    /// Bytes of embedding, head and final norm.
    fn ends_bytes(&self) -> u64 {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let matrices = if self.config.tie_word_embeddings { 1 } else { 2 };
        ((matrices * vocab + 1) * hidden * self.dtype().size_in_bytes()) as u64
    }

    /// Bytes of a layer in a device's memory.
    fn layer_bytes(&self, index: usize) -> Result<u64> {
        let width = self.dtype().size_in_bytes();
        let linear = |linear: names::Linear| -> Result<usize> {
            let count = linear.outputs * linear.inputs;
            let stored = self.checkpoint.tensor(&names::weight(&linear.module), &[linear.outputs, linear.inputs])?;
            Ok(match stored.nf4() {
                Some(nf4) => DeviceNf4::bytes(&nf4),
                None if self.quantizes() => nf4_bytes(count),
                None => count * width,
            })
        };
        let vectors: usize = names::vectors(self.config, index).iter().map(|(_, shape)| shape[0]).sum();
        let linears = names::linears(self.config, index).into_iter().map(linear).sum::<Result<usize>>()?;
        Ok((linears + vectors * width) as u64)
    }

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

    /// The dtype tensors have here: without a device candle's CPU multiplies in f32 alone.
    fn dtype(&self) -> DType {
        if self.room.is_some() { self.rounding() } else { DType::F32 }
    }

    fn rounding(&self) -> DType {
        match self.options.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
        }
    }

    /// In the machine's memory.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.checkpoint.tensor(name, shape)?.to_f32().with_context(|| format!("tensor {name}"))?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.rounding())?.to_dtype(self.dtype())?)
    }

    /// A norm's weights as they multiply. One more than the stored ones is not rounded again.
    fn norm(&self, name: &str, width: usize) -> Result<Tensor> {
        let stored = self.tensor(name, &[width])?;
        Ok(if self.config.norm_plus_one { (stored.to_dtype(DType::F32)? + 1.0)? } else { stored })
    }

    fn rounded(&self, number: f32) -> Result<f64> {
        let rounded = Tensor::new(number, &Device::Cpu)?.to_dtype(self.rounding())?;
        Ok(rounded.to_dtype(DType::F64)?.to_scalar()?)
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
        Ok(Linear { module, outputs, inputs, weight, bias: None, lora: None })
    }

    /// One of q, k and v, with its bias where the family has them.
    fn projection(&self, module: String, outputs: usize) -> Result<Linear> {
        let bias = match self.config.attention_bias {
            true => Some(self.tensor(&names::bias(&module), &[outputs])?),
            false => None,
        };
        Ok(Linear { bias, ..self.linear(module, outputs, self.config.hidden_size)? })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let norm = |name: String| self.norm(&name, self.config.hidden_size);
        let sandwich = |name: String| self.config.sandwich_norms.then(|| norm(name)).transpose();
        Ok(Layer {
            input_norm: norm(names::input_norm(index))?,
            attention: self.attention(index)?,
            attention_output_norm: sandwich(names::attention_output_norm(index))?,
            feed_forward_norm: norm(names::feed_forward_norm(self.config, index))?,
            feed_forward: self.feed_forward(index)?,
            feed_forward_output_norm: sandwich(names::feed_forward_output_norm(index))?,
        })
    }

    fn attention(&self, index: usize) -> Result<Attention> {
        let head_dim = self.config.head_dim;
        let queries = self.config.num_attention_heads * head_dim;
        let keys = self.config.num_key_value_heads * head_dim;
        let norms = || -> Result<HeadNorms> {
            let norm = |name: String| self.norm(&name, head_dim);
            Ok(HeadNorms { q: norm(names::query_norm(index))?, k: norm(names::key_norm(index))? })
        };
        Ok(Attention {
            q: self.projection(names::q_proj(index), queries)?,
            k: self.projection(names::k_proj(index), keys)?,
            v: self.projection(names::v_proj(index), keys)?,
            o: self.linear(names::o_proj(index), self.config.hidden_size, queries)?,
            head_norms: self.config.head_norms.then(norms).transpose()?,
        })
    }

    fn feed_forward(&self, index: usize) -> Result<FeedForward> {
        let Some(mixture) = self.config.mixture_of(index) else {
            let dense = [names::gate_proj(index), names::down_proj(index), names::up_proj(index)];
            return Ok(FeedForward::Dense(Box::new(self.mlp(index, dense)?)));
        };
        let parts = [ExpertPart::W1, ExpertPart::W2, ExpertPart::W3];
        let expert = |expert: usize| self.mlp(index, parts.map(|part| names::expert(self.config, index, expert, part)));
        Ok(FeedForward::Mixture(Mixture {
            router: self.linear(names::router(self.config, index), mixture.experts, self.config.hidden_size)?,
            experts: (0..mixture.experts).map(expert).collect::<Result<_>>()?,
            top_k: mixture.top_k,
            normalize: mixture.normalize,
        }))
    }

    fn mlp(&self, layer: usize, [w1, w2, w3]: [String; 3]) -> Result<Mlp> {
        let (hidden, inner) = (self.config.hidden_size, self.config.feed_forward_width(layer));
        Ok(Mlp {
            activation: self.config.activation,
            w1: self.linear(w1, inner, hidden)?,
            w2: self.linear(w2, hidden, inner)?,
            w3: self.linear(w3, inner, hidden)?,
        })
    }
}

/// Bytes of a matrix of `count` numbers that is quantised here, doubly.
fn nf4_bytes(count: usize) -> usize {
    let blocks = count.div_ceil(BLOCK);
    blocks * BLOCK / 2 + blocks + 4 * blocks.div_ceil(NESTED_BLOCK) + 4
}
