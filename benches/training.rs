//! Training steps of random tokens with a LoRA pair on every linear, experts and router too. A line of JSON.
//!
//!     cargo bench --bench training -- [--model PATH | --shape mixtral-8x7b [--layers 2]] [--nf4] [--sequences 8]
//!         [--tokens 512] [--micro-batches 1] [--dtype bf16] [--rank 16] [--threads 0] [--repeats 3] [--decoder cpu]
//!         [--memory 4GiB] [--keep-activations]
//!
//! A step is forwards, backwards, clipping, AdamW and the new adapter put beside the weights; `seconds` is the median of
//! its wall times after one that is not counted, `gradients` of that without what comes after the way back, `processor`
//! of its processor time; `peak_bytes` is the largest resident set since the model was opened. The ids are those of
//! `benches/peers/random_ids.py`; every token of a sequence but its first is a target.
//!
//! `flops` counts the products that a step with one layer's activations in memory cannot do without, a multiplication and
//! its addition as two:
//!
//! - a frozen linear of `w` numbers, a token that goes through it: 2 w forwards, 2 w computed again on the way back, 2 w
//!   for the gradient of its input, and none for its own. The feed-forward's last linear is not computed again: 4 w.
//! - its pair of rank r: 2 r (in + out) forwards and again, 4 r (in + out) backwards; the last linear's B not again.
//! - attention, a query and a key that it sees, by heads x head size: 4 forwards, 4 again, 10 backwards.
//! - the head, a row with a target: 2 x hidden x vocabulary forwards, the same backwards.
//!
//! What an implementation computes more often than that (scores twice, `A x` again) does not count in its favour; with
//! `--keep-activations` what is "again" is counted all the same and not computed, so its `flops` are those of the same step
//! otherwise. `share` is `flops / seconds` of the registers' multiply-add peak on as many threads, `share_of_gemm` of what this program's own
//! kernels reach in one large product (2,048 rows, 4,096 x 14,336), both measured in the same run.

mod peak;
mod shapes;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fireval::kernel::product::{Block, Kernels, Rows, Term};
use fireval::kernel::{Element, Isa, Matrix, Numbers};
use fireval::memory::Memory;
use fireval::model::adapter::Adapter;
use fireval::model::adapter::target::Target;
use fireval::model::config::ModelConfig;
use fireval::model::home::{self, Arithmetic, Held};
use fireval::model::names;
use fireval::model::packed::Packed;
use fireval::model::training::{Gradients, Keep, Loss, LossOptions, MicroBatch, Trainable};
use fireval::train::adamw::{AdamW, Settings};
use fireval::train::initial;
use fireval::train::recipe::Lora;
use fireval::weights::{Checkpoint, Dtype};
use half::bf16;
use peak::{Peak, processor_seconds};
use shapes::Shape;

#[derive(Parser)]
struct Flags {
    /// A folder or a GGUF file.
    #[arg(long, conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Without --model: random weights.
    #[arg(long, default_value = "mixtral-8x7b")]
    shape: Shape,
    /// Of the shape [default: 30 of SmolLM2's, 2 of Mixtral's].
    #[arg(long)]
    layers: Option<usize>,
    /// The layers' linears in 4 bits.
    #[arg(long)]
    nf4: bool,
    #[arg(long, default_value_t = 8)]
    sequences: usize,
    /// Of each sequence.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// That the sequences are divided among; all of them walk together.
    #[arg(long, default_value_t = 1)]
    micro_batches: usize,
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    #[arg(long, default_value = "cpu")]
    decoder: Arithmetic,
    /// Layers' activations are kept, not computed again.
    #[arg(long)]
    keep_activations: bool,
    /// Layers are streamed where the model does not fit [default: as if all would].
    #[arg(long)]
    memory: Option<Memory>,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
}

/// As the rehearsal recipe has them.
const OPTIMIZER: Settings = Settings {
    learning_rate: 5e-4,
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.0,
    lora_plus_ratio: 1.0,
    max_grad_norm: Some(1.0),
};
const ROUTER_AUX_LOSS_COEF: f64 = 0.02;

fn main() -> Result<()> {
    let flags = Flags::parse();
    rayon::ThreadPoolBuilder::new().num_threads(flags.threads).build_global()?;
    let made = tempfile::tempdir()?;
    let path = match &flags.model {
        Some(path) => path.clone(),
        None => {
            flags.shape.write(made.path(), flags.layers, flags.nf4)?;
            made.path().to_owned()
        }
    };
    forget_peak();
    let step = Step::open(&flags, &path)?.measured(&flags)?;
    report(&flags, &step)
}

/// A model to be trained, and what it is trained on.
struct Step {
    config: ModelConfig,
    decoder: Box<dyn Trainable>,
    adapter: Adapter,
    optimizer: AdamW,
    batches: Vec<MicroBatch>,
    options: LossOptions,
}

