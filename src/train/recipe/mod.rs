//! A recipe: everything that decides what a fine-tuning run does, in one TOML file (`finetune/README.md` has the format).
//!
//! Keys that are not known are refused, values are checked here once. Relative paths start at the folder that fireval
//! runs in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, Serializer};

use super::adamw;
use super::format::Format;
use super::schedule::Schedule;
use crate::digest::sha256_hex;
use crate::model::adapter::peft::PeftSettings;
use crate::model::adapter::target::Target;
use crate::model::candle::Numerics;
use crate::settings;

/// A checked recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model: a name in `fireval.toml`, a folder, a GGUF file or a hub repository.
    pub model: String,
    /// A config that `--plan` counts with where the model itself is not at hand: `mixtral-8x7b-v0.1`, or a path.
    #[serde(default)]
    pub config: Option<String>,
    /// Files of dialogues.
    pub data: Vec<PathBuf>,
    /// The folder for adapter, state and log.
    pub output: PathBuf,
    pub format: Format,
    /// Dialogues are cut to their first so many tokens.
    pub max_tokens: usize,
    pub quantization: Quantization,
    pub dtype: Dtype,
    pub seed: u64,
    /// How many steps; or `epochs`.
    #[serde(default)]
    steps: Option<usize>,
    /// How many times all dialogues; or `steps`.
    #[serde(default)]
    epochs: Option<usize>,
    /// Weight of the router's load-balancing loss; 0 leaves it out.
    #[serde(default)]
    pub router_aux_loss_coef: f64,
    /// Keep only the layers' inputs on the way forward and compute each layer again on the way back.
    #[serde(default = "yes")]
    pub recompute: bool,
    /// Write the resumable state every so many steps (it is always written at the end).
    #[serde(default)]
    pub checkpoint_every: Option<usize>,
    pub lora: Lora,
    pub optimizer: adamw::Settings,
    pub schedule: Schedule,
    pub batch: Batch,
    #[serde(default)]
    pub held_out: Option<HeldOut>,
}

/// `[lora]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f64,
    #[serde(default)]
    pub dropout: f64,
    #[serde(serialize_with = "by_name")]
    pub targets: Vec<Target>,
}

/// `[batch]`: a step learns from `dialogues * accumulation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Dialogues that go through the model together.
    pub dialogues: usize,
    /// Micro-batches whose gradients are averaged into one step.
    #[serde(default = "one")]
    pub accumulation: usize,
}

/// `[held_out]`: dialogues that are never learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// A count (1 and above) or a fraction of all (below 1).
    pub dialogues: f64,
    /// Their loss is taken before the first step, every so many steps (absent: not in between), and after the last.
    #[serde(default)]
    pub every: Option<usize>,
}

/// How frozen linears are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    None,
    /// 4 bits, double quantisation, as bitsandbytes.
    Nf4,
}

/// How numbers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    pub fn numerics(self) -> Numerics {
        match self {
            Dtype::F32 => Numerics::F32,
            Dtype::Bf16 => Numerics::BF16,
            Dtype::F16 => Numerics::F16,
        }
    }

    /// Bytes a number takes.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }
}

