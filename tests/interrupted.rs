//! Training that is killed: at fifty random moments, and ends with the same bytes as if it had never been.

mod fixture;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fireval::random::Random;
use fixture::fixture;

const KILLS: usize = 50;
const ADAPTER: &str = "adapter_model.safetensors";

/// A tiny mixture with a tokenizer, dialogues, and for each name a recipe that differs in its output only.
fn workshop(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    std::fs::create_dir(&model).unwrap();
    for from in ["tiny-mixtral/config.json", "tiny-mixtral/model.safetensors"]
        .into_iter()
        .chain(["dialogues/byte-level/tokenizer.json", "dialogues/byte-level/tokenizer_config.json"])
    {
        std::fs::copy(fixture(from), model.join(Path::new(from).file_name().unwrap())).unwrap();
    }
    let line = |index: usize| {
        format!("{{\"conversation\": [{{\"human\": \"What is {index}?\", \"assistant\": \"{index} is {index}.\"}}]}}\n")
    };
    std::fs::write(folder.path().join("dialogues.jsonl"), (0..12).map(line).collect::<String>()).unwrap();
    for name in names {
        std::fs::write(folder.path().join(format!("{name}.toml")), recipe(folder.path(), name)).unwrap();
    }
    folder
}

fn recipe(folder: &Path, output: &str) -> String {
    format!(
        r#"
        model = "{folder}/tiny"
        data = ["{folder}/dialogues.jsonl"]
        output = "{folder}/{output}"
        format = "chat-template"
        max_tokens = 64
        quantization = "nf4"
        dtype = "bf16"
        steps = 160
        seed = 1
        router_aux_loss_coef = 0.02
        checkpoint_every = 4
        [lora]
        rank = 4
        alpha = 8
        dropout = 0.1
        targets = ["q_proj", "v_proj", "gate", "w1", "w2", "w3"]
        [optimizer]
        learning_rate = 1e-3
        max_grad_norm = 1.0
        [schedule]
        kind = "cosine"
        warmup_steps = 10
        [batch]
        dialogues = 2
        accumulation = 2
        [held_out]
        dialogues = 2
        every = 40
        "#,
        folder = folder.display(),
    )
}

fn finetune(folder: &Path, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_fireval"))
        .arg("finetune")
        .arg(folder.join(format!("{name}.toml")))
        .args(["--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits, and returns what was told.
fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    told
}

#[test]
fn a_run_killed_fifty_times_ends_with_the_same_adapter() {
    let folder = workshop(&["whole", "killed"]);
    let begun = Instant::now();
    finish(finetune(folder.path(), "whole"));
    let whole = begun.elapsed();
    let adapter = |name: &str| std::fs::read(folder.path().join(name).join(ADAPTER)).unwrap();
    let (mut random, mut kills) = (Random::named(9, "moments"), 0);
    while kills < KILLS {
        let mut child = finetune(folder.path(), "killed");
        std::thread::sleep(Duration::from_secs_f64(random.uniform() * whole.as_secs_f64() / 8.0));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        } else {
            finish(child);
            assert!(adapter("killed") == adapter("whole"), "after {kills} kills");
            std::fs::remove_dir_all(folder.path().join("killed")).unwrap();
        }
    }
    let told = finish(finetune(folder.path(), "killed"));
    assert!(adapter("killed") == adapter("whole"), "after {kills} kills; the last run told:\n{told}");
}