/// What the steps of a run took: medians.
struct Measured {
    seconds: f64,
    gradients: f64,
    processor: f64,
    losses: Vec<f64>,
    tokens: usize,
    flops: f64,
    peak_bytes: u64,
}

impl Step {
    fn open(flags: &Flags, path: &std::path::Path) -> Result<Step> {
        ensure!(
            flags.micro_batches > 0 && flags.sequences.is_multiple_of(flags.micro_batches),
            "{} sequences are not {} equal micro-batches",
            flags.sequences,
            flags.micro_batches
        );
        let checkpoint = Checkpoint::open(path)?;
        let config = ModelConfig::of(&checkpoint)?;
        let targets: BTreeSet<&str> = names::linears(&config, 0)
            .iter()
            .map(|linear| Ok(Target::of(&linear.module)?.name()))
            .collect::<Result<_>>()?;
        let lora = serde_json::json!({"rank": flags.rank, "alpha": flags.rank, "targets": targets});
        let lora: Lora = serde_json::from_value(lora)?;
        let adapter = initial::adapter(&config, &lora, 42)?;
        let held = Held { dtype: flags.dtype, nf4: flags.nf4 };
        let mut decoder = home::trainable(flags.decoder.here(), checkpoint, &config, held, 0)?;
        if let Some(Memory(memory)) = flags.memory {
            let (all, largest) = (flags.sequences * flags.tokens, flags.sequences / flags.micro_batches * flags.tokens);
            let keep = if flags.keep_activations { Keep::Activations } else { Keep::Inputs };
            let walk = decoder.walk_bytes(all, largest, keep);
            decoder.arrange(decoder.held_bytes() + walk > memory, None)?;
        }
        decoder.adapt(&adapter)?;
        let (router_aux_loss_coef, recompute) = (ROUTER_AUX_LOSS_COEF, !flags.keep_activations);
        let options = LossOptions { router_aux_loss_coef, recompute, ..LossOptions::default() };
        let batches = micro_batches(flags, config.vocab_size as u32);
        Ok(Step { decoder, optimizer: AdamW::new(OPTIMIZER, &adapter), adapter, batches, options, config })
    }

    fn measured(mut self, flags: &Flags) -> Result<Measured> {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        let mut losses = Vec::new();
        for repeat in 0..=flags.repeats {
            let (begin, processor) = (Instant::now(), processor_seconds());
            let (loss, gradients) = self.gradients()?;
            let back = begin.elapsed().as_secs_f64();
            self.update(gradients)?;
            losses.push(loss);
            if repeat > 0 {
                let all = [begin.elapsed().as_secs_f64(), back, processor_seconds() - processor];
                times.iter_mut().zip(all).for_each(|(times, time)| times.push(time));
            }
        }
        let [seconds, gradients, processor] = times.map(median);
        Ok(Measured {
            seconds,
            gradients,
            processor,
            losses,
            tokens: self.batches.iter().map(|batch| batch.packed.len()).sum(),
            flops: flops(&self.config, &self.batches, flags.rank),
            peak_bytes: peak_bytes()?,
        })
    }

    fn gradients(&self) -> Result<(f64, Gradients)> {
        let mut sums = Gradients::zeros(&self.adapter);
        let factor = 1.0 / self.batches.len() as f32;
        let losses: Vec<Loss> = self.decoder.gradients(&self.batches, &self.options, factor, &mut sums)?;
        Ok((losses.iter().map(|loss| loss.cross_entropy).sum::<f64>() / losses.len() as f64, sums))
    }

    fn update(&mut self, mut gradients: Gradients) -> Result<()> {
        if let Some(longest) = OPTIMIZER.max_grad_norm {
            gradients.clip(gradients.norm(), longest);
        }
        self.optimizer.step(&mut self.adapter, &gradients, OPTIMIZER.learning_rate)?;
        self.decoder.adapt(&self.adapter)
    }
}

fn report(flags: &Flags, step: &Measured) -> Result<()> {
    let peak = if flags.dtype == Dtype::BF16 { Peak::bf16() } else { Peak::f32() };
    let gemm = match flags.dtype {
        Dtype::BF16 => gemm::<bf16>(),
        Dtype::F32 | Dtype::F16 => gemm::<f32>(),
    };
    let rate = step.flops / step.seconds;
    println!(
        "{{\"what\": \"training {} x {} in {} micro-batches, {}{}\", \"tokens\": {}, \"seconds\": {:.4}, \
         \"gradients\": {:.4}, \"processor\": {:.4}, \"tokens_per_second\": {:.2}, \"flops\": {:.4e}, \
         \"share\": {:.4}, \"share_of_gemm\": {:.4}, \"peak_bytes\": {}, \"losses\": {}}}",
        flags.sequences,
        flags.tokens,
        flags.micro_batches,
        flags.dtype.name(),
        if flags.nf4 { " on nf4" } else { "" },
        step.tokens,
        step.seconds,
        step.gradients,
        step.processor,
        step.tokens as f64 / step.seconds,
        step.flops,
        rate * peak.seconds / peak.operations,
        rate / gemm,
        step.peak_bytes,
        serde_json::to_string(&step.losses)?
    );
    println!("{{\"what\": \"peak\", \"seconds\": {:.4}, \"flops\": {:.4e}}}", peak.seconds, peak.operations);
    println!("{{\"what\": \"gemm\", \"flops_a_second\": {gemm:.4e}}}");
    Ok(())
}

