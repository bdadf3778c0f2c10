//! From files to an engine, and how fast one layer of a model is.

use std::path::Path;

use anyhow::Result;
use half::bf16;

use super::budget::Limits;
use super::local::LocalEngine;
use super::{Engine, cost};
use crate::kernel::Element;
use crate::memory::Memory;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Footprint};
use crate::model::device::Card;
use crate::model::home::{DecoderUser, Held, Home, Stored, candle, cpu, on_card, wave_reserve};
use crate::model::names;
use crate::model_id::ModelId;
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, Dtype};

/// Loads a model, which `id` identifies.
pub fn open(stored: Stored, id: &ModelId) -> Result<Box<dyn Engine>> {
    stored.open(MakeEngine { stored, id })
}

struct MakeEngine<'a> {
    stored: Stored<'a>,
    id: &'a ModelId,
}

impl DecoderUser for MakeEngine<'_> {
    type Output = Box<dyn Engine>;

    fn take<D: Decoder + 'static>(self, decoder: D) -> Result<Box<dyn Engine>> {
        let Stored { checkpoint, home, memory, .. } = self.stored;
        let (tokenizer, limits) = (Tokenizer::open(checkpoint)?, Limits::of(home.memory(memory)));
        Ok(Box::new(LocalEngine::new(self.id.clone(), decoder, tokenizer, limits)))
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

/// Times one layer of a model, without loading the others and without its adapter.
pub fn probe(stored: Stored) -> Result<Probe> {
    let Stored { checkpoint: path, home, held, memory, .. } = stored;
    let checkpoint = Checkpoint::open(path)?;
    let config = ModelConfig::of(&checkpoint)?;
    match (home, held.dtype) {
        (Home::Cpu, Dtype::BF16) => probe_cpu::<bf16>(path, &config, held, memory),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => probe_cpu::<f32>(path, &config, held, memory),
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
    let reserve = wave_reserve(config);
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
