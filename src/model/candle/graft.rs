//! A value computed outside the graph, put back into it with a backward of its own.
//!
//! candle's fused kernels (`rms_norm`, `rope`, `softmax_last_dim`) drop gradients silently, and its product computes the
//! gradient of both operands even when one is frozen. Here the value is computed by whatever is fastest, on detached
//! tensors, and [`graft`] gives it the one gradient that is wanted. Nothing is copied when no gradient is asked for.

use anyhow::Result;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};

type Backward = dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor> + Send + Sync;

/// Makes `value` a function of `input` in the graph; `backward(output, its gradient)` is the gradient by `input`.
pub fn graft(
    input: &Tensor,
    value: Tensor,
    backward: impl Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !input.track_op() {
        return Ok(value);
    }
    Ok(input.apply_op2(&value.contiguous()?, Graft { backward: Box::new(backward) })?)
}

struct Graft {
    backward: Box<Backward>,
}

impl CustomOp2 for Graft {
    fn name(&self) -> &'static str {
        "graft"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        value: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a grafted value is contiguous") };
        let copy = match value {
            CpuStorage::F32(values) => CpuStorage::F32(values[start..end].to_vec()),
            CpuStorage::BF16(values) => CpuStorage::BF16(values[start..end].to_vec()),
            CpuStorage::F16(values) => CpuStorage::F16(values[start..end].to_vec()),
            CpuStorage::F64(values) => CpuStorage::F64(values[start..end].to_vec()),
            _ => bail!("only floating-point values have gradients"),
        };
        Ok((copy, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _input: &Tensor,
        _value: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some((self.backward)(output, gradient)?), None))
    }
}
