//! An adapter merged into its base: `W + scale * B A` for every pair, everything else unchanged.
//!
//! The sum is made in f32 and rounded once to the dtype that is written, so an f32 merge differs from the adapter at
//! run time only by the order of its sums, and a bf16 one by that rounding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use crate::model::adapter::{Adapter, LoraPair};
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::weights::writer::{Dtype, Planned, SHARD_BYTES, Writer};

use super::{empty_folder, not_quantized, refuse_fused, state_dtype, write_beside};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeSummary {
    /// Linears that were changed; all pairs of the adapter.
    pub merged: usize,
    pub tensors: usize,
    /// Bytes of the weight files.
    pub bytes: u64,
    pub files: Vec<PathBuf>,
}

/// Writes `model` with `adapter` merged into the new folder `out`. `dtype`: `None` keeps each tensor's own (f32 where
/// it is quantised).
pub fn merge(model: &Path, adapter: &Adapter, out: &Path, dtype: Option<Dtype>) -> Result<MergeSummary> {
    let checkpoint = Checkpoint::open(model)?;
    let config = ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?;
    names::check(&checkpoint, &config)?;
    refuse_fused(&config, model)?;
    let pairs = pairs_by_weight(&checkpoint, adapter, model)?;
    let tokenizer = Tokenizer::open(model)?;
    empty_folder(out)?;

    let plan = checkpoint
        .names()
        .into_iter()
        .map(|name| {
            let stored = checkpoint.stored(name)?;
            let dtype = dtype.unwrap_or(Dtype::of(stored.format));
            Ok(Planned { name: name.to_owned(), dtype, shape: stored.shape, nf4: false })
        })
        .collect::<Result<Vec<Planned>>>()?;
    let mut json = checkpoint.config_json().clone();
    not_quantized(&mut json);
    let embedding = plan.iter().find(|planned| planned.name == names::EMBEDDING);
    state_dtype(&mut json, embedding.expect("every configuration has it, and names::check found it").dtype);

    let mut writer = Writer::create(out, plan.clone(), SHARD_BYTES)?;
    for planned in &plan {
        let mut values = checkpoint.tensor(&planned.name, &planned.shape)?.to_f32()?;
        if let Some(pair) = pairs.get(&planned.name) {
            add(&mut values, pair);
        }
        writer.write(&planned.name, &values)?;
    }
    write_beside(out, &json, &tokenizer)?;
    let files = writer.finish()?;
    let bytes = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
    Ok(MergeSummary { merged: pairs.len(), tensors: plan.len(), bytes, files })
}

/// Every pair by the weight it changes; an error names the pairs that fit nothing.
fn pairs_by_weight<'a>(
    checkpoint: &Checkpoint,
    adapter: &'a Adapter,
    model: &Path,
) -> Result<BTreeMap<String, &'a LoraPair>> {
    ensure!(!adapter.pairs.is_empty(), "the adapter has no pair to merge");
    let mut pairs = BTreeMap::new();
    let mut unused = Vec::new();
    for pair in &adapter.pairs {
        let LoraPair { module, a, b, .. } = pair;
        let name = names::weight(module);
        let Ok(stored) = checkpoint.stored(&name) else {
            unused.push(format!("`{module}`"));
            continue;
        };
        ensure!(
            stored.shape == [b.rows, a.columns] && a.rows == b.columns,
            "adapter pair `{module}`: A ({}, {}) and B ({}, {}) do not fit weight {:?} of {}",
            a.rows,
            a.columns,
            b.rows,
            b.columns,
            stored.shape,
            model.display()
        );
        if pairs.insert(name, pair).is_some() {
            bail!("adapter pair `{module}` is there twice");
        }
    }
    ensure!(
        unused.is_empty(),
        "{}: the model has no weight for {} of the adapter's {} pairs: {}; the adapter was made for another model",
        model.display(),
        unused.len(),
        adapter.pairs.len(),
        unused.join(", ")
    );
    Ok(pairs)
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
