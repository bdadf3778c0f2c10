//! A run in progress: what it holds, and what each part of a step does with it. The order of the parts is in
//! [`finetune`](super::finetune).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::adamw::AdamW;
use super::arrangement::Arrangement;
use super::budget::Budget;
use super::data::TrainingData;
use super::format::{Example, pack};
use super::initial;
use super::log::{self, Entry, Log};
use super::order::Order;
use super::product::Product;
use super::recipe::{Quantization, Recipe};
use super::state::{self, Place, Wanted};
use super::{FinetuneOptions, TrainSummary, shown};
use crate::digest::sha256_hex;
use crate::disk;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::home::{self, Held};
use crate::model::training::{Gradients, Keep, LossOptions, MicroBatch, Trainable};
use crate::random::Random;
use crate::weights::{Checkpoint, Dtype};

/// The folder in the output with the adapter of the best held-out loss.
const BEST: &str = "best";
/// States that are kept: the newest, and one more should that be damaged.
const KEPT_STATES: usize = 2;
/// So many steps in a row without a finite loss end the run.
const PATIENCE: usize = 5;

pub struct Run<'a> {
    recipe: &'a Recipe,
    product: Product<'a>,
    data: &'a TrainingData,
    options: &'a FinetuneOptions,
    /// Not loaded for a run that is done.
    decoder: Option<Box<dyn Trainable>>,
    adapter: Adapter,
    optimizer: AdamW,
    order: Order,
    budget: Budget,
    /// Of a run that is not done.
    arrangement: Option<Arrangement>,
    log: Log,
    place: Place,
    steps: usize,
    /// The output folder, which no other run writes meanwhile.
    _folder: File,
}

/// One step, before it is made.
pub struct Step {
    /// From 0.
    index: usize,
    rate: f64,
    /// Which rows of the data, by micro-batch.
    batches: Vec<Vec<usize>>,
    tokens: usize,
    begun: Instant,
}

/// Means over a step's micro-batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepLoss {
    total: f64,
    cross_entropy: f64,
    router_aux: Option<f64>,
}

impl StepLoss {
    pub fn is_finite(&self) -> bool {
        self.total.is_finite()
    }
}

impl<'a> Run<'a> {
    /// Takes up the state in the recipe's output folder, or begins there.
    pub fn begin(
        recipe: &'a Recipe,
        model: &'a Path,
        data: &'a TrainingData,
        options: &'a FinetuneOptions,
    ) -> Result<Run<'a>> {
        let checkpoint = Checkpoint::open(model)?;
        let config = ModelConfig::of(&checkpoint)?;
        let (folder, product) = (&recipe.output, Product { recipe, model, base: options.base(recipe) });
        product.check(&checkpoint, &config, options.home)?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let locked = File::open(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        disk::lock(&locked, folder)?;
        let mut adapter = initial::trained(&checkpoint, &config, recipe.method(), recipe.seed)?;
        let mut optimizer = AdamW::new(recipe.optimizer, &adapter);
        let run = identity(recipe, data, &checkpoint)?;
        let wanted = Wanted { run: &run, accepts_others: options.accepts_changes };
        let tell = |line: &str| options.progress.line(line);
        let mut place = match state::restore(folder, wanted, &mut adapter, &mut optimizer, tell)? {
            Some(place) => place,
            None => {
                product.refuse_earlier(folder)?;
                Place { run, ..Place::default() }
            }
        };
        // A changed recipe may have another dtype than the state's run had.
        place.scaler = (recipe.dtype == Dtype::F16).then(|| place.scaler.unwrap_or_default());
        let mut this = Run {
            recipe,
            product,
            data,
            options,
            decoder: None,
            budget: Budget::new(
                options.memory,
                config.vocab_size,
                adapter.parameters(),
                data,
                (recipe.batch.accumulation, recipe.batch.dialogues),
                recipe.recompute,
            ),
            arrangement: None,
            adapter,
            optimizer,
            order: Order::new(recipe.seed, data.rows.len()),
            log: Log::open(folder, place.steps)?,
            steps: recipe.steps(data.rows.len()),
            place,
            _folder: locked,
        };
        if !this.is_done() {
            this.load(checkpoint, &config)?;
        }
        Ok(this)
    }

