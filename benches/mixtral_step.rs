//! A training step of a Mixtral-8x7B-shaped model inside a memory budget, by the program itself: what it planned, what it
//! took, and what follows for 32 layers. Lines of JSON.
//!
//!     cargo run --release --example generate_mixtral -- --layers 4 --tokenizer tests/fixtures/dialogues/byte-level MODEL
//!     cargo bench --bench mixtral_step -- --model MODEL --memory 5GiB [--layers 2,4] [--dialogues 16] [--tokens 1024]
//!
//! Each of `--layers` is a run of `fireval finetune` on the first so many layers of MODEL: one step of `--dialogues`
//! micro-batches of one dialogue of `--tokens` tokens, rank 16 on every linear and the router, in bf16. `seconds` is the
//! step's in its log, `peak_bytes` the largest resident set that the system saw. From the first and the last of them: seconds
//! a layer, seconds of the rest (embedding, head, loss, AdamW), and what follows for 32 layers. What those hold, `fireval finetune
//! --plan` says of a recipe with `config = "mixtral-8x7b-v0.1"`.
//!
//! A model of few layers is held in memory where 32 would not be: give a `--memory` that streams it (the plan is printed).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

#[derive(Parser)]
struct Flags {
    /// A folder that `examples/generate_mixtral.rs` wrote; the run's files are put beside it.
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    memory: String,
    /// Numbers of layers, each a run.
    #[arg(long, value_delimiter = ',', default_value = "2,4")]
    layers: Vec<usize>,
    #[arg(long, default_value_t = 16)]
    dialogues: usize,
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Without it one a core.
    #[arg(long)]
    threads: Option<usize>,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A run that was measured.
struct Measured {
    layers: usize,
    seconds: f64,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let beside = flags.model.canonicalize()?;
    let place = tempfile::tempdir_in(beside.parent().context("the model's folder stands in none")?)?;
    std::fs::write(place.path().join("dialogues.jsonl"), dialogues(&flags))?;
    let runs = flags.layers.iter().map(|&layers| run(&flags, place.path(), layers)).collect::<Result<Vec<_>>>()?;
    if let [first, .., last] = runs.as_slice() {
        let layer = (last.seconds - first.seconds) / (last.layers as f64 - first.layers as f64);
        let rest = last.seconds - last.layers as f64 * layer;
        let all = json!({"what": "32 layers, as it follows", "seconds_a_layer": layer, "seconds_of_the_rest": rest,
                         "seconds": rest + 32.0 * layer});
        println!("{all}");
    }
    Ok(())
}

/// Dialogues that are longer than `--tokens`, whatever the tokenizer, and are cut there.
fn dialogues(flags: &Flags) -> String {
    let answer = |dialogue: usize| {
        let words = (0..2 * flags.tokens).map(|word| format!("{}", (word * 7919 + dialogue * 104_729) % 100_003));
        words.collect::<Vec<_>>().join(" ")
    };
    let line =
        |dialogue| json!({"conversation": [{"human": format!("Count {dialogue}."), "assistant": answer(dialogue)}]});
    (0..flags.dialogues).map(|dialogue| format!("{}\n", line(dialogue))).collect()
}

/// The first layers of the model, which share its files.
fn view(model: &Path, folder: &Path, layers: usize) -> Result<()> {
    std::fs::create_dir(folder)?;
    for entry in std::fs::read_dir(model)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if name != "config.json" {
            std::os::unix::fs::symlink(path.canonicalize()?, folder.join(name))?;
        }
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json"))?)?;
    let there = config["num_hidden_layers"].as_u64().context("config.json: no `num_hidden_layers`")?;
    ensure!(layers as u64 <= there, "{} has {there} layers, not {layers}", model.display());
    config["num_hidden_layers"] = json!(layers);
    Ok(std::fs::write(folder.join("config.json"), config.to_string())?)
}

fn recipe(flags: &Flags, place: &Path, layers: usize) -> String {
    format!(
        r#"
        model = "{place}/model-{layers}"
        data = ["{place}/dialogues.jsonl"]
        output = "{place}/out-{layers}"
        format = "chat-template"
        max_tokens = {tokens}
        quantization = "nf4"
        dtype = "bf16"
        steps = 1
        seed = 42
        router_aux_loss_coef = 0.02
        [lora]
        rank = 16
        alpha = 16
        dropout = 0.05
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]
        [optimizer]
        learning_rate = 1e-4
        max_grad_norm = 0.3
        [schedule]
        kind = "constant-with-warmup"
        [batch]
        dialogues = 1
        accumulation = {dialogues}
        "#,
        place = place.display(),
        tokens = flags.tokens,
        dialogues = flags.dialogues,
    )
}

fn run(flags: &Flags, place: &Path, layers: usize) -> Result<Measured> {
    view(&flags.model, &place.join(format!("model-{layers}")), layers)?;
    let path = place.join(format!("{layers}.toml"));
    std::fs::write(&path, recipe(flags, place, layers))?;
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fireval"));
        command.arg("finetune").arg(&path).args(["--memory", &flags.memory]);
        command.args(flags.threads.map(|threads| format!("--threads={threads}")));
        command.args(more).current_dir(place);
        command
    };
    let plan = String::from_utf8(command(&["--plan"]).output()?.stdout)?;
    eprintln!("{layers} layers\n{plan}");
    let peak = peak(command(&[]))?;
    let out = place.join(format!("out-{layers}"));
    let log = std::fs::read_to_string(out.join("train_log.jsonl"))?;
    let step: Value = serde_json::from_str(log.lines().next().context("no step was logged")?)?;
    let seconds = step["seconds"].as_f64().context("a step has its seconds")?;
    let line = json!({
        "what": format!("{layers} layers, {} x {} tokens, --memory {}", flags.dialogues, flags.tokens, flags.memory),
        "seconds": seconds, "tokens_a_second": step["tokens_per_second"], "peak_bytes": peak,
        "loss": step["loss"], "plan": plan.lines().skip_while(|line| !line.starts_with("--memory")).collect::<Vec<_>>(),
    });
    println!("{line}");
    std::fs::remove_dir_all(out)?;
    Ok(Measured { layers, seconds })
}

/// The largest resident set of a command that must do its work.
#[allow(clippy::zombie_processes)] // `wait4` does it
fn peak(mut command: Command) -> Result<u64> {
    let child = command.stdout(Stdio::null()).spawn()?;
    // SAFETY: the kernel fills a plain struct of numbers, whose zeros are valid too; nobody else waits for this child.
    let (found, status, usage) = unsafe {
        let (mut status, mut usage) = (0, std::mem::zeroed::<libc::rusage>());
        (libc::wait4(child.id() as i32, &mut status, 0, &mut usage), status, usage)
    };
    ensure!(found == child.id() as i32 && status == 0, "the run ended with status {status}");
    Ok(usage.ru_maxrss as u64 * 1024)
}
