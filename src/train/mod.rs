//! QLoRA fine-tuning, as Firefly did it for firefly-mixtral-8x7b: the frozen weights in 4 bits, LoRA pairs beside them,
//! loss on the answers alone. Small models can be trained whole by the same loop.
//!
//! [`finetune`] is the whole run: dialogues to tokens, and then for every step the gradients of its micro-batches, their
//! mean clipped, one update of AdamW, a line in the log. Its state is written now and then, and a call that finds one
//! goes on from there.

pub mod adamw;
mod arrangement;
mod budget;
pub mod card;
pub mod data;
pub mod format;
pub mod initial;
pub mod log;
pub mod moments;
pub mod order;
pub mod plan;
mod product;
pub mod recipe;
mod run;
mod scaler;
pub mod schedule;
pub mod state;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::memory::Memory;
use crate::model::home::Home;
use crate::progress::Progress;
use recipe::Recipe;
use run::Run;

/// What a recipe leaves open.
pub struct FinetuneOptions {
    /// Whose arithmetic it is.
    pub home: Home,
    /// The most that the process may take.
    pub memory: Memory,
    /// Goes on with the state of another recipe or other data too.
    pub accepts_changes: bool,
    /// What others know the base model by, if that is not what the recipe calls it.
    pub base_model: Option<String>,
    /// Counts tokens.
    pub progress: Progress,
}

impl Default for FinetuneOptions {
    fn default() -> FinetuneOptions {
        let (home, memory) = (Home::default(), Memory::half_of_free());
        let progress = Progress::new("finetune", "tok");
        FinetuneOptions { home, memory, accepts_changes: false, base_model: None, progress }
    }
}

impl FinetuneOptions {
    fn base<'a>(&'a self, recipe: &'a Recipe) -> &'a str {
        self.base_model.as_deref().unwrap_or(&recipe.model)
    }
}

/// What a run has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// The folder with the adapter, or with the model that was trained whole.
    pub adapter: PathBuf,
    pub is_whole: bool,
    pub trained_parameters: usize,
    pub steps: usize,
    /// Of all steps: tokens that went through the model, and seconds.
    pub tokens: u64,
    pub seconds: f64,
    /// Cross-entropy of the last step.
    pub last_loss: Option<f64>,
    /// Held-out losses: (steps done, loss), without one where it was not finite; the first before any step.
    pub held_out: Vec<(usize, Option<f64>)>,
    /// Steps and held-out loss of what was written, where the recipe keeps the best; else it is the last.
    pub best: Option<(usize, f64)>,
}

impl fmt::Display for TrainSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = self.tokens as f64 / self.seconds.max(1e-9);
        write!(f, "{} steps, {} tokens in {:.0} s ({speed:.0} a second)", self.steps, self.tokens, self.seconds)?;
        if let [(_, before), .., (_, after)] = self.held_out.as_slice() {
            write!(f, "; held-out loss {} before, ", shown(*before))?;
            match self.best {
                Some((steps, best)) => write!(f, "{best:.4} after {steps} steps, the best, which was written")?,
                None => write!(f, "{} after", shown(*after))?,
            }
        }
        let what = if self.is_whole { "model, trained in" } else { "adapter of" };
        write!(f, "\n{what} {} parameters in {}", self.trained_parameters, self.adapter.display())
    }
}

/// A held-out loss for people.
fn shown(loss: Option<f64>) -> String {
    loss.map_or_else(|| "not finite".to_owned(), |loss| format!("{loss:.4}"))
}

/// Fine-tunes the checkpoint at `model` (a folder or a GGUF file) by `recipe`, or goes on where an interrupted run was.
pub fn finetune(recipe: &Recipe, model: &Path, options: &FinetuneOptions) -> Result<TrainSummary> {
    let data = data::load(recipe, model)?;
    options.progress.line(&data.counts.to_string());
    let mut run = Run::begin(recipe, model, &data, options)?;
    if run.is_new() {
        run.held_out_loss()?;
    }
    while !run.is_done() {
        step(&mut run)?;
    }
    let summary = run.finish()?;
    card::write(recipe, options.base(recipe), &data, &summary)?;
    Ok(summary)
}

fn step(run: &mut Run) -> Result<()> {
    let step = run.next_step();
    let (loss, mut gradients) = run.gradients(&step)?;
    let norm = run.clip(&mut gradients);
    match run.is_usable(&loss, norm) {
        true => run.update(&step, &gradients)?,
        false => run.skip(&step),
    }
    run.log(&step, &loss, norm)?;
    if run.is_held_out_due() {
        run.held_out_loss()?;
    }
    if run.is_state_due() {
        run.save()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
