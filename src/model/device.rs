//! Where candle's tensors lie: in this machine's memory, or in a card's.
//!
//! A card is looked for once, when a command line names it, so that a build without CUDA, a card that is not there and
//! numbers that the card does not have are told before any work is done.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use candle_core::Device;

use crate::memory::Memory;
use crate::weights::Dtype;

/// A device as `--device` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    #[default]
    Cpu,
    /// The card of that number.
    Cuda(usize),
}

/// A card that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    pub index: usize,
    /// Compute capability: (7, 0) is a V100's.
    pub capability: (u32, u32),
    /// What of its memory may be used.
    pub memory: Memory,
}

/// What a process has on a card besides tensors: the context, the kernels' code, cuBLAS' workspace.
pub const CONTEXT: u64 = 512 << 20;
/// The first compute capability with bf16.
const WITH_BF16: (u32, u32) = (8, 0);

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceName> {
        let number = |number: &str| number.parse().ok().map(DeviceName::Cuda);
        let device = match text.split_once(':') {
            None if text == "cpu" => Some(DeviceName::Cpu),
            None if text == "cuda" => Some(DeviceName::Cuda(0)),
            Some(("cuda", index)) => number(index),
            _ => None,
        };
        device.context("a device is `cpu` or a card by its number, as `cuda:0`")
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => write!(f, "cpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Card {
    /// Looks for the card of that number. `memory`: the most to use of it, in place of what the driver says is free.
    pub fn find(index: usize, memory: Option<Memory>) -> Result<Card> {
        let name = DeviceName::Cuda(index);
        let (capability, free) = driver::look_up(index).with_context(|| format!("--device {name}"))?;
        let memory = memory.unwrap_or(Memory(free.saturating_sub(CONTEXT)));
        Ok(Card { index, capability, memory })
    }

    /// The card for candle.
    pub fn open(&self) -> Result<Device> {
        let name = DeviceName::Cuda(self.index);
        Device::new_cuda(self.index).with_context(|| format!("--device {name}: the card cannot be opened"))
    }

    /// An error if the card does not compute in that type.
    pub fn check(&self, dtype: Dtype) -> Result<()> {
        let (major, minor) = self.capability;
        let name = DeviceName::Cuda(self.index);
        match dtype {
            Dtype::BF16 => ensure!(
                self.capability >= WITH_BF16,
                "{name} has compute capability {major}.{minor} and no bf16, which came with 8.0; take f16 (--dtype f16; \
                 `dtype = \"f16\"` in a recipe)"
            ),
            Dtype::F16 | Dtype::F32 => {}
        }
        Ok(())
    }

    /// As an identity names it: results differ in the last bits from one generation of cards to the next.
    pub fn architecture(&self) -> String {
        format!("sm{}{}", self.capability.0, self.capability.1)
    }
}

#[cfg(feature = "cuda")]
mod driver {
    use candle_core::cuda::cudarc::driver::CudaContext;

    use super::*;

    /// Compute capability and bytes free.
    pub fn look_up(index: usize) -> Result<((u32, u32), u64)> {
        let count = CudaContext::device_count().context("the NVIDIA driver does not answer")?;
        ensure!(
            i32::try_from(index).is_ok_and(|index| index < count),
            "there is no such card: the driver has {count}, numbered from 0"
        );
        let context = CudaContext::new(index).context("the card cannot be opened")?;
        let (major, minor) = context.compute_capability().context("the card does not say what it can do")?;
        let (free, _) = context.mem_get_info().context("the card does not say how much memory is free")?;
        Ok(((major.unsigned_abs(), minor.unsigned_abs()), free as u64))
    }
}

#[cfg(not(feature = "cuda"))]
mod driver {
    use anyhow::{Result, bail};

    pub fn look_up(_: usize) -> Result<((u32, u32), u64)> {
        bail!(
            "this fireval was built without the feature `cuda`; build with `cargo build --release --features cuda` where \
             CUDA's nvcc is (README, \"On a card\"), or leave --device out"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        let read = |text: &str| text.parse::<DeviceName>().map_err(|error| error.to_string());
        assert_eq!(read("cpu"), Ok(DeviceName::Cpu));
        assert_eq!(read("cuda"), Ok(DeviceName::Cuda(0)));
        assert_eq!(read("cuda:3"), Ok(DeviceName::Cuda(3)));
        assert_eq!(read("cuda:3").unwrap().to_string(), "cuda:3");
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "metal:0"] {
            assert!(read(wrong).unwrap_err().contains("as `cuda:0`"), "{wrong}");
        }
    }

    #[test]
    fn bf16_is_refused_before_compute_capability_8() {
        let card = |capability| Card { index: 1, capability, memory: Memory(16 << 30) };
        let error = card((7, 0)).check(Dtype::BF16).unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("7.0") && error.contains("--dtype f16"), "{error}");
        card((7, 0)).check(Dtype::F16).unwrap();
        card((7, 5)).check(Dtype::F32).unwrap();
        card((8, 0)).check(Dtype::BF16).unwrap();
        card((12, 0)).check(Dtype::BF16).unwrap();
        assert_eq!(card((12, 0)).architecture(), "sm120");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_cuda_a_card_is_refused_with_what_to_do() {
        let error = format!("{:#}", Card::find(0, None).unwrap_err());
        assert!(error.contains("--device cuda:0") && error.contains("--features cuda"), "{error}");
    }
}