/// The sequences in micro-batches, each token's target the one that follows.
fn micro_batches(flags: &Flags, vocabulary: u32) -> Vec<MicroBatch> {
    let sequences: Vec<Vec<u32>> =
        (1..=flags.sequences as u32).map(|start| sequence(start, flags.tokens, vocabulary)).collect();
    let targets = |sequence: &Vec<u32>| sequence[1..].iter().copied().map(Some).chain([None]).collect::<Vec<_>>();
    let batch = |(seed, part): (usize, &[Vec<u32>])| MicroBatch {
        packed: Packed::rows(part),
        targets: part.iter().flat_map(targets).collect(),
        seed: seed as u64,
    };
    sequences.chunks(flags.sequences / flags.micro_batches).enumerate().map(batch).collect()
}

/// Numbers of a linear congruential generator, as the peers' scripts draw them.
fn sequence(start: u32, tokens: usize, vocabulary: u32) -> Vec<u32> {
    let step = |x: &u32| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(start), step).skip(1).take(tokens).map(|x| (x >> 8) % vocabulary).collect()
}

/// The products of a step, as the top of this file counts them.
fn flops(config: &ModelConfig, batches: &[MicroBatch], rank: usize) -> f64 {
    let tokens: usize = batches.iter().map(|batch| batch.packed.len()).sum();
    let targets: usize = batches.iter().map(|batch| batch.targets.iter().flatten().count()).sum();
    let used = config.mixture.map_or(1.0, |mixture| mixture.top_k as f64 / mixture.experts as f64);
    let token: f64 = (0..config.num_hidden_layers)
        .flat_map(|layer| names::linears(config, layer))
        .map(|linear| {
            let share = if linear.module.contains(".experts.") { used } else { 1.0 };
            share * through(&linear, rank as f64)
        })
        .sum();
    let segments = || batches.iter().flat_map(|batch| &batch.packed.segments);
    let keys = |layer: usize| {
        let window = config.window(layer).unwrap_or(usize::MAX);
        segments().flat_map(|segment| 1..=segment.len).map(|seen| seen.min(window) as f64).sum::<f64>()
    };
    let keys: f64 = (0..config.num_hidden_layers).map(keys).sum();
    tokens as f64 * token
        + 18.0 * keys * (config.num_attention_heads * config.head_dim) as f64
        + 4.0 * (targets * config.hidden_size * config.vocab_size) as f64
}

/// A token through a linear and its pair, in all directions.
fn through(linear: &names::Linear, rank: f64) -> f64 {
    let (outputs, inputs) = (linear.outputs as f64, linear.inputs as f64);
    let all = 6.0 * outputs * inputs + 8.0 * rank * (outputs + inputs);
    let is_last = linear.module.ends_with(".w2") || linear.module.ends_with(".down_proj");
    if is_last { all - 2.0 * outputs * inputs - 2.0 * rank * outputs } else { all }
}

/// Operations a second of a large product of our own, on all threads.
fn gemm<E: Element>() -> f64 {
    const ROWS: usize = 2048;
    const SHAPE: [usize; 2] = [14_336, 4096];
    let [rows, columns] = SHAPE;
    let bytes = vec![0x3cu8; 2 * rows * columns]; // bf16 numbers, all the same
    let weight = Matrix { rows, columns, numbers: Numbers::Bf16(&bytes), rounded_to_f16: false };
    let x = vec![E::from_f32(0.5); ROWS * columns];
    let kernels = Kernels::<E>::new(Isa::best());
    let run = |_| {
        let begin = Instant::now();
        let term = Term::along(Rows { numbers: &x, step: columns }, weight);
        kernels.multiply(ROWS, [&[term]], |block: Block<1>| {
            std::hint::black_box(&block.sums);
        });
        begin.elapsed().as_secs_f64()
    };
    let best = (0..3).map(run).fold(f64::INFINITY, f64::min);
    2.0 * (ROWS * rows * columns) as f64 / best
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Lets the kernel count the largest resident set from now on, where it can: making a checkpoint is no part of training.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").ok();
}

fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("the peak resident set is Linux's to tell")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(1024 * kibibytes)
}
