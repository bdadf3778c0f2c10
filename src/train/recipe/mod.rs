//! A recipe: everything that decides what a fine-tuning run does, in one TOML file (`finetune/README.md` has the format).
//!
//! Keys that are not known are refused, values are checked here once. Relative paths start at the folder that fireval
//! runs in.

mod data;
mod full;
mod lora;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::adamw;
use super::schedule::Schedule;
use crate::dialogue::format::Format;
use crate::digest::sha256_hex;
use crate::settings;
use crate::weights::Dtype;

pub use data::{Data, WeightedFile};
pub use full::Full;
pub use lora::{Layers, Lora};

/// A checked recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model: a name in `fireval.toml`, a folder, a GGUF file or a hub repository.
    pub model: String,
    /// A config that `--plan` counts with where the model itself is not at hand: `mixtral-8x7b-v0.1`, or a path.
    #[serde(default)]
    pub config: Option<String>,
    /// Files of dialogues, and what is done with them.
    pub data: Data,
    /// The folder for adapter, state and log.
    pub output: PathBuf,
    pub format: Format,
    /// No example has more tokens.
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
    /// NEFTune's noise on the embeddings ([`crate::model::neftune`]); absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neftune_alpha: Option<f64>,
    /// Keep only the layers' inputs on the way forward and compute each layer again on the way back.
    #[serde(default = "yes")]
    pub recompute: bool,
    /// Write the resumable state every so many steps (it is always written at the end).
    #[serde(default)]
    pub checkpoint_every: Option<usize>,
    /// LoRA pairs are trained; or `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lora: Option<Lora>,
    /// The weights themselves are; or `lora`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    full: Option<Full>,
    pub optimizer: adamw::Settings,
    pub schedule: Schedule,
    pub batch: Batch,
    #[serde(default)]
    pub held_out: Option<HeldOut>,
}

/// What a recipe trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method<'a> {
    Lora(&'a Lora),
    Full(&'a Full),
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
    /// Stop after so many such losses in a row that are no better than the best before them; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// What a loss has to be smaller by to be better.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub least_gain: f64,
    /// The adapter that is written is that of the best held-out loss, not the last one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keep_best: bool,
}

/// How frozen linears are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    None,
    /// 4 bits, double quantisation, as bitsandbytes.
    Nf4,
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

    /// What is trained.
    pub fn method(&self) -> Method<'_> {
        match (&self.lora, &self.full) {
            (Some(lora), _) => Method::Lora(lora),
            (None, Some(full)) => Method::Full(full),
            (None, None) => unreachable!("a recipe that was checked has one of both"),
        }
    }

    /// Probability of dropping an input of a LoRA pair.
    pub fn dropout(&self) -> f64 {
        match self.method() {
            Method::Lora(lora) => lora.dropout,
            Method::Full(_) => 0.0,
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
        self.data.check()?;
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
        above_zero("neftune_alpha", self.neftune_alpha.unwrap_or(1.0), 1e4)?;
        self.check_method()?;
        check_optimizer(&self.optimizer)?;
        if let Some(held_out) = self.held_out {
            within("[held_out] every", held_out.every.unwrap_or(1), 1, MANY)?;
            let share = held_out.dialogues;
            let whole = share >= 1.0 && share.fract() == 0.0;
            ensure!(
                share > 0.0 && (share < 1.0 || whole),
                "`[held_out] dialogues` is {share}: a count, or a fraction below 1"
            );
            within("[held_out] patience", held_out.patience.unwrap_or(1), 1, MANY)?;
            within("[held_out] least_gain", held_out.least_gain, 0.0, 1e3)?;
            let looks = held_out.patience.is_some() || held_out.keep_best;
            ensure!(!looks || held_out.every.is_some(), "`patience` and `keep_best` of `[held_out]` need its `every`");
        }
        Ok(())
    }
}

impl Recipe {
    fn check_method(&self) -> Result<()> {
        match (&self.lora, &self.full) {
            (Some(lora), None) => lora.check(),
            (None, Some(full)) => {
                ensure!(
                    self.quantization == Quantization::None,
                    "`[full]` trains the weights themselves, which 4 bits do not hold: `quantization = \"none\"`, or `[lora]` \
                     in place of `[full]`"
                );
                ensure!(
                    self.optimizer.lora_plus_ratio == 1.0,
                    "`[optimizer] lora_plus_ratio` is for `[lora]`: `[full]` has no pairs"
                );
                full.check()
            }
            (Some(_), Some(_)) => bail!("`[lora]` and `[full]` are both given; one of them is trained"),
            (None, None) => bail!("neither `[lora]` nor `[full]` is given: what is to be trained?"),
        }
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

    /// Where the best of `losses`, (steps, loss) in order, stands: the first that none beats by `least_gain`. One that is
    /// not finite is no better than any.
    pub fn best(&self, losses: &[(usize, Option<f64>)]) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (index, &(_, loss)) in losses.iter().enumerate() {
            let better = loss.filter(|loss| best.is_none_or(|(_, best)| *loss < best - self.least_gain));
            best = better.map(|loss| (index, loss)).or(best);
        }
        best.map(|(index, _)| index)
    }

    /// Whether a run with these held-out losses has stopped getting better.
    pub fn stops(&self, losses: &[(usize, Option<f64>)]) -> bool {
        let since = self.best(losses).map_or(losses.len(), |best| losses.len() - 1 - best);
        self.patience.is_some_and(|patience| since >= patience)
    }
}

/// Counts beyond this are a slip of the keyboard (and products of two of them still fit in a usize).
const MANY: usize = 1 << 30;

fn check_optimizer(optimizer: &adamw::Settings) -> Result<()> {
    within("[optimizer] learning_rate", optimizer.learning_rate, 0.0, 1e3)?;
    for beta in optimizer.betas {
        within("[optimizer] betas", beta, 0.0, 1.0 - f64::EPSILON)?;
    }
    above_zero("[optimizer] epsilon", optimizer.epsilon, 1.0)?;
    above_zero("[optimizer] lora_plus_ratio", optimizer.lora_plus_ratio, 1e4)?;
    within("[optimizer] weight_decay", optimizer.weight_decay, 0.0, 1e3)?;
    above_zero("[optimizer] max_grad_norm", optimizer.max_grad_norm.unwrap_or(1.0), f64::MAX)
}

fn above_zero(key: &str, value: f64, most: f64) -> Result<()> {
    let limit = if most < f64::MAX { format!(", at most {most}") } else { String::new() };
    ensure!(value > 0.0 && value <= most, "`{key}` is {value}; expected a number above 0{limit}");
    Ok(())
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

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests;
