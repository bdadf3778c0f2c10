//! The two homes of a decoder, and how a model is loaded into one: to be scored or to be trained.

use anyhow::Result;
use candle_core::Device;
use clap::ValueEnum;
use half::bf16;

use super::candle::{CandleDecoder, LoadOptions, Numerics};
use super::config::ModelConfig;
use super::cpu::{self, CpuDecoder};
use super::training::Trainable;
use crate::kernel::{Element, Isa};
use crate::memory::Memory;
use crate::weights::Checkpoint;
use crate::weights::writer::Dtype;

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
    let numerics = match held.dtype {
        Dtype::F32 => Numerics::F32,
        Dtype::BF16 => Numerics::BF16,
        Dtype::F16 => Numerics::F16,
    };
    CandleDecoder::load(checkpoint, config, &LoadOptions { device: Device::Cpu, numerics, nf4: held.nf4 })
}

/// A model to be trained, in memory until [`Trainable::arrange`] says otherwise.
pub fn trainable(home: Home, checkpoint: Checkpoint, config: &ModelConfig, held: Held) -> Result<Box<dyn Trainable>> {
    let options = options(held, Memory(u64::MAX));
    Ok(match (home, held.dtype) {
        (Home::Cpu, Dtype::BF16) => Box::new(CpuDecoder::<bf16>::load_to_train(checkpoint, config, &options)?),
        (Home::Cpu, Dtype::F32 | Dtype::F16) => {
            Box::new(CpuDecoder::<f32>::load_to_train(checkpoint, config, &options)?)
        }
        (Home::Candle, _) => Box::new(candle(&checkpoint, config, held)?),
    })
}
