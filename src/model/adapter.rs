//! A LoRA adapter as plain numbers: what the trainer updates, the decoders apply and PEFT's files hold.

/// A row-major f32 matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>, // (rows, columns)
}

/// One linear's update: `y += scale * B (A x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// The linear's module path as the checkpoint spells it: `model.layers.0.block_sparse_moe.experts.3.w1`.
    pub module: String,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    pub a: Matrix, // (rank, inputs)
    pub b: Matrix, // (outputs, rank)
}

/// All pairs of a model, in the order of the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    pub pairs: Vec<LoraPair>,
}
