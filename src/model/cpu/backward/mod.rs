//! Training on the kernels: the losses of micro-batches and their gradient by the adapter, each layer visited twice.
//!
//! Forwards each layer leaves its input behind; backwards it is computed again from that input, unless there is memory to keep
//! what it computed ([`kept`]), and gone back through by
//! hand ([`attention`], [`feed_forward`], [`router`], [`linear`]; the loss is [`head`]'s). So one layer's activations are
//! held, whatever the depth, and streamed weights are read twice, however many micro-batches walk together.
//!
//! In a layer tokens go by portions: whole micro-batches, about as many tokens as make products fast. Sums over tokens are
//! made micro-batch by micro-batch in their order, everything else row by row: so a gradient has the same bits in whatever
//! company, portions, threads or memory it was computed.

mod attention;
mod feed_forward;
mod footprint;
mod head;
mod kept;
mod linear;
mod router;

pub use footprint::{input_bytes, left_bytes, walk_bytes};

use std::path::Path;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::CpuDecoder;
use super::groups::Groups;
use super::layer::Visit;
use super::linear::Span;
use super::routing::{choose, softmax};
use super::weights::Visited;
use super::workspace::{GateUp, ROWS_A_TASK, Workspace};
use crate::kernel::product::{Block, Term};
use crate::kernel::{Element, Lines, Shared, backward, rows};
use crate::model::adapter::Adapter;
use crate::model::decoder::{Decoder, Pasts};
use crate::model::dropout::Dropout;
use crate::model::names::ATTENTION_LINEARS;
use crate::model::packed::Packed;
use crate::model::training::{Balance, Gradients, Keep, Loss, LossOptions, MicroBatch, PairGradient, Trainable};
use kept::{Activations, Kept};

/// Tokens of a portion: packing a panel is a small part of multiplying it, for each of some experts too.
const PORTION: usize = 4096;

/// Micro-batches that go through a layer side by side.
pub(super) struct Portion {
    packed: Packed,
    targets: Vec<Option<u32>>,
    /// By micro-batch.
    spans: Vec<Span>,
    targets_of: Vec<usize>,
    /// By micro-batch, once it is known: of the load-balancing loss, by a token's probability of each expert.
    balance_gradient: Vec<Vec<f64>>,
}

/// What a walk holds.
struct Walk {
    portions: Vec<Portion>,
    states: Vec<Vec<f32>>, // by portion: (tokens, hidden)
    /// By micro-batch of each portion; none for a dense model.
    balances: Vec<Vec<Balance>>,
}

/// What a layer was between attention and feed-forward.
#[derive(Clone, Copy)]
struct Between<'a> {
    middle: &'a [f32], // (tokens, hidden): the states
    /// What gates and ups returned, by expert, where it was kept.
    inner: Option<&'a [GateUp]>,
    portion: &'a Portion,
}

/// Buffers of the way back.
#[derive(Default)]
struct Scratch<E> {
    middle: Lines<f32>, // (rows, hidden): the states between attention and feed-forward
    head: head::Scratch<E>,
    attention: attention::Scratch<E>,
    feed_forward: feed_forward::Scratch<E>,
}

impl<E: Element> Trainable for CpuDecoder<E> {
    fn adapt(&mut self, adapter: &Adapter) -> Result<()> {
        self.set_adapter(adapter)
    }

    fn held_bytes(&self) -> u64 {
        (self.weights.bytes() + self.pair_bytes()) as u64
    }

    fn streamed_bytes(&self) -> Option<u64> {
        Some((self.weights.streamed_whole_bytes()? + self.pair_bytes()) as u64)
    }

    fn layers_bytes(&self) -> u64 {
        self.layers_bytes as u64
    }

    fn walk_bytes(&self, tokens: usize, largest: usize, keep: Keep) -> u64 {
        walk_bytes::<E>(&self.config, tokens, largest, rayon::current_num_threads(), keep)
    }

    fn spilled_bytes(&self, tokens: usize) -> Option<u64> {
        Some(input_bytes(&self.config, tokens))
    }

