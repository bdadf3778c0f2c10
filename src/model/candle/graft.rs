//! A value computed outside the graph, put back into it with a backward of its own.
//!
//! candle's fused kernels (`rms_norm`, `rope`, `softmax_last_dim`) drop gradients silently, and its product computes the
//! gradient of both operands even when one is frozen. Here the value is computed by whatever is fastest, on detached
//! tensors, and [`graft`] gives it the one gradient that is wanted. Nothing is copied when no gradient is asked for.

use anyhow::Result;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Shape, Tensor};

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
    Ok(input.apply_op2(&value, Graft { backward: Box::new(backward) })?)
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
        copied(value, layout)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        value: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        copied(value, layout)
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

/// The numbers of a tensor in storage of their own: the same lines wherever it lies.
fn copied<S>(value: &S, layout: &Layout) -> candle_core::Result<(S, Shape)>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let mut copy = value.device().zeros_impl(layout.shape(), value.dtype())?;
    value.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}