    fn load(&mut self, checkpoint: Checkpoint, config: &ModelConfig) -> Result<()> {
        if self.recipe.checkpoint_every.is_none() {
            self.options.progress.line("no `checkpoint_every` in the recipe: an interrupted run begins anew");
        }
        if self.place.steps > 0 {
            self.options.progress.line(&format!("goes on after step {} of {}", self.place.steps, self.steps));
        }
        let held = Held { dtype: self.recipe.dtype, nf4: self.recipe.quantization == Quantization::Nf4 };
        let trained = self.adapter.parameters() as u64;
        let reserve = home::train_reserve(config, self.budget.largest, trained);
        let mut decoder = home::trainable(self.options.home, checkpoint, config, held, reserve)?;
        let copy = 4 * trained; // which the decoder will hold
        let found = self.budget.arrange(&*decoder, copy)?;
        if found.traffic.in_all() > 0 {
            self.options.progress.line(&found.to_string());
        }
        if found.spills_moments {
            self.optimizer.spill(&self.recipe.output)?;
        }
        decoder.arrange(found.streams, (found.keep == Keep::SpilledInputs).then_some(&self.recipe.output))?;
        decoder.adapt(&self.adapter)?;
        self.arrangement = Some(found);
        self.decoder = Some(decoder);
        let left = self.place.steps * self.recipe.dialogues_per_step()..self.steps * self.recipe.dialogues_per_step();
        let mut order = Order::new(self.recipe.seed, self.data.rows.len());
        let tokens: usize = left.map(|position| self.data.row_tokens(order.at(position))).sum();
        self.options.progress.add_total(tokens as u64);
        Ok(())
    }

    pub fn is_new(&self) -> bool {
        self.place.steps == 0 && self.place.held_out.is_empty()
    }

    /// All steps are done, the held-out loss has stopped falling, or nothing comes of the steps.
    pub fn is_done(&self) -> bool {
        self.place.steps >= self.steps || self.has_stopped() || self.is_given_up()
    }

    fn has_stopped(&self) -> bool {
        self.recipe.held_out.is_some_and(|held_out| held_out.stops(&self.place.held_out))
    }

    fn is_given_up(&self) -> bool {
        self.place.skipped_in_a_row >= PATIENCE
    }

    pub fn next_step(&mut self) -> Step {
        let (index, size) = (self.place.steps, self.recipe.batch.dialogues);
        let chosen = self.chosen(index);
        // The schedule counts updates: it waits at a step that is skipped, as transformers' Trainer does at fp16's overflow.
        let factor = self.recipe.schedule.factor(self.optimizer.updates, self.steps);
        Step {
            index,
            rate: self.recipe.optimizer.learning_rate * factor,
            tokens: chosen.iter().map(|&row| self.data.row_tokens(row)).sum(),
            batches: chosen.chunks(size).map(<[usize]>::to_vec).collect(),
            begun: Instant::now(),
        }
    }

    /// The rows of a step, counted from 0.
    fn chosen(&mut self, step: usize) -> Vec<usize> {
        let size = self.recipe.dialogues_per_step();
        (step * size..(step + 1) * size).map(|position| self.order.at(position)).collect()
    }

    /// The mean loss and gradient of the step's micro-batches.
    pub fn gradients(&self, step: &Step) -> Result<(StepLoss, Gradients)> {
        let mut gradients = Gradients::zeros(&self.adapter);
        let batches: Vec<MicroBatch> =
            step.batches.iter().enumerate().map(|(micro, batch)| self.micro_batch(step, micro, batch)).collect();
        let options = LossOptions {
            router_aux_loss_coef: self.recipe.router_aux_loss_coef,
            recompute: self.recipe.recompute,
            dropout: self.recipe.dropout(),
            neftune_alpha: self.recipe.neftune_alpha,
        };
        let (weight, scale) = (1.0 / batches.len() as f64, self.place.scaler.map_or(1.0, |scaler| scaler.scale));
        let mut mean = StepLoss::default();
        let decoder = self.decoder()?;
        let arrangement = self.arrangement.as_ref().context(NOT_LOADED)?;
        for group in self.budget.groups(decoder, arrangement, &batches) {
            let together = &batches[group];
            for loss in decoder.gradients(together, &options, weight as f32 * scale, &mut gradients)? {
                mean.total += weight * loss.total;
                mean.cross_entropy += weight * loss.cross_entropy;
                mean.router_aux = loss.router_aux.map(|aux| mean.router_aux.unwrap_or(0.0) + weight * aux);
            }
            self.options.progress.advance(together.iter().map(|batch| batch.packed.len() as u64).sum());
        }
        if scale != 1.0 {
            gradients.scale(1.0 / scale);
        }
        Ok((mean, gradients))
    }

