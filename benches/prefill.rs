//! Prompts through a model: some sequences of random tokens, one row of each through the head. A line of JSON.
//!
//!     cargo bench --bench prefill -- --model PATH [--sequences 8] [--tokens 512] [--dtype bf16] [--threads 0]
//!         [--repeats 3] [--steps 0] [--decoder cpu] [--memory 4GiB]
//!
//! `seconds` is the median wall time of a walk after one that is not counted, `processor` the processor time of it, `last` the
//! best token after each sequence with its log-probability. A second line has the peak of as many threads: what of it the
//! walk reaches is `flops / seconds` of the one by that of the other. The ids are those of `benches/peers/random_ids.py`.
//! With `--steps 64`, a third line has the median seconds of so many steps of generation after them.

mod peak;

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use fireval::engine::cost::Cost;
use fireval::kernel::{Element, Isa};
use fireval::memory::Memory;
use fireval::model::candle::{self, CandleDecoder};
use fireval::model::config::ModelConfig;
use fireval::model::cpu::{self, CpuDecoder};
use fireval::model::decoder::{Decoder, Pasts, Wanted};
use fireval::model::home::Arithmetic;
use fireval::model::packed::Packed;
use fireval::weights::{Checkpoint, Dtype};
use half::bf16;
use peak::{Peak, processor_seconds};

#[derive(Parser)]
struct Flags {
    /// A folder or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    #[arg(long, default_value_t = 8)]
    sequences: usize,
    /// Of each sequence.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Tokens generated after each sequence.
    #[arg(long, default_value_t = 0)]
    steps: usize,
    #[arg(long, default_value = "cpu")]
    decoder: Arithmetic,
    /// Layers are streamed where the model does not fit [default: as if all would].
    #[arg(long)]
    memory: Option<Memory>,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    rayon::ThreadPoolBuilder::new().num_threads(flags.threads).build_global()?;
    let checkpoint = Checkpoint::open(&flags.model)?;
    let config = ModelConfig::of(&checkpoint)?;
    match (flags.decoder, flags.dtype) {
        (Arithmetic::Cpu, Dtype::BF16) => run(&flags, cpu::<bf16>(checkpoint, &config, &flags)?),
        (Arithmetic::Cpu, Dtype::F32 | Dtype::F16) => run(&flags, cpu::<f32>(checkpoint, &config, &flags)?),
        (Arithmetic::Candle, dtype) => run(&flags, candle(&checkpoint, &config, dtype)?),
    }
}

fn cpu<E: Element>(checkpoint: Checkpoint, config: &ModelConfig, flags: &Flags) -> anyhow::Result<CpuDecoder<E>> {
    let rounded_to_f16 = flags.dtype == Dtype::F16;
    let memory = flags.memory.map_or(u64::MAX, |memory| memory.0);
    let options = cpu::LoadOptions { isa: Isa::best(), rounded_to_f16, nf4: false, memory };
    CpuDecoder::load(checkpoint, config, &options)
}

fn candle(checkpoint: &Checkpoint, config: &ModelConfig, dtype: Dtype) -> anyhow::Result<CandleDecoder> {
    let options = candle::LoadOptions { device: candle_core::Device::Cpu, dtype, nf4: false };
    CandleDecoder::load(checkpoint, config, &options)
}

fn run(flags: &Flags, decoder: impl Decoder) -> anyhow::Result<()> {
    let vocabulary = decoder.config().vocab_size as u32;
    let sequences = (1..=flags.sequences as u32).map(|start| sequence(start, flags.tokens, vocabulary));
    let mut packed = Packed::rows(&sequences.collect::<Vec<_>>());
    let rows: Vec<usize> = packed.segments.iter().map(|segment| segment.start + segment.len - 1).collect();
    packed.read_only(rows.clone());
    let mut last = Vec::new();
    let (mut times, mut scores) = (Vec::new(), Vec::new());
    for repeat in 0..=flags.repeats {
        let (begin, processor) = (Instant::now(), processor_seconds());
        let hidden = decoder.walk(&packed, Pasts::None)?;
        last = decoder.greedy(&hidden, &rows)?;
        if repeat > 0 {
            times.push((begin.elapsed().as_secs_f64(), processor_seconds() - processor));
        } else {
            let wanted: Vec<Wanted> = rows.iter().zip(&last).map(|(&row, &token)| Wanted { row, token }).collect();
            scores = decoder.score(&hidden, &wanted)?;
        }
    }
    let (seconds, processor): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
    let (seconds, processor) = (median(seconds), median(processor));
    let (tokens, flops) = (packed.len(), Cost::of(decoder.config()).walk(&packed, rows.len()));
    println!(
        "{{\"what\": \"prefill {} x {} {}\", \"seconds\": {seconds:.4}, \"processor\": {processor:.4}, \
         \"tokens\": {tokens}, \"flops\": {flops:.4e}, \"gflops_a_core\": {:.1}, \"last\": {}}}",
        flags.sequences,
        flags.tokens,
        flags.dtype.name(),
        flops / processor / 1e9,
        serde_json::to_string(
            &last.iter().zip(&scores).map(|(token, s)| (token, s.log_probability)).collect::<Vec<_>>()
        )?
    );
    let peak = if flags.dtype == Dtype::BF16 { Peak::bf16() } else { Peak::f32() };
    println!("{{\"what\": \"peak\", \"seconds\": {:.4}, \"flops\": {:.4e}}}", peak.seconds, peak.operations);
    if flags.steps > 0 {
        generate(flags, &decoder, &packed)?;
    }
    Ok(())
}

/// Steps of generation after all sequences, which are read as one wave.
fn generate<D: Decoder>(flags: &Flags, decoder: &D, packed: &Packed) -> anyhow::Result<()> {
    let capacity = flags.tokens + flags.steps + 1;
    let mut pasts = packed.segments.iter().map(|_| decoder.past(capacity)).collect::<anyhow::Result<Vec<_>>>()?;
    let leaves: Vec<usize> = (0..packed.segments.len()).collect();
    let last: Vec<usize> = packed.segments.iter().map(|segment| segment.start + segment.len - 1).collect();
    let hidden = decoder.walk(packed, Pasts::Begin { pasts: &mut pasts, leaves: &leaves })?;
    let mut next = decoder.greedy(&hidden, &last)?;
    let mut times = Vec::new();
    for _ in 0..flags.steps {
        let begin = Instant::now();
        let mut step = Packed::default();
        next.iter().zip(&pasts).for_each(|(&token, past)| step.push_at(&[token], decoder.past_len(past)));
        next = decoder.greedy(&decoder.walk(&step, Pasts::Continue(&mut pasts))?, &leaves)?;
        times.push(begin.elapsed().as_secs_f64());
    }
    let what = format!("steps of {} after {}", flags.sequences, flags.tokens);
    println!("{{\"what\": \"{what}\", \"seconds\": {:.5}}}", median(times));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Numbers of a linear congruential generator, as the peers' scripts draw them.
fn sequence(start: u32, tokens: usize, vocabulary: u32) -> Vec<u32> {
    let step = |x: &u32| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(start), step).skip(1).take(tokens).map(|x| (x >> 8) % vocabulary).collect()
}