    fn arrange(&mut self, streams: bool, spill: Option<&Path>) -> Result<()> {
        if streams && !self.is_streamed() {
            ensure!(self.weights.can_be_streamed(), "layers brought into 4 bits as they were loaded can't be streamed");
            self.weights.stream(Groups::whole(&self.config))?;
        }
        self.spill = spill.map(Path::to_owned);
        Ok(())
    }

    fn losses(&self, batches: &[MicroBatch], options: &LossOptions) -> Result<Vec<Loss>> {
        rayon::scope(|_| {
            let mut walk = self.begin(batches, 0.0)?;
            self.workspaces.with(|space| {
                (0..self.layers.len()).try_for_each(|layer| self.forward_layer(layer, &mut walk, space, None))
            })?;
            self.losses_of(&walk, options, None, &mut head::Scratch::default())
        })
    }

    fn gradients(
        &self,
        batches: &[MicroBatch],
        options: &LossOptions,
        factor: f32,
        sums: &mut Gradients,
    ) -> Result<Vec<Loss>> {
        rayon::scope(|_| {
            let mut walk = self.begin(batches, options.dropout)?;
            self.add_noise(batches, options, &mut walk);
            let mut scratch = Scratch::default();
            self.workspaces.with(|space| {
                let mut kept = Kept::new(self.layers.len(), &walk.states, self.spill.as_deref(), !options.recompute)?;
                for layer in 0..self.layers.len() {
                    kept.keep(layer, &walk.states)?;
                    self.forward_layer(layer, &mut walk, space, kept.activations(layer))?;
                }
                let mut gradients: Vec<Vec<f32>> = walk.states.iter().map(|states| vec![0.0; states.len()]).collect();
                let out = Some((factor, &mut gradients[..]));
                let losses = self.losses_of(&walk, options, out, &mut scratch.head)?;
                walk.set_balance_gradients(f64::from(factor) * options.router_aux_loss_coef);
                for layer in (0..self.layers.len()).rev() {
                    let buffers = (&mut *space, &mut scratch);
                    self.backward_layer(layer, &walk.portions, &mut kept, &mut gradients, buffers, sums)?;
                    kept.forget(layer);
                }
                Ok(losses)
            })
        })
    }
}