    fn micro_batch(&self, step: &Step, micro: usize, batch: &[usize]) -> MicroBatch {
        let examples: Vec<&Example> = batch.iter().flat_map(|&row| self.data.row(row)).collect();
        let (packed, targets) = pack(&examples);
        let draws = format!("dropout of step {}, micro-batch {micro}", step.index);
        MicroBatch { packed, targets, seed: Random::named(self.recipe.seed, &draws).next_u64() }
    }

    /// Cuts the gradients to the recipe's norm, and returns the norm they had.
    pub fn clip(&self, gradients: &mut Gradients) -> f64 {
        let norm = gradients.norm();
        if let Some(longest) = self.recipe.optimizer.max_grad_norm {
            gradients.clip(norm, longest);
        }
        norm
    }

    /// Whether a step's loss and the norm of its gradient are finite; a scaler hears of it.
    pub fn is_usable(&mut self, loss: &StepLoss, norm: f64) -> bool {
        if let Some(scaler) = &mut self.place.scaler {
            scaler.update(norm.is_finite());
        }
        loss.is_finite() && norm.is_finite()
    }

    pub fn update(&mut self, step: &Step, gradients: &Gradients) -> Result<()> {
        self.optimizer.step(&mut self.adapter, gradients, step.rate)?;
        self.place.skipped_in_a_row = 0;
        self.decoder.as_mut().context(NOT_LOADED)?.adapt(&self.adapter)
    }

    /// Leaves the adapter as it is. The run is given up after some such steps in a row that no smaller scale of the loss
    /// may help.
    pub fn skip(&mut self, step: &Step) {
        if self.place.scaler.is_none_or(|scaler| !scaler.can_fall()) {
            self.place.skipped_in_a_row += 1;
        }
        let (number, places) = (step.index + 1, self.data.places(&step.batches.concat()));
        let told = format!("step {number} ({places}): the loss or its gradient is not finite; the step is skipped");
        self.options.progress.line(&told);
    }

    pub fn log(&mut self, step: &Step, loss: &StepLoss, norm: f64) -> Result<()> {
        let seconds = step.begun.elapsed().as_secs_f64();
        let skipped = self.optimizer.updates == self.place.updates;
        self.place.steps += 1;
        self.place.updates = self.optimizer.updates;
        self.place.tokens += step.tokens as u64;
        self.place.seconds += seconds;
        self.place.last_loss = finite(loss.cross_entropy);
        let (number, rate) = (self.place.steps, step.rate);
        let shown = format!("step {number}/{} loss {:.3} rate {rate:.1e}", self.steps, loss.cross_entropy);
        self.options.progress.message(shown);
        self.log.append(&Entry::Step(log::Step {
            step: number,
            loss: finite(loss.total),
            cross_entropy: finite(loss.cross_entropy),
            router_aux: loss.router_aux.and_then(finite),
            grad_norm: finite(norm),
            learning_rate: rate,
            tokens: step.tokens,
            tokens_per_second: step.tokens as f64 / seconds.max(1e-9),
            seconds,
            skipped,
        }))
    }

    pub fn is_held_out_due(&self) -> bool {
        let every = self.recipe.held_out.and_then(|held_out| held_out.every);
        self.is_done() || every.is_some_and(|every| self.place.steps.is_multiple_of(every))
    }

    /// Mean cross-entropy over the learnt tokens of the held-out dialogues, told and logged; nothing where none is held
    /// out.
    pub fn held_out_loss(&mut self) -> Result<()> {
        if self.data.held_out.is_empty() {
            return Ok(());
        }
        let options = LossOptions { recompute: self.recipe.recompute, ..LossOptions::default() };
        let (mut sum, mut count) = (0.0, 0);
        for examples in self.data.held_out.chunks(self.recipe.batch.dialogues) {
            let (packed, targets) = pack(&examples.iter().collect::<Vec<_>>());
            for loss in self.decoder()?.losses(&[MicroBatch { packed, targets, seed: 0 }], &options)? {
                sum += loss.cross_entropy * loss.targets as f64;
                count += loss.targets;
            }
        }
        let (step, held_out_loss) = (self.place.steps, finite(sum / count as f64));
        self.options.progress.line(&format!("held-out loss after {step} steps: {}", shown(held_out_loss)));
        self.place.held_out.push((step, held_out_loss));
        self.keep_if_best()?;
        self.log.append(&Entry::HeldOut(log::HeldOut { step, held_out_loss }))
    }

