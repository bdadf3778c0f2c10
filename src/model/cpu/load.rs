//! A decoder from a checkpoint: small tensors are read now, matrices are looked up when a layer is visited.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use half::f16;

use super::CpuDecoder;
use super::groups::Groups;
use super::layer::{Layer, Pairs};
use super::rotary::Rotary;
use super::weights::Weights;
use crate::kernel::product::Kernels;
use crate::kernel::{Element, Isa, Pool};
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Footprint};
use crate::model::names;
use crate::weights::Checkpoint;

/// How a decoder is made from a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    pub isa: Isa,
    /// Weights are rounded to f16; products are in f32. Without it they are rounded to what products are made of.
    pub rounded_to_f16: bool,
    /// Holds every linear of the layers (attention, experts, router) in NF4 with double quantisation.
    pub nf4: bool,
    /// Bytes that the process may use: layers are streamed where all of them and some tokens do not fit, and in groups
    /// where two of them do not.
    pub memory: u64,
}

/// Tokens that a dense layer takes at a time: packing a panel is a hundredth of multiplying it.
const CHUNK: usize = 2048;
/// Below this, packing shows.
const SMALLEST_CHUNK: usize = 256;
/// A wave of fewer tokens would read a streamed layer for too little work.
const SOME_TOKENS: usize = 4096;
/// The program beside its model.
const ASIDE: u64 = 128 << 20;

impl<E: Element> CpuDecoder<E> {
    /// A decoder to score and to generate with.
    pub fn load(checkpoint: Checkpoint, config: &ModelConfig, options: &LoadOptions) -> Result<CpuDecoder<E>> {
        let (mut decoder, may_stream) = CpuDecoder::open(checkpoint, config, options)?;
        decoder.fit_into(options.memory, may_stream)?;
        Ok(decoder)
    }

    /// A decoder to train with, its layers in memory until [`arrange`](crate::model::training::Trainable::arrange) says otherwise.
    pub fn load_to_train(checkpoint: Checkpoint, config: &ModelConfig, options: &LoadOptions) -> Result<CpuDecoder<E>> {
        Ok(CpuDecoder::open(checkpoint, config, options)?.0)
    }

    /// A decoder whose layers are in memory, or mapped: then they may be streamed.
    fn open(checkpoint: Checkpoint, config: &ModelConfig, options: &LoadOptions) -> Result<(CpuDecoder<E>, bool)> {
        let widths = [config.hidden_size, config.num_attention_heads * config.head_dim];
        let inner = (0..config.num_hidden_layers).map(|layer| config.feed_forward_width(layer));
        let widths: BTreeSet<usize> = inner.chain(widths).collect();
        ensure!(
            widths.iter().all(|width| width.is_multiple_of(E::GROUP)),
            "products in bf16 need even widths, and this model has {widths:?}; run it with `--dtype f32`"
        );
        let mut weights = Weights::new(checkpoint, config, options.rounded_to_f16);
        let quantizes = options.nf4 && !weights.are_nf4()?;
        if quantizes {
            weights.quantize()?;
        }
        let reader = Reader { checkpoint: weights.checkpoint(), config, round: rounding::<E>(options.rounded_to_f16) };
        let layers = (0..config.num_hidden_layers).map(|index| reader.layer(index)).collect::<Result<_>>()?;
        let norm = reader.norm(names::NORM, config.hidden_size)?;
        let decoder = CpuDecoder {
            layers_bytes: weights.layers_bytes(),
            spill: None,
            config: config.clone(),
            kernels: Kernels::new(options.isa),
            f32_kernels: Kernels::new(options.isa),
            adapted: (0..config.num_hidden_layers)
                .map(|layer| vec![None; names::linears(config, layer).len()])
                .collect(),
            layers,
            norm,
            weights,
            rotary: Rotary::new(config),
            chunk: CHUNK * config.mixture.map_or(1, |mixture| mixture.experts.div_ceil(mixture.top_k)),
            paths: Pool::default(),
            workspaces: Pool::default(),
        };
        Ok((decoder, !quantizes))
    }

