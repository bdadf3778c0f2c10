//! From files to an engine: checkpoint, adapter and tokenizer, put together as an identity says.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;

use super::local::LocalEngine;
use crate::model::adapter::peft;
use crate::model::candle::{CandleDecoder, LoadOptions, Numerics};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model_id::ModelId;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::writer::Dtype;

/// Loads the checkpoint at `path` with the adapter in the folder `adapter`, numbers as `id` says.
pub fn open(path: &Path, adapter: Option<&Path>, id: &ModelId) -> Result<LocalEngine<CandleDecoder>> {
    let dtype = Dtype::parse(&id.dtype)?;
    let checkpoint = Checkpoint::open(path)?;
    let config = ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?;
    let options = LoadOptions { device: Device::Cpu, numerics: numerics(dtype), nf4: id.quantization.is_some() };
    let mut decoder = CandleDecoder::load(&checkpoint, &config, &options)?;
    if let Some(folder) = adapter {
        let adapter = peft::read(folder, &config)?;
        decoder.set_adapter(&adapter).with_context(|| format!("the adapter in {}", folder.display()))?;
    }
    Ok(LocalEngine::new(id.clone(), decoder, Tokenizer::open(path)?))
}

fn numerics(dtype: Dtype) -> Numerics {
    match dtype {
        Dtype::F32 => Numerics::F32,
        Dtype::BF16 => Numerics::BF16,
        Dtype::F16 => Numerics::F16,
    }
}