    /// Writes the adapter beside the others if no held-out loss was better.
    fn keep_if_best(&self) -> Result<()> {
        match self.best().is_some_and(|(steps, _)| steps == self.place.steps) {
            true => self.product.write(&self.recipe.output.join(BEST), &self.adapter),
            false => Ok(()),
        }
    }

    /// Steps and held-out loss where that was best, of a recipe that keeps the best.
    fn best(&self) -> Option<(usize, f64)> {
        let held_out = self.recipe.held_out.filter(|held_out| held_out.keep_best)?;
        let (steps, loss) = self.place.held_out[held_out.best(&self.place.held_out)?];
        Some((steps, loss?))
    }

    pub fn is_state_due(&self) -> bool {
        self.is_done() || self.recipe.checkpoint_every.is_some_and(|every| self.place.steps.is_multiple_of(every))
    }

    pub fn save(&self) -> Result<()> {
        state::write(&self.recipe.output, KEPT_STATES, &self.place, &self.adapter, &self.optimizer)
    }

    /// Writes what was trained. A run that was given up is an error.
    pub fn finish(mut self) -> Result<TrainSummary> {
        self.refuse_given_up()?;
        if self.has_stopped() {
            let told =
                format!("stopped after {} of {} steps: the held-out loss falls no more", self.place.steps, self.steps);
            self.options.progress.line(&told);
        }
        let best = self.best();
        self.write(best)?;
        self.options.progress.finish();
        Ok(TrainSummary {
            adapter: self.recipe.output.clone(),
            is_whole: !self.adapter.whole.is_empty(),
            trained_parameters: self.adapter.parameters(),
            steps: self.place.steps,
            tokens: self.place.tokens,
            seconds: self.place.seconds,
            last_loss: self.place.last_loss,
            held_out: self.place.held_out,
            best,
        })
    }

    fn refuse_given_up(&mut self) -> Result<()> {
        if !self.is_given_up() {
            return Ok(());
        }
        let steps = self.place.steps;
        let last = self.chosen(steps.saturating_sub(1));
        bail!(
            "{PATIENCE} steps in a row without a finite loss, the last of them step {steps}, of {}: the run stops (lower \
             the learning rate, or look at the data; --accept-changes goes on from here)",
            self.data.places(&last)
        );
    }

    /// Writes the best, or without one the last. A finished run that is called again leaves the best that it wrote, should
    /// the copy of it be gone.
    fn write(&self, best: Option<(usize, f64)>) -> Result<()> {
        let (folder, kept) = (&self.recipe.output, self.recipe.output.join(BEST));
        let tell = |line: &str| self.options.progress.line(line);
        let Some((steps, _)) = best else {
            if self.recipe.held_out.is_some_and(|held_out| held_out.keep_best) {
                tell("no held-out loss was finite, so that none is the best: the last is written");
            }
            return self.product.write(folder, &self.adapter);
        };
        if self.product.found(&kept).is_some() {
            return self.product.take_best(&kept, folder);
        }
        ensure!(
            self.product.found(folder).is_some(),
            "{} is gone, and with it what was best, after {steps} steps: choose another `output` to train again, or take the \
             last with `keep_best = false` and --accept-changes",
            kept.display()
        );
        tell(&format!("{} is gone: {} is left as it is", kept.display(), folder.display()));
        Ok(())
    }

    fn decoder(&self) -> Result<&dyn Trainable> {
        self.decoder.as_deref().context(NOT_LOADED)
    }
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

const NOT_LOADED: &str = "a run that is done makes no more steps";

/// Which run this is: the recipe, its data in tokens, and the base model (its config, and of every tensor the name, the
/// shape and the first bytes: enough to tell two checkpoints apart without reading them whole).
fn identity(recipe: &Recipe, data: &TrainingData, checkpoint: &Checkpoint) -> Result<String> {
    let mut tensors = BTreeMap::new();
    for name in checkpoint.names() {
        let stored = checkpoint.stored(name)?;
        let start = &stored.bytes[..stored.bytes.len().min(64)];
        tensors.insert(name, format!("{:?} {:?} {start:?}", stored.format, stored.shape));
        checkpoint.give_back(name)?; // the system brings in more pages than were looked at
    }
    let parts = [recipe.digest(), data.digest(), checkpoint.config_json().to_string(), format!("{tensors:?}")];
    Ok(sha256_hex(parts.join("\n").as_bytes()))
}