    /// Streams the layers (what was quantised here is in memory and stays there), and takes fewer tokens at a time, where
    /// memory asks for it.
    fn fit_into(&mut self, memory: u64, may_stream: bool) -> Result<()> {
        if self.needed() <= memory {
            return Ok(());
        }
        if may_stream {
            let groups = self.groups_within(memory)?;
            self.weights.stream(groups)?;
        }
        while self.needed() > memory && self.chunk > SMALLEST_CHUNK {
            self.chunk /= 2;
        }
        Ok(())
    }

    /// What the process is expected to hold with some tokens on their way.
    fn needed(&self) -> u64 {
        let Footprint { fixed, per_token, .. } = self.footprint();
        (fixed + per_token * SOME_TOKENS) as u64 + ASIDE
    }

    /// Bytes of a token that are kept between a layer's groups: its input to the experts, and which they are.
    pub(super) fn kept_bytes(&self) -> usize {
        let row_and_weight = 2 * (size_of::<usize>() + size_of::<f32>()); // lists grow to twice what they hold
        self.config.mixture.map_or(0, |mixture| size_of::<E>() * self.width() + mixture.top_k * row_and_weight)
    }

    /// The groups to stream in. Small ones cost next to nothing, so they come before fewer tokens at a time.
    fn groups_within(&mut self, memory: u64) -> Result<Groups> {
        loop {
            let beside = self.needed() - self.weights.layers_bytes() as u64 + (self.kept_bytes() * SOME_TOKENS) as u64;
            let room = memory.saturating_sub(beside).try_into().unwrap_or(usize::MAX);
            let groups = self.weights.groups_within(room, &self.config)?;
            if Weights::streamed_bytes(&groups) <= room || self.chunk <= SMALLEST_CHUNK {
                return Ok(groups);
            }
            self.chunk /= 2;
        }
    }
}

/// What the model's dtype does to a number.
pub(super) fn rounding<E: Element>(rounded_to_f16: bool) -> fn(f32) -> f32 {
    if rounded_to_f16 { |value| f16::from_f32(value).to_f32() } else { |value| E::from_f32(value).to_f32() }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    round: fn(f32) -> f32,
}

impl Reader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        let (config, hidden) = (self.config, self.config.hidden_size);
        let two = |names: [String; 2], size: usize| -> Result<[Vec<f32>; 2]> {
            Ok([self.norm(&names[0], size)?, self.norm(&names[1], size)?])
        };
        let output_norms = [names::attention_output_norm(index), names::feed_forward_output_norm(index)];
        let head_norms = [names::query_norm(index), names::key_norm(index)];
        Ok(Layer {
            input_norm: self.norm(&names::input_norm(index), hidden)?,
            feed_forward_norm: self.norm(&names::feed_forward_norm(config, index), hidden)?,
            output_norms: config.sandwich_norms.then(|| two(output_norms, hidden)).transpose()?,
            head_norms: config.head_norms.then(|| two(head_norms, config.head_dim)).transpose()?,
            biases: config.attention_bias.then(|| self.biases(index)).transpose()?,
            pairs: Pairs::none(config, index),
        })
    }

    fn biases(&self, index: usize) -> Result<[Vec<f32>; 3]> {
        let queries = self.config.num_attention_heads * self.config.head_dim;
        let keys = self.config.num_key_value_heads * self.config.head_dim;
        Ok([
            self.vector(&names::bias(&names::q_proj(index)), queries)?,
            self.vector(&names::bias(&names::k_proj(index)), keys)?,
            self.vector(&names::bias(&names::v_proj(index)), keys)?,
        ])
    }

    fn norm(&self, name: &str, size: usize) -> Result<Vec<f32>> {
        let mut weight = self.vector(name, size)?;
        if self.config.norm_plus_one {
            weight.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(weight)
    }

    fn vector(&self, name: &str, size: usize) -> Result<Vec<f32>> {
        let values = self.checkpoint.tensor(name, &[size])?.to_f32().with_context(|| format!("tensor {name}"))?;
        Ok(values.into_iter().map(self.round).collect())
    }
}
