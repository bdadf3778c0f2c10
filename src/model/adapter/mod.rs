//! A LoRA adapter as plain numbers: what the trainer updates, the decoders apply and PEFT's files hold.

mod fused;
pub mod peft;
mod peft_config;
mod peft_file;
mod peft_settings;
mod peft_targets;
pub mod target;

use anyhow::{Result, ensure};

/// A row-major f32 matrix.
#[derive(Clone, Debug, Default, PartialEq)]
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

impl Matrix {
    pub fn zeros(rows: usize, columns: usize) -> Matrix {
        Matrix { rows, columns, values: vec![0.0; rows * columns] }
    }
}

impl LoraPair {
    /// An error that names the module if the pair does not fit a linear of that shape.
    pub fn check(&self, inputs: usize, outputs: usize) -> Result<()> {
        ensure!(
            self.a.columns == inputs && self.b.rows == outputs && self.a.rows == self.b.columns,
            "adapter pair of {}: A is {} x {} and B {} x {}, but the linear takes {inputs} and gives {outputs}",
            self.module,
            self.a.rows,
            self.a.columns,
            self.b.rows,
            self.b.columns
        );
        Ok(())
    }
}

impl Adapter {
    /// How many numbers are trained.
    pub fn parameters(&self) -> usize {
        self.matrices().map(|matrix| matrix.values.len()).sum()
    }

    /// A and B of every pair, in order.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.pairs.iter().flat_map(|pair| [&pair.a, &pair.b])
    }

    /// A and B of every pair, in order.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        self.pairs.iter_mut().flat_map(|pair| [&mut pair.a, &mut pair.b])
    }
}
