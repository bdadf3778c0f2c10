//! From files to an engine: checkpoint, adapter and tokenizer, put together as an identity says.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::ValueEnum;
use half::bf16;

use super::Engine;
use super::budget::{Limits, Memory};
use super::local::LocalEngine;
use crate::kernel::{Element, Isa};
use crate::model::adapter::peft;
use crate::model::candle::{CandleDecoder, LoadOptions, Numerics};
use crate::model::config::ModelConfig;
use crate::model::cpu::{self, CpuDecoder};
use crate::model::decoder::Decoder;
use crate::model_id::ModelId;
use crate::tokenizer::Tokenizer;
use crate::weights::writer::Dtype;
use crate::weights::{Checkpoint, Format};

/// Where a decoder's arithmetic is at home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Home {
    /// Kernels of our own.
    #[default]
    Cpu,
    /// candle's tensors.
    Candle,
}

impl Home {
    /// What an identity says of it for a model of that dtype: a number that grows when the arithmetic changes, and what
    /// this processor makes of products and sums where that shows in the last bits.
    pub fn engine(self, dtype: Dtype) -> String {
        match self {
            Home::Cpu => format!("cpu-1-{}", Isa::best().arithmetic(dtype == Dtype::BF16)),
            Home::Candle => "candle-cpu-1".to_owned(),
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
    let dtype = Dtype::parse(&id.dtype)?;
    let nf4 = id.quantization.is_some() && !checkpoint.holds(Format::Nf4);
    match (place.home, dtype) {
        (Home::Cpu, Dtype::BF16) => engine(cpu::<bf16>(checkpoint, &config, dtype, nf4)?, place, id, memory),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => engine(cpu::<f32>(checkpoint, &config, dtype, nf4)?, place, id, memory),
        (Home::Candle, _) => engine(candle(&checkpoint, &config, dtype, nf4)?, place, id, memory),
    }
}

fn cpu<E: Element>(checkpoint: Checkpoint, config: &ModelConfig, dtype: Dtype, nf4: bool) -> Result<CpuDecoder<E>> {
    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: dtype == Dtype::F16, nf4 };
    CpuDecoder::load(checkpoint, config, &options)
}

fn engine<D: Decoder + 'static>(mut decoder: D, place: Place, id: &ModelId, memory: Memory) -> Result<Box<dyn Engine>> {
    if let Some(folder) = place.adapter {
        let adapter = peft::read(folder, decoder.config())?;
        decoder.set_adapter(&adapter).with_context(|| format!("the adapter in {}", folder.display()))?;
    }
    let tokenizer = Tokenizer::open(place.checkpoint)?;
    Ok(Box::new(LocalEngine::new(id.clone(), decoder, tokenizer, Limits::of(memory))))
}

fn candle(checkpoint: &Checkpoint, config: &ModelConfig, dtype: Dtype, nf4: bool) -> Result<CandleDecoder> {
    let numerics = match dtype {
        Dtype::F32 => Numerics::F32,
        Dtype::BF16 => Numerics::BF16,
        Dtype::F16 => Numerics::F16,
    };
    CandleDecoder::load(checkpoint, config, &LoadOptions { device: Device::Cpu, numerics, nf4 })
}