impl<E: Element> CpuDecoder<E> {
    /// Bytes of the copy of the adapter.
    fn pair_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.pairs.bytes()).sum()
    }

    /// Embeds micro-batches.
    fn begin(&self, batches: &[MicroBatch], dropout: f64) -> Result<Walk> {
        let portions = portions(batches, dropout)?;
        let states = portions.iter().map(|portion| Ok(self.embed(&portion.packed)?.states)).collect::<Result<_>>()?;
        let balances = |portion: &Portion| {
            let experts = self.config.mixture.map(|mixture| mixture.experts);
            experts.map_or(Vec::new(), |experts| vec![Balance::new(experts); portion.spans.len()])
        };
        Ok(Walk { balances: portions.iter().map(balances).collect(), states, portions })
    }

    fn add_noise(&self, batches: &[MicroBatch], options: &LossOptions, walk: &mut Walk) {
        let mut batches = batches.iter();
        for (portion, states) in walk.portions.iter().zip(&mut walk.states) {
            for (Span { rows, .. }, batch) in portion.spans.iter().zip(&mut batches) {
                batch.add_noise(options, &mut states[rows.start * self.width()..rows.end * self.width()]);
            }
        }
    }

    /// With `kept`, what each portion's way back needs is left in it.
    fn forward_layer(
        &self,
        layer: usize,
        walk: &mut Walk,
        space: &mut Workspace<E>,
        mut kept: Option<&mut Vec<Activations<E>>>,
    ) -> Result<()> {
        let visited = self.weights.visit(layer, 0)?;
        for ((portion, states), balances) in walk.portions.iter().zip(&mut walk.states).zip(&mut walk.balances) {
            let visit = self.visit_with(layer, &visited, portion)?;
            self.attention(&visit, 0..portion.packed.len(), states, &mut Pasts::None, space);
            let activations = kept.as_ref().map(|_| Activations::of_attention(space, states));
            space.inner = activations.as_ref().map(|_| (0..self.experts(layer)).map(|_| GateUp::default()).collect());
            self.feed_forward(&visit, None, states, space);
            if let (Some(kept), Some(activations)) = (&mut kept, activations) {
                kept.push(activations.with_inner(space));
            }
            self.count(layer, portion, &space.logits, balances);
        }
        Ok(())
    }

    /// A dense feed-forward is one.
    fn experts(&self, layer: usize) -> usize {
        self.config.mixture_of(layer).map_or(1, |mixture| mixture.experts)
    }

    fn visit_with<'a>(&'a self, layer: usize, visited: &'a Visited, portion: &'a Portion) -> Result<Visit<'a>> {
        Ok(Visit {
            index: layer,
            layer: &self.layers[layer],
            places: visited.places(),
            weights: visited.matrices()?,
            packed: &portion.packed,
            spans: &portion.spans,
            angles: self.rotary.angles(layer, portion.packed.positions()),
        })
    }

    /// Counts where a layer's router sent the tokens.
    fn count(&self, layer: usize, portion: &Portion, logits: &[f32], balances: &mut [Balance]) {
        let Some(mixture) = self.config.mixture_of(layer) else { return };
        for (span, balance) in portion.spans.iter().zip(balances) {
            let rows = logits[span.rows.start * mixture.experts..span.rows.end * mixture.experts]
                .chunks_exact(mixture.experts);
            let mut sums = vec![0.0; mixture.experts];
            for row in rows.clone() {
                sums.iter_mut().zip(softmax(row)).for_each(|(sum, probability)| *sum += probability);
            }
            let chosen = rows.flat_map(|row| choose(row, mixture)).map(|(expert, _)| expert);
            balance.count(span.rows.len(), chosen, &sums);
        }
    }

    /// The losses at the end of a walk; with `out`, a factor and (tokens, hidden) by portion, the gradient by the states.
    fn losses_of(
        &self,
        walk: &Walk,
        options: &LossOptions,
        mut out: Option<(f32, &mut [Vec<f32>])>,
        scratch: &mut head::Scratch<E>,
    ) -> Result<Vec<Loss>> {
        let mut losses = Vec::new();
        for (index, (portion, states)) in walk.portions.iter().zip(&walk.states).enumerate() {
            let factor = out.as_ref().map_or(0.0, |(factor, _)| *factor);
            let gradient = out.as_mut().map(|(_, gradients)| &mut gradients[index][..]);
            let means = self.cross_entropy(portion, states, factor, gradient, scratch)?;
            for (batch, mean) in means.into_iter().enumerate() {
                let balance = walk.balances[index].get(batch);
                losses.push(Loss::new(mean, balance, options.router_aux_loss_coef, portion.targets_of[batch]));
            }
        }
        Ok(losses)
    }

    /// Turns the gradients of a layer's outputs into those of its inputs, and adds the pairs' to `sums`.
    fn backward_layer(
        &self,
        layer: usize,
        portions: &[Portion],
        kept: &mut Kept<E>,
        gradients: &mut [Vec<f32>],
        (space, scratch): (&mut Workspace<E>, &mut Scratch<E>),
        sums: &mut Gradients,
    ) -> Result<()> {
        let visited = self.weights.visit(layer, 0)?;
        let mut of_layer = self.take_sums(layer, sums);
        let mut activations = kept.activations(layer).map(std::mem::take).unwrap_or_default().into_iter();
        for (index, (portion, gradient)) in portions.iter().zip(gradients).enumerate() {
            let input = kept.input(layer, index)?;
            let visit = self.visit_with(layer, &visited, portion)?;
            let inner = match activations.next() {
                Some(activations) => {
                    let (middle, inner) = activations.restore(space);
                    scratch.middle = middle;
                    Some(inner)
                }
                None => {
                    let middle = scratch.middle.take(input.len());
                    middle.copy_from_slice(input);
                    self.attention(&visit, 0..portion.packed.len(), middle, &mut Pasts::None, space);
                    None
                }
            };
            let between = Between { middle: &scratch.middle[..input.len()], inner: inner.as_deref(), portion };
            let buffers = (&mut *space, &mut scratch.feed_forward);
            self.feed_forward_back(&visit, between, gradient, buffers, &mut of_layer);
            self.attention_back(
                &visit,
                input,
                gradient,
                space,
                &mut scratch.attention,
                &mut of_layer[..ATTENTION_LINEARS],
            );
        }
        self.give_sums(layer, of_layer, sums);
        Ok(())
    }

    /// The sums of a layer's pairs, by place, out of those of the adapter.
    fn take_sums(&self, layer: usize, sums: &mut Gradients) -> Vec<Option<PairGradient>> {
        let of_place = self.adapted[layer].iter();
        of_place.map(|pair| pair.map(|pair| std::mem::take(&mut sums.pairs[pair]))).collect()
    }

    fn give_sums(&self, layer: usize, of_layer: Vec<Option<PairGradient>>, sums: &mut Gradients) {
        for (pair, sum) in self.adapted[layer].iter().zip(of_layer) {
            if let (Some(pair), Some(sum)) = (pair, sum) {
                sums.pairs[*pair] = sum;
            }
        }
    }

    /// Puts a product's sums into rows of `width` numbers.
    fn put(&self, count: usize, terms: &[Term<E>], out: &mut [f32], width: usize) {
        let out = Shared::new(out);
        self.kernels.multiply(count, [terms], |Block { rows, columns, sums: [sums] }: Block<1>| {
            // SAFETY: every row and column is finished once.
            let out = unsafe { out.strip(rows.start * width + columns.start, width, rows.len(), columns.len()) };
            rows::put_block(self.kernels.isa, sums, out);
        });
    }

    /// Adds to `out` the gradient of rows that were normed.
    fn norm_back(&self, before: &[f32], weight: &[f32], gradient: &[f32], out: &mut [f32]) {
        let (width, eps) = (self.width(), self.config.rms_norm_eps);
        let rows = out.par_chunks_mut(width).zip(before.par_chunks(width)).zip(gradient.par_chunks(width));
        rows.with_min_len(ROWS_A_TASK).for_each(|((out, before), gradient)| {
            backward::rms_norm(self.kernels.isa, before, weight, eps, gradient, out);
        });
    }

    /// Numbers rounded to what products are made of.
    fn rounded<'a>(&self, numbers: &[f32], out: &'a mut Lines<E>) -> &'a [E] {
        let (out, size) = (out.take(numbers.len()), ROWS_A_TASK * self.width());
        let parts = out.par_chunks_mut(size).zip(numbers.par_chunks(size));
        parts.for_each(|(out, numbers)| rows::round(self.kernels.isa, numbers, out));
        out
    }
}

