//! The two homes of a decoder, and how a model is loaded into one: to be scored or to be trained.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::ValueEnum;
use half::bf16;

use super::adapter::{Adapter, peft};
use super::candle::{CandleDecoder, LoadOptions, Room, batch_bytes, wave_bytes};
use super::config::ModelConfig;
use super::cpu::{self, CpuDecoder};
use super::decoder::Decoder;
use super::device::Card;
use super::names;
use super::training::Trainable;
use crate::kernel::{Element, Isa};
use crate::memory::Memory;
use crate::weights::{Checkpoint, Dtype};

/// Where a decoder's arithmetic is at home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Kernels of our own.
    #[default]
    Cpu,
    /// candle's tensors, on the CPU.
    Candle,
    /// candle's tensors, on a card.
    Card(Card),
}

impl Home {
    /// What an identity says of it for a model of that dtype: a number that grows when its answers change, and what
    /// this processor or card makes of products and sums where that shows in the last bits.
    pub fn engine(self, dtype: Dtype) -> String {
        match self {
            Home::Cpu => format!("cpu-3-{}", Isa::best().arithmetic(dtype == Dtype::BF16)),
            Home::Candle => "candle-cpu-2".to_owned(),
            Home::Card(card) => format!("candle-cuda-2-{}", card.architecture()),
        }
    }
}

/// Whose arithmetic, wherever it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arithmetic {
    /// Kernels of fireval's own.
    #[default]
    Cpu,
    /// candle's tensors.
    Candle,
}

impl Arithmetic {
    /// Its home on this machine's processor.
    pub fn here(self) -> Home {
        match self {
            Arithmetic::Cpu => Home::Cpu,
            Arithmetic::Candle => Home::Candle,
        }
    }
}

impl Home {
    /// The memory that weights and tokens are in: the card's, or what was `asked` of this machine's.
    pub fn memory(self, asked: Memory) -> Memory {
        match self {
            Home::Cpu | Home::Candle => asked,
            Home::Card(card) => card.memory,
        }
    }
}

/// How weights are held.
#[derive(Clone, Copy)]
pub struct Held {
    pub dtype: Dtype,
    pub nf4: bool,
}

/// The kernels' home, to run within `memory`.
pub fn cpu<E: Element>(
    checkpoint: Checkpoint,
    config: &ModelConfig,
    held: Held,
    memory: Memory,
) -> Result<CpuDecoder<E>> {
    CpuDecoder::load(checkpoint, config, &options(held, memory))
}

fn options(held: Held, memory: Memory) -> cpu::LoadOptions {
    cpu::LoadOptions { isa: Isa::best(), rounded_to_f16: held.dtype == Dtype::F16, nf4: held.nf4, memory: memory.0 }
}

/// candle's home, on the CPU.
pub fn candle(checkpoint: &Checkpoint, config: &ModelConfig, held: Held) -> Result<CandleDecoder> {
    let Held { dtype, nf4 } = held;
    CandleDecoder::load(checkpoint, config, &LoadOptions { device: Device::Cpu, dtype, nf4 })
}

/// candle's home on a card, with `reserve` bytes of its memory left to what is not weights. Numbers that the card does not
/// have are an error.
pub fn on_card(
    card: Card,
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    held: Held,
    reserve: u64,
) -> Result<CandleDecoder> {
    card.check(held.dtype)?;
    let options = LoadOptions { device: card.open()?, dtype: held.dtype, nf4: held.nf4 };
    CandleDecoder::load_onto(checkpoint, config, &options, Room { memory: card.memory.0, reserve })
}

/// A model on disk, and how and where it is to run.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// A folder or a GGUF file.
    pub checkpoint: &'a Path,
    /// The folder of an adapter.
    pub adapter: Option<&'a Path>,
    pub home: Home,
    pub held: Held,
    /// What the process may use; layers that do not fit are streamed.
    pub memory: Memory,
}

/// What is done with a decoder, whichever home's it is.
pub trait DecoderUser {
    type Output;

    fn take<D: Decoder + 'static>(self, decoder: D) -> Result<Self::Output>;
}

impl Stored<'_> {
    /// Loads the model with its adapter and hands it to `user`.
    pub fn open<U: DecoderUser>(self, user: U) -> Result<U::Output> {
        let mut checkpoint = Checkpoint::open(self.checkpoint)?;
        let (config, adapter) = match self.adapter {
            Some(folder) => peft::lay_over(folder, &mut checkpoint)?,
            None => (ModelConfig::of(&checkpoint)?, Adapter::default()),
        };
        names::check(&checkpoint, &config)?;
        let (config, held, adapter) = (&config, self.held, &adapter);
        match (self.home, held.dtype) {
            (Home::Cpu, Dtype::BF16) => {
                user.take(self.adapted(cpu::<bf16>(checkpoint, config, held, self.memory)?, adapter)?)
            }
            (Home::Cpu, Dtype::F32 | Dtype::F16) => {
                user.take(self.adapted(cpu::<f32>(checkpoint, config, held, self.memory)?, adapter)?)
            }
            (Home::Candle, _) => user.take(self.adapted(candle(&checkpoint, config, held)?, adapter)?),
            (Home::Card(card), _) => {
                let decoder = on_card(card, &checkpoint, config, held, wave_reserve(config))?;
                user.take(self.adapted(decoder, adapter)?)
            }
        }
    }

    fn adapted<D: Decoder>(&self, mut decoder: D, adapter: &Adapter) -> Result<D> {
        if let Some(folder) = self.adapter {
            decoder.set_adapter(adapter).with_context(|| format!("the adapter in {}", folder.display()))?;
        }
        Ok(decoder)
    }
}

/// Bytes on a card of a number that is trained: itself and its gradient. Its moments and the number in f32 stay here.
const ON_CARD: u8 = 8;
/// Tokens of a wave that a card's memory leaves room for, whatever the weights.
const CARD_WAVE: u64 = 4096;

/// What scoring leaves of a card's memory to tokens.
pub fn wave_reserve(config: &ModelConfig) -> u64 {
    wave_bytes(config, CARD_WAVE)
}

/// What training leaves of a card's memory to a micro-batch of `largest` tokens and to `trained` numbers.
pub fn train_reserve(config: &ModelConfig, largest: usize, trained: u64) -> u64 {
    let tokens = largest as u64;
    batch_bytes(config, tokens, tokens, true) + trained * u64::from(ON_CARD)
}

/// A model to be trained, in memory until [`Trainable::arrange`] says otherwise. A card streams layers that do not fit into
/// its own beside `reserve` bytes ([`train_reserve`]).
pub fn trainable(
    home: Home,
    checkpoint: Checkpoint,
    config: &ModelConfig,
    held: Held,
    reserve: u64,
) -> Result<Box<dyn Trainable>> {
    let options = options(held, Memory(u64::MAX));
    Ok(match (home, held.dtype) {
        (Home::Cpu, Dtype::BF16) => Box::new(CpuDecoder::<bf16>::load_to_train(checkpoint, config, &options)?),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => {
            Box::new(CpuDecoder::<f32>::load_to_train(checkpoint, config, &options)?)
        }
        (Home::Candle, _) => Box::new(candle(&checkpoint, config, held)?),
        (Home::Card(card), _) => Box::new(on_card(card, &checkpoint, config, held, reserve)?),
    })
}
