//! From files to an engine: checkpoint, adapter and tokenizer, put together as an identity says.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::ValueEnum;

use super::Engine;
use super::budget::{Limits, Memory};
use super::local::LocalEngine;
use crate::model::adapter::peft;
use crate::model::candle::{CandleDecoder, LoadOptions, Numerics};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model_id::ModelId;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::writer::Dtype;

/// Where a decoder's arithmetic is at home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Home {
    /// candle's tensors.
    #[default]
    Candle,
}

impl Home {
    /// What an identity says of it, with a number that grows when its arithmetic changes.
    pub fn engine(self) -> &'static str {
        match self {
            Home::Candle => "candle-cpu-1",
        }
    }
}

/// A model on disk, and where it is to run.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// A folder or a GGUF file.
    pub checkpoint: &'a Path,
    /// The folder of an adapter.
    pub adapter: Option<&'a Path>,
    pub home: Home,
}

/// Loads the model of `place`, numbers as `id` says, to run within `memory`.
pub fn open(place: Place, id: &ModelId, memory: Memory) -> Result<Box<dyn Engine>> {
    let checkpoint = Checkpoint::open(place.checkpoint)?;
    let config = ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?;
    match place.home {
        Home::Candle => engine(candle(&checkpoint, &config, id)?, place, id, memory),
    }
}

fn engine<D: Decoder + 'static>(mut decoder: D, place: Place, id: &ModelId, memory: Memory) -> Result<Box<dyn Engine>> {
    if let Some(folder) = place.adapter {
        let adapter = peft::read(folder, decoder.config())?;
        decoder.set_adapter(&adapter).with_context(|| format!("the adapter in {}", folder.display()))?;
    }
    let tokenizer = Tokenizer::open(place.checkpoint)?;
    Ok(Box::new(LocalEngine::new(id.clone(), decoder, tokenizer, Limits::of(memory))))
}

fn candle(checkpoint: &Checkpoint, config: &ModelConfig, id: &ModelId) -> Result<CandleDecoder> {
    let numerics = match Dtype::parse(&id.dtype)? {
        Dtype::F32 => Numerics::F32,
        Dtype::BF16 => Numerics::BF16,
        Dtype::F16 => Numerics::F16,
    };
    let options = LoadOptions { device: Device::Cpu, numerics, nf4: id.quantization.is_some() };
    CandleDecoder::load(checkpoint, config, &options)
}