impl Recipe {
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Recipe::parse(&text, &path.display().to_string())
    }

    /// `place` names the text in errors.
    pub fn parse(text: &str, place: &str) -> Result<Recipe> {
        let recipe: Recipe = settings::parse(text, place)?;
        recipe.check().with_context(|| place.to_owned())?;
        Ok(recipe)
    }

    /// Dialogues a step learns from.
    pub fn dialogues_per_step(&self) -> usize {
        self.batch.dialogues * self.batch.accumulation
    }

    /// How many steps over `dialogues` dialogues; those too few for a last step of an epoch are left to the next one
    /// (transformers 4.36: whole steps per epoch, at least one).
    pub fn steps(&self, dialogues: usize) -> usize {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => epochs.unwrap_or(1) * (dialogues / self.dialogues_per_step()).max(1),
        }
    }

    /// The number of steps where the recipe states it.
    pub fn stated_steps(&self) -> Option<usize> {
        self.steps
    }

    /// sha256 over what decides the numbers: all but where things are written and how often they are looked at.
    pub fn digest(&self) -> String {
        let silent = Recipe { output: PathBuf::new(), config: None, checkpoint_every: None, ..self.clone() };
        sha256_hex(serde_json::to_string(&silent).expect("a recipe has only text and numbers").as_bytes())
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.data.is_empty(), "`data` lists no file");
        ensure!(!self.output.as_os_str().is_empty(), "`output` names no folder");
        match (self.steps, self.epochs) {
            (Some(_), Some(_)) => bail!("`steps` and `epochs` are both given; one of them decides"),
            (None, None) => bail!("neither `steps` nor `epochs` is given"),
            (Some(count), None) => within("steps", count, 1, MANY)?,
            (None, Some(count)) => within("epochs", count, 1, MANY)?,
        }
        within("max_tokens", self.max_tokens, 2, MANY)?;
        within("[batch] dialogues", self.batch.dialogues, 1, MANY)?;
        within("[batch] accumulation", self.batch.accumulation, 1, MANY)?;
        within("[schedule] warmup_steps", self.schedule.warmup_steps, 0, MANY)?;
        within("checkpoint_every", self.checkpoint_every.unwrap_or(1), 1, MANY)?;
        within("router_aux_loss_coef", self.router_aux_loss_coef, 0.0, 1e3)?;
        self.lora.check()?;
        check_optimizer(&self.optimizer)?;
        if let Some(held_out) = self.held_out {
            within("[held_out] every", held_out.every.unwrap_or(1), 1, MANY)?;
            let share = held_out.dialogues;
            let whole = share >= 1.0 && share.fract() == 0.0;
            ensure!(
                share > 0.0 && (share < 1.0 || whole),
                "`[held_out] dialogues` is {share}: a count, or a fraction below 1"
            );
        }
        Ok(())
    }
}

impl Lora {
    /// What `adapter_config.json` says of an adapter of `model` that is trained so.
    pub fn peft_settings(&self, model: &str) -> PeftSettings {
        PeftSettings {
            base_model: model.to_owned(),
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.iter().map(|&target| (target, None)).collect(),
            rank_stabilized: false,
            layers: None,
        }
    }

    fn check(&self) -> Result<()> {
        within("[lora] rank", self.rank, 1, 65_536)?;
        within("[lora] alpha", self.alpha, f64::MIN_POSITIVE, 1e6)?;
        within("[lora] dropout", self.dropout, 0.0, 0.99)?;
        ensure!(!self.targets.is_empty(), "`[lora] targets` is empty");
        let mut sorted = self.targets.clone();
        sorted.sort_unstable();
        sorted.dedup();
        ensure!(sorted.len() == self.targets.len(), "`[lora] targets` names a target twice");
        Ok(())
    }
}

impl HeldOut {
    /// How many of `all` dialogues are held out, at least one.
    pub fn count(&self, all: usize) -> usize {
        match self.dialogues < 1.0 {
            true => ((self.dialogues * all as f64).round() as usize).max(1),
            false => self.dialogues as usize,
        }
    }
}

/// Counts beyond this are a slip of the keyboard (and products of two of them still fit in a usize).
const MANY: usize = 1 << 30;

fn check_optimizer(optimizer: &adamw::Settings) -> Result<()> {
    within("[optimizer] learning_rate", optimizer.learning_rate, 0.0, 1e3)?;
    for beta in optimizer.betas {
        within("[optimizer] betas", beta, 0.0, 1.0 - f64::EPSILON)?;
    }
    within("[optimizer] epsilon", optimizer.epsilon, f64::MIN_POSITIVE, 1.0)?;
    within("[optimizer] weight_decay", optimizer.weight_decay, 0.0, 1e3)?;
    within("[optimizer] max_grad_norm", optimizer.max_grad_norm.unwrap_or(1.0), f64::MIN_POSITIVE, f64::MAX)
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, least: T, most: T) -> Result<()> {
    ensure!(least <= value && value <= most, "`{key}` is {value}, outside {least} to {most}");
    Ok(())
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn by_name<S: Serializer>(targets: &[Target], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(targets.iter().map(|target| target.name()))
}

#[cfg(test)]
mod tests;
