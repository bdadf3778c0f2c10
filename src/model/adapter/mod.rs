//! A LoRA adapter as plain numbers: what the trainer updates, the decoders apply and PEFT's files hold. Weights that are
//! trained themselves, without a pair, are part of it, too.

mod fused;
pub mod peft;
mod peft_config;
mod peft_file;
mod peft_settings;
mod peft_targets;
pub mod target;

use std::collections::HashMap;

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

/// A tensor of the model with numbers of its own in place of the checkpoint's.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    /// As the checkpoint spells it: `model.layers.0.input_layernorm.weight`.
    pub tensor: String,
    /// Of a vector, the one row.
    pub values: Matrix,
}

/// All pairs of a model, in the order of the layers, and the tensors that are trained whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    pub pairs: Vec<LoraPair>,
    /// None of an adapter that PEFT's files hold.
    pub whole: Vec<Whole>,
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

/// Pairs by their module, with their places in the adapter.
pub struct ByModule<'a>(HashMap<&'a str, (usize, &'a LoraPair)>);

impl<'a> ByModule<'a> {
    /// The pair of a module, which has no other.
    pub fn take(&mut self, module: &str) -> Option<(usize, &'a LoraPair)> {
        self.0.remove(module)
    }

    /// That every pair was taken.
    pub fn finish(self) -> Result<()> {
        let mut unused: Vec<&str> = self.0.into_keys().collect();
        unused.sort_unstable();
        let modules = unused.join(", ");
        ensure!(unused.is_empty(), "the adapter has pairs for modules that this model does not have: {modules}");
        Ok(())
    }
}

impl Adapter {
    /// Its pairs, to be put beside the linears of a model one by one.
    pub fn by_module(&self) -> Result<ByModule<'_>> {
        let pairs = self.pairs.iter().enumerate().map(|(index, pair)| (pair.module.as_str(), (index, pair)));
        let pairs: HashMap<_, _> = pairs.collect();
        ensure!(pairs.len() == self.pairs.len(), "the adapter has two pairs for the same module");
        Ok(ByModule(pairs))
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> usize {
        self.matrices().map(|matrix| matrix.values.len()).sum()
    }

    /// A and B of every pair, in order, and then whole tensors.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let whole = self.whole.iter().map(|whole| &whole.values);
        self.pairs.iter().flat_map(|pair| [&pair.a, &pair.b]).chain(whole)
    }

    /// A and B of every pair, in order, and then whole tensors.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let whole = self.whole.iter_mut().map(|whole| &mut whole.values);
        self.pairs.iter_mut().flat_map(|pair| [&mut pair.a, &mut pair.b]).chain(whole)
    }
}
