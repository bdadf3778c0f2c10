//! An adapter merged into its base: `W + scale * B A` for every pair, what it replaces as a whole replaced, everything else
//! unchanged.
//!
//! The sum is made in f32 and rounded once to the dtype that is written, so an f32 merge differs from the adapter at
//! run time only by the order of its sums, and a bf16 one by that rounding.
//!
//! Invariant: no more than one tensor and its pair are in memory, whatever the size of model and adapter: both files are
//! mapped, and pages that have been read are given back (`tests/merge_memory.rs`).

use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;

use crate::model::adapter::LoraPair;
use crate::model::adapter::peft::PeftAdapter;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::tokenizer::Tokenizer;
use crate::weights::writer::{Planned, SHARD_BYTES, Writer};
use crate::weights::{Checkpoint, Dtype};

use super::{empty_folder, not_quantized, refuse_fused, state_dtype, write_beside};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeSummary {
    /// Linears that were changed; all pairs of the adapter.
    pub merged: usize,
    /// Tensors that the adapter replaced as a whole.
    pub replaced: usize,
    pub tensors: usize,
    /// Bytes of the weight files.
    pub bytes: u64,
    pub files: Vec<PathBuf>,
}

/// Writes `model` with the adapter in the folder `adapter` merged into the new folder `out`. `dtype`: `None` keeps each
/// tensor's own (f32 where it is quantised).
pub fn merge(model: &Path, adapter: &Path, out: &Path, dtype: Option<Dtype>) -> Result<MergeSummary> {
    let mut checkpoint = Checkpoint::open(model)?;
    let config = ModelConfig::of(&checkpoint)?;
    names::check(&checkpoint, &config)?;
    refuse_fused(&config, model)?;
    let own = own_dtypes(&checkpoint)?;
    let adapter = PeftAdapter::open(adapter, &config)?;
    adapter.lay_over(&mut checkpoint)?;
    let tokenizer = Tokenizer::open(model)?;
    empty_folder(out)?;

    let plan = plan(&checkpoint, &own, dtype)?;
    let mut json = checkpoint.config_json().clone();
    not_quantized(&mut json);
    let embedding = plan.iter().find(|planned| planned.name == names::EMBEDDING);
    state_dtype(&mut json, embedding.expect("every configuration has it, and names::check found it").dtype);

    let mut writer = Writer::create(out, plan.clone(), SHARD_BYTES)?;
    let mut merged = 0;
    for Planned { name, shape, .. } in &plan {
        let mut values = checkpoint.tensor(name, shape)?.to_f32()?;
        checkpoint.give_back(name)?;
        if let Some(pair) = name.strip_suffix(".weight").map_or(Ok(None), |module| adapter.pair(module))? {
            add(&mut values, &pair);
            merged += 1;
        }
        writer.write(name, &values)?;
    }
    write_beside(out, &json, &tokenizer)?;
    let files = writer.finish()?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    let replaced = adapter.replaced().count();
    Ok(MergeSummary { merged, replaced, tensors: plan.len(), bytes, files })
}

/// Every tensor and how the model has it.
fn own_dtypes(checkpoint: &Checkpoint) -> Result<Vec<(String, Dtype)>> {
    let dtype = |name: &str| Ok((name.to_owned(), Dtype::of(checkpoint.stored(name)?.format)));
    checkpoint.names().into_iter().map(dtype).collect()
}

/// Every tensor of `checkpoint`, over which an adapter may lie, in the dtype that the model itself had it in.
fn plan(checkpoint: &Checkpoint, own: &[(String, Dtype)], dtype: Option<Dtype>) -> Result<Vec<Planned>> {
    let embedding = own.iter().find(|(name, _)| name == names::EMBEDDING).map_or(Dtype::F32, |(_, dtype)| *dtype);
    let planned = |name: &str| {
        // A head that was one tensor with the embedding is new.
        let own = own.iter().find(|(known, _)| known == name).map_or(embedding, |(_, dtype)| *dtype);
        let shape = checkpoint.stored(name)?.shape;
        Ok(Planned { name: name.to_owned(), dtype: dtype.unwrap_or(own), shape, nf4: false })
    };
    checkpoint.names().into_iter().map(planned).collect()
}

/// `weight += scale * B A`, row by row.
fn add(weight: &mut [f32], pair: &LoraPair) {
    let LoraPair { scale, a, b, .. } = pair;
    weight.par_chunks_mut(a.columns).zip(b.values.par_chunks(b.columns)).for_each(|(weight, b)| {
        let mut row = vec![0f32; a.columns];
        for (b, a) in b.iter().zip(a.values.chunks(a.columns)) {
            for (sum, a) in row.iter_mut().zip(a) {
                *sum += b * a;
            }
        }
        for (weight, sum) in weight.iter_mut().zip(row) {
            *weight += scale * sum;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::Matrix;

    #[test]
    fn a_pair_is_added_by_hand() {
        // B (2, 1) times A (1, 3), scaled by 2: rows 2 * (1, 2, 3) and 2 * (-10, -20, -30).
        let pair = LoraPair {
            module: "m".to_owned(),
            scale: 2.0,
            a: Matrix { rows: 1, columns: 3, values: vec![1.0, 2.0, 3.0] },
            b: Matrix { rows: 2, columns: 1, values: vec![1.0, -10.0] },
        };
        let mut weight = vec![0.5; 6];
        add(&mut weight, &pair);
        assert_eq!(weight, [2.5, 4.5, 6.5, -19.5, -39.5, -59.5]);
    }
}
