//! From files to an engine: checkpoint, adapter and tokenizer, put together as an identity says.

use std::path::Path;

use anyhow::{Context, Result};
use half::bf16;

use super::budget::Limits;
use super::local::LocalEngine;
use super::{Engine, cost};
use crate::kernel::Element;
use crate::memory::Memory;
use crate::model::adapter::{Adapter, peft};
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Footprint};
use crate::model::device::Card;
use crate::model::home::{self, Held, Home, candle, cpu, on_card};
use crate::model::names;
use crate::model_id::ModelId;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::writer::Dtype;

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
    let mut checkpoint = Checkpoint::open(place.checkpoint)?;
    let (config, adapter) = match place.adapter {
        Some(folder) => peft::lay_over(folder, &mut checkpoint)?,
        None => (ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?, Adapter::default()),
    };
    let held = Held { dtype: Dtype::parse(&id.dtype)?, nf4: id.quantization.is_some() };
    let made = Made { place, id, memory: place.home.memory(memory), adapter: &adapter };
    match (place.home, held.dtype) {
        (Home::Cpu, Dtype::BF16) => made.engine(cpu::<bf16>(checkpoint, &config, held, memory)?),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => made.engine(cpu::<f32>(checkpoint, &config, held, memory)?),
        (Home::Candle, _) => made.engine(candle(&checkpoint, &config, held)?),
        (Home::Card(card), _) => made.engine(on_card(card, &checkpoint, &config, held, home::wave_reserve(&config))?),
    }
}

/// What a plan has to know of a decoder.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Floating-point operations a second, on this machine as it is now.
    pub speed: f64,
    /// Of the whole model.
    pub footprint: Footprint,
}

/// Times one layer of the model of `place`, without loading the others.
pub fn probe(place: Place, held: Held, memory: Memory) -> Result<Probe> {
    let checkpoint = Checkpoint::open(place.checkpoint)?;
    let config = ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?;
    match (place.home, held.dtype) {
        (Home::Cpu, Dtype::BF16) => probe_cpu::<bf16>(place.checkpoint, &config, held, memory),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => probe_cpu::<f32>(place.checkpoint, &config, held, memory),
        (Home::Candle, _) => probe_layer(&config, |config| candle(&checkpoint, config, held)),
        (Home::Card(card), _) => probe_card(card, &checkpoint, &config, held),
    }
}

fn probe_cpu<E: Element>(path: &Path, config: &ModelConfig, held: Held, memory: Memory) -> Result<Probe> {
    let load = |config: &ModelConfig, memory| cpu::<E>(Checkpoint::open(path)?, config, held, memory);
    let mut probe = probe_layer(config, |config| load(config, Memory(u64::MAX)))?;
    if probe.footprint.fixed as u64 > memory.0 {
        probe.footprint = load(config, memory)?.footprint(); // it will stream, which takes no loading
    }
    Ok(probe)
}

fn probe_card(card: Card, checkpoint: &Checkpoint, config: &ModelConfig, held: Held) -> Result<Probe> {
    let reserve = home::wave_reserve(config);
    let mut probe = probe_layer(config, |config| on_card(card, checkpoint, config, held, reserve))?;
    // What does not fit will wait elsewhere.
    probe.footprint.fixed = probe.footprint.fixed.min(card.memory.0.saturating_sub(reserve) as usize);
    Ok(probe)
}

fn probe_layer<D: Decoder>(config: &ModelConfig, load: impl Fn(&ModelConfig) -> Result<D>) -> Result<Probe> {
    let cut = |layers: usize| ModelConfig { num_hidden_layers: layers, ..config.clone() };
    let none = load(&cut(0))?.footprint();
    let decoder = load(&cut(1))?;
    let one = decoder.footprint();
    // The others hold as much as their shapes say: some mixtures have dense layers.
    let numbers =
        |layer| names::linears(config, layer).iter().map(|linear| linear.outputs * linear.inputs).sum::<usize>();
    let all = (0..config.num_hidden_layers).map(numbers).sum::<usize>() as f64 / numbers(0) as f64;
    let footprint = Footprint {
        fixed: none.fixed + (all * (one.fixed - none.fixed) as f64) as usize,
        per_token: one.per_token,
        per_past_token: config.num_hidden_layers * one.per_past_token,
    };
    Ok(Probe { speed: cost::speed(&decoder)?, footprint })
}

/// What an engine is made of besides its decoder.
struct Made<'a> {
    place: Place<'a>,
    id: &'a ModelId,
    memory: Memory,
    adapter: &'a Adapter,
}

impl Made<'_> {
    fn engine<D: Decoder + 'static>(&self, mut decoder: D) -> Result<Box<dyn Engine>> {
        if let Some(folder) = self.place.adapter {
            decoder.set_adapter(self.adapter).with_context(|| format!("the adapter in {}", folder.display()))?;
        }
        let tokenizer = Tokenizer::open(self.place.checkpoint)?;
        Ok(Box::new(LocalEngine::new(self.id.clone(), decoder, tokenizer, Limits::of(self.memory))))
    }
}
