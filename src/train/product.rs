//! What a run leaves in its folder: an adapter as PEFT writes it, or a checkpoint that stands alone.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::recipe::{Method, Recipe};
use crate::disk;
use crate::model::adapter::{Adapter, Whole, peft};
use crate::model::config::{ModelConfig, RopeScaling};
use crate::model::files::{not_quantized, refuse_fused, state_dtype, write_beside};
use crate::model::home::Home;
use crate::model::names;
use crate::tokenizer::Tokenizer;
use crate::weights::writer::{Planned, SHARD_BYTES, Writer};
use crate::weights::{Checkpoint, Format, INDEX, SINGLE};

/// Of a checkpoint: the file whose presence says that it is whole.
const CHECKPOINT_FILES: [&str; 2] = [SINGLE, INDEX];

/// What `recipe` makes of the checkpoint at `model`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub recipe: &'a Recipe,
    pub model: &'a Path,
    /// What an adapter's files call it.
    pub base: &'a str,
}

impl Product<'_> {
    /// An error for what cannot be trained so: before anything is loaded.
    pub fn check(&self, checkpoint: &Checkpoint, config: &ModelConfig, home: Home) -> Result<()> {
        names::check(checkpoint, config)?;
        let (tokens, longest) = (self.recipe.max_tokens, config.max_position_embeddings);
        ensure!(
            config.rope_scaling != RopeScaling::Dynamic || tokens <= longest,
            "`max_tokens` {tokens} is above the model's max_position_embeddings {longest}, beyond which its dynamic rope is \
             not built"
        );
        if let Method::Full(_) = self.recipe.method() {
            ensure!(
                home != Home::Cpu,
                "`[full]` is trained on candle's tensors: add --decoder candle (the kernels' home trains `[lora]` alone)"
            );
            ensure!(
                !checkpoint.holds(Format::Nf4),
                "{}: the model is stored in 4 bits, which `[full]` cannot train: name the model it was made from",
                self.model.display()
            );
            refuse_fused(config, self.model)?;
        }
        Ok(())
    }

    /// The file in `folder` that says that such a product is there, if it is.
    pub fn found(&self, folder: &Path) -> Option<PathBuf> {
        let files = match self.recipe.method() {
            Method::Lora(_) => &[peft::WEIGHTS_FILE][..],
            Method::Full(_) => &CHECKPOINT_FILES,
        };
        files.iter().map(|file| folder.join(file)).find(|file| file.exists())
    }

    /// An error if an earlier run's is in `folder`.
    pub fn refuse_earlier(&self, folder: &Path) -> Result<()> {
        let left = self.found(folder);
        let shown = left.as_deref().unwrap_or(folder).display();
        ensure!(left.is_none(), "{shown} is there, but not the state of its run: choose another `output`");
        Ok(())
    }

    pub fn write(&self, folder: &Path, trained: &Adapter) -> Result<()> {
        match self.recipe.method() {
            Method::Lora(lora) => peft::write(folder, trained, &lora.peft_settings(self.base)),
            Method::Full(_) => self.write_checkpoint(folder, &trained.whole),
        }
    }

    /// The checkpoint with `whole` in place of what it had, all of it in the type that it was trained in.
    fn write_checkpoint(&self, folder: &Path, whole: &[Whole]) -> Result<()> {
        let checkpoint = Checkpoint::open(self.model)?;
        let config = ModelConfig::of(&checkpoint)?;
        let trained: HashMap<&str, &Whole> = whole.iter().map(|whole| (whole.tensor.as_str(), whole)).collect();
        let dtype = self.recipe.dtype;
        let planned = |(name, shape)| Planned { name, dtype, shape, nf4: false };
        let plan: Vec<Planned> = names::tensors(&config).into_iter().map(planned).collect();
        disk::make_folder(folder)?;
        let mut writer = Writer::create(folder, plan.clone(), SHARD_BYTES)?;
        for Planned { name, shape, .. } in &plan {
            match trained.get(name.as_str()) {
                Some(whole) => writer.write(name, &whole.values.values)?,
                None => writer.write(name, &checkpoint.tensor(name, shape)?.to_f32()?)?,
            }
        }
        let mut json = checkpoint.config_json().clone();
        not_quantized(&mut json);
        state_dtype(&mut json, dtype);
        write_beside(folder, &json, &Tokenizer::open(self.model)?)?;
        writer.finish()?;
        Ok(())
    }

    /// Writes what is in `best` into `folder`, the file that says it is whole last. All of it is opened before anything is
    /// written.
    pub fn take_best(&self, best: &Path, folder: &Path) -> Result<()> {
        let listed = std::fs::read_dir(best).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let mut files: Vec<PathBuf> = listed.with_context(|| format!("cannot read {}", best.display()))?;
        files.sort_by_key(|file| CHECKPOINT_FILES.iter().any(|last| file.ends_with(last)));
        let open = |path: PathBuf| -> Result<(PathBuf, File)> {
            let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((folder.join(path.file_name().unwrap_or_default()), file))
        };
        let opened: Vec<(PathBuf, File)> = files.into_iter().map(open).collect::<Result<_>>()?;
        for (to, mut from) in opened {
            disk::replace_with(&to, |temporary| {
                std::io::copy(&mut from, &mut File::create(temporary)?)?;
                Ok(())
            })?;
        }
        Ok(())
    }
}
