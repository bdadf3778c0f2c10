//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, read in every layout, written in the old one.
//!
//! The old layout names a pair per expert (`base_model.model.model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight`)
//! and is read by old and new PEFT alike (the new one converts it). Sources: peft 0.17.1 and 0.21.2,
//! `utils/save_and_load.py` and `utils/transformers_weight_conversion.py`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, View, serialize_to_file};
use serde_json::Value;

use super::peft_config::PeftConfig;
pub use super::peft_file::PeftAdapter;
pub use super::peft_settings::{Own, PeftSettings};
use super::{Adapter, LoraPair};
use crate::disk;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::weights::Checkpoint;

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

pub(super) const PREFIX: &str = "base_model.model.";

/// The pairs of the adapter in `folder`, for a model of that config. One that also replaces weights is an error, since
/// pairs alone would not be all of it.
pub fn read(folder: &Path, config: &ModelConfig) -> Result<Adapter> {
    let opened = PeftAdapter::open(folder, config)?;
    let replaced: Vec<&str> = opened.replaced().collect();
    ensure!(
        replaced.is_empty(),
        "{}: the adapter also replaces {}; merge it first (`fireval merge`)",
        folder.display(),
        replaced.join(", ")
    );
    opened.adapter()
}

/// The pairs of the adapter in `folder`, whose whole weights (embedding, head, norms) lie over those of `checkpoint` from
/// here on, and the config that the model then has.
pub fn lay_over(folder: &Path, checkpoint: &mut Checkpoint) -> Result<(ModelConfig, Adapter)> {
    let config = ModelConfig::of(checkpoint)?;
    let opened = PeftAdapter::open(folder, &config)?;
    let mut linears = (0..config.num_hidden_layers).flat_map(|layer| names::linears(&config, layer));
    if let Some(linear) = linears.find(|linear| opened.replaced().any(|name| name == names::weight(&linear.module))) {
        bail!(
            "{}: the adapter replaces `{}`, a linear of a layer, and quantising would change it; merge the adapter first \
             (`fireval merge`)",
            folder.display(),
            linear.module
        );
    }
    opened.lay_over(checkpoint)?;
    let config = ModelConfig::of(checkpoint)?;
    Ok((config, opened.adapter()?))
}

/// Writes `adapter` into `folder` (made where it is not there), the config last.
pub fn write(folder: &Path, adapter: &Adapter, settings: &PeftSettings) -> Result<()> {
    let is_mixture =
        adapter.pairs.iter().any(|pair| pair.module.contains(".experts.") || pair.module.ends_with(".gate"));
    let config = settings.to_json(is_mixture);
    let read = PeftConfig::new(&config)?;
    adapter.pairs.iter().try_for_each(|pair| check_pair(pair, &read))?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    disk::replace_with(&folder.join(WEIGHTS_FILE), |path| {
        Ok(serialize_to_file(tensors(adapter), Some(metadata.clone()), path)?)
    })?;
    let text = format!("{:#}\n", Value::Object(config));
    disk::replace(&folder.join(CONFIG_FILE), text.as_bytes())
}

/// A reader of the config must come to this pair's rank and scale.
fn check_pair(pair: &LoraPair, config: &PeftConfig) -> Result<()> {
    let known = [pair.module.as_str()];
    let (rank, scale) = (config.rank(&known), config.scale(&known));
    ensure!(
        pair.a.rows == rank && pair.b.columns == rank && pair.scale == scale,
        "{}: rank {} and scale {} are not those of the settings ({rank} and {scale})",
        pair.module,
        pair.a.rows,
        pair.scale,
    );
    Ok(())
}

/// The tensors of `adapter` under the names PEFT gives them.
pub fn tensors(adapter: &Adapter) -> impl Iterator<Item = (String, impl View + '_)> {
    adapter.pairs.iter().flat_map(|pair| {
        let name = |half: &str| format!("{PREFIX}{}.lora_{half}.weight", pair.module);
        [
            (name("A"), F32 { values: &pair.a.values, shape: vec![pair.a.rows, pair.a.columns] }),
            (name("B"), F32 { values: &pair.b.values, shape: vec![pair.b.rows, pair.b.columns] }),
        ]
    })
}

/// f32 numbers on their way into a safetensors file.
pub struct F32<'a> {
    pub values: &'a [f32],
    pub shape: Vec<usize>,
}

impl View for F32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