impl Walk {
    /// The gradients of all layers' load-balancing losses, times `factor`.
    fn set_balance_gradients(&mut self, factor: f64) {
        let scaled = |balance: &Balance| balance.gradient().into_iter().map(|derivative| derivative * factor).collect();
        for (portion, balances) in self.portions.iter_mut().zip(&self.balances) {
            portion.balance_gradient = balances.iter().map(scaled).collect();
        }
    }
}

/// Micro-batches, in their order, in portions.
fn portions(batches: &[MicroBatch], dropout: f64) -> Result<Vec<Portion>> {
    let mut portions: Vec<Portion> = Vec::new();
    for batch in batches {
        let count = batch.target_count()?;
        let fits = |portion: &&mut Portion| portion.packed.len() + batch.packed.len() <= PORTION;
        let dropout = Dropout::new(dropout, batch.seed);
        match portions.last_mut().filter(fits) {
            Some(portion) => portion.push(batch, count, dropout),
            None => {
                let mut portion = Portion {
                    packed: Packed::default(),
                    targets: Vec::new(),
                    spans: Vec::new(),
                    targets_of: Vec::new(),
                    balance_gradient: Vec::new(),
                };
                portion.push(batch, count, dropout);
                portions.push(portion);
            }
        }
    }
    Ok(portions)
}

impl Portion {
    fn push(&mut self, batch: &MicroBatch, targets: usize, dropout: Option<Dropout>) {
        let start = self.packed.len();
        for segment in &batch.packed.segments {
            self.packed.push(&batch.packed.ids[segment.start..segment.start + segment.len], None);
        }
        self.targets.extend(&batch.targets);
        self.spans.push(Span { rows: start..self.packed.len(), first: 0, dropout });
        self.targets_of.push(targets);
    }
}
