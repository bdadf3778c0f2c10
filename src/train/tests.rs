//! Whole runs on the tiny Mixtral of `tests/fixtures`, with the small tokenizer of the dialogues' fixture.

use super::*;
use crate::model::adapter::peft;
use crate::model::config::ModelConfig;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A folder with a model, its tokenizer and dialogues.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, names) in [
        ("tiny-mixtral", &["config.json", "model.safetensors"][..]),
        ("dialogues/byte-level", &["tokenizer.json", "tokenizer_config.json"]),
    ] {
        for name in names {
            std::fs::copy(fixture(from).join(name), folder.path().join(name)).unwrap();
        }
    }
    let line = |index: usize| {
        format!(
            "{{\"conversation\": [{{\"human\": \"What is {index} + 2?\", \"assistant\": \"{index} + 2 = 4.\"}}]}}\n"
        )
    };
    std::fs::write(folder.path().join("dialogues.jsonl"), (0..10).map(line).collect::<String>()).unwrap();
    folder
}

fn recipe(folder: &Path, output: &str, changed: &[(&str, &str)]) -> Recipe {
    let mut text = format!(
        r#"
        model = "tiny"
        data = ["{}"]
        output = "{}"
        format = "chat-template"
        max_tokens = 64
        quantization = "nf4"
        dtype = "f32"
        steps = 6
        seed = 1
        router_aux_loss_coef = 0.02
        recompute = true
        [lora]
        rank = 4
        alpha = 8
        dropout = 0.1
        targets = ["q_proj", "v_proj", "gate", "w1", "w2", "w3"]
        [optimizer]
        learning_rate = 1e-2
        max_grad_norm = 1.0
        [schedule]
        kind = "linear"
        warmup_steps = 1
        [batch]
        dialogues = 2
        accumulation = 2
        [held_out]
        dialogues = 2
        every = 3
        "#,
        folder.join("dialogues.jsonl").display(),
        folder.join(output).display()
    );
    for (from, to) in changed {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    Recipe::parse(&text, "some.toml").unwrap()
}

fn options() -> FinetuneOptions {
    FinetuneOptions { device: Device::Cpu, progress: Progress::hidden() }
}

fn refusal(recipe: &Recipe, model: &Path) -> String {
    format!("{:#}", finetune(recipe, model, &options()).unwrap_err())
}

#[test]
fn a_run_lowers_the_held_out_loss_and_leaves_adapter_state_and_log() {
    let folder = workshop();
    let recipe = recipe(folder.path(), "out", &[]);
    let summary = finetune(&recipe, folder.path(), &options()).unwrap();
    let steps: Vec<usize> = summary.held_out.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 3, 6]);
    assert!(summary.held_out[2].1 < summary.held_out[0].1 - 0.1, "{:?}", summary.held_out);
    let entries = log::read(&recipe.output.join(log::FILE)).unwrap();
    let logged: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry {
            log::Entry::Step(step) => Some(step),
            log::Entry::HeldOut(_) => None,
        })
        .collect();
    assert_eq!((entries.len(), logged.len()), (9, 6));
    assert!(summary.to_string().starts_with("6 steps, ") && summary.to_string().contains("held-out loss"));
    // The first of a warming-up rate's steps moves nothing; then the rate falls in a line.
    assert_eq!((logged[0].learning_rate, logged[1].learning_rate), (0.0, 1e-2));
    assert_eq!(logged.iter().map(|step| step.tokens as u64).sum::<u64>(), summary.tokens);
    assert!(logged.iter().all(|step| step.router_aux.is_some() && step.loss > step.cross_entropy && !step.skipped));
    let config = serde_json::from_str(&std::fs::read_to_string(folder.path().join("config.json")).unwrap()).unwrap();
    let config = ModelConfig::from_json(&config, "config.json").unwrap();
    let adapter = peft::read(&summary.adapter, &config).unwrap();
    assert_eq!(adapter.parameters(), summary.trained_parameters);
    assert!(adapter.pairs.iter().all(|pair| pair.scale == 2.0));
    assert!(adapter.matrices().all(|matrix| matrix.values.iter().any(|&value| value != 0.0)), "everything has moved");
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let folder = workshop();
    let whole = recipe(folder.path(), "whole", &[]);
    let summary = finetune(&whole, folder.path(), &options()).unwrap();
    let broken = recipe(folder.path(), "broken", &[]);
    let (data, options) = (data::load(&broken, folder.path()).unwrap(), options());
    let mut run = Run::begin(&broken, folder.path(), &data, &options).unwrap();
    run.held_out_loss().unwrap();
    (0..3).for_each(|_| step(&mut run).unwrap());
    run.save().unwrap();
    // One step more that the state does not know of.
    step(&mut run).unwrap();
    drop(run);
    let resumed = finetune(&broken, folder.path(), &options).unwrap();
    let bytes = |recipe: &Recipe| std::fs::read(recipe.output.join(peft::WEIGHTS_FILE)).unwrap();
    assert!(bytes(&whole) == bytes(&broken), "the same adapter to the bit");
    assert_eq!((resumed.held_out, resumed.tokens), (summary.held_out, summary.tokens));
    let entries = log::read(&broken.output.join(log::FILE)).unwrap();
    assert_eq!(entries.len(), 9, "the lost step's line went with it");
}

#[test]
fn a_run_that_is_done_is_not_done_again() {
    let folder = workshop();
    let recipe = recipe(folder.path(), "out", &[("steps = 6", "epochs = 1")]);
    let first = finetune(&recipe, folder.path(), &options()).unwrap();
    assert_eq!(first.steps, 2, "8 dialogues, 4 a step");
    let log = std::fs::read(recipe.output.join(log::FILE)).unwrap();
    std::fs::remove_file(recipe.output.join(peft::WEIGHTS_FILE)).unwrap();
    assert_eq!(finetune(&recipe, folder.path(), &options()).unwrap(), first);
    assert_eq!(std::fs::read(recipe.output.join(log::FILE)).unwrap(), log);
    assert!(recipe.output.join(peft::WEIGHTS_FILE).exists(), "a lost adapter comes back from the state");
}

#[test]
fn another_recipe_other_data_or_another_base_do_not_go_on_with_a_state() {
    let folder = workshop();
    let first = recipe(folder.path(), "out", &[("steps = 6", "steps = 1")]);
    finetune(&first, folder.path(), &options()).unwrap();
    let other = recipe(folder.path(), "out", &[("steps = 6", "steps = 2")]);
    assert!(refusal(&other, folder.path()).contains("belongs to another run"));
    let path = folder.path().join("dialogues.jsonl");
    let dialogues = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, dialogues.replacen("What is 3", "What was 3", 1)).unwrap();
    assert!(refusal(&first, folder.path()).contains("belongs to another run"));
    std::fs::write(&path, dialogues).unwrap();
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-06")).unwrap();
    assert!(refusal(&first, folder.path()).contains("belongs to another run"));
    std::fs::write(&config, text).unwrap();
    std::fs::remove_file(first.output.join(state::FILE)).unwrap();
    assert!(refusal(&first, folder.path()).contains("choose another `output`"));
}

#[test]
fn steps_without_a_finite_loss_end_the_run() {
    let folder = workshop();
    let recipe = recipe(folder.path(), "out", &[]);
    let (data, options) = (data::load(&recipe, folder.path()).unwrap(), options());
    let mut run = Run::begin(&recipe, folder.path(), &data, &options).unwrap();
    let next = run.next_step();
    (0..4).for_each(|_| run.skip(&next).unwrap());
    let error = run.skip(&next).unwrap_err().to_string();
    assert!(error.contains("5 steps in a row") && error.contains("step 1"), "{error}");
}

#[test]
fn a_step_averages_its_micro_batches() {
    let folder = workshop();
    let gradients = |batch: (&str, &str)| {
        let recipe = recipe(
            folder.path(),
            "out",
            &[
                (
                    "dialogues = 2\n        accumulation = 2",
                    &format!("dialogues = {}\n        accumulation = {}", batch.0, batch.1),
                ),
                ("dropout = 0.1", "dropout = 0.0"),
                ("router_aux_loss_coef = 0.02", "router_aux_loss_coef = 0.0"),
            ],
        );
        let (data, options) = (data::load(&recipe, folder.path()).unwrap(), options());
        let mut run = Run::begin(&recipe, folder.path(), &data, &options).unwrap();
        let next = run.next_step();
        let (_, gradients) = run.gradients(&next).unwrap();
        gradients.matrices().flat_map(|matrix| matrix.values.clone()).collect::<Vec<f32>>()
    };
    // All dialogues have equally many learnt tokens, so the mean of means is the mean over all.
    let (together, apart) = (gradients(("4", "1")), gradients(("1", "4")));
    let largest = together.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let difference = together.iter().zip(&apart).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 0.0 && difference < 1e-5 * largest, "{difference} of {largest}");
}

#[test]
fn data_is_counted_split_and_checked() {
    let folder = workshop();
    let tokens = |changed: &[(&str, &str)]| data::load(&recipe(folder.path(), "out", changed), folder.path());
    let data = tokens(&[]).unwrap();
    assert_eq!((data.train.len(), data.held_out.len(), data.counts.rows), (8, 2, 10));
    assert_eq!(data.digest(), tokens(&[]).unwrap().digest());
    assert_ne!(data.digest(), tokens(&[("seed = 1", "seed = 2")]).unwrap().digest(), "other dialogues are held out");
    let error = format!("{:#}", tokens(&[("max_tokens = 64", "max_tokens = 8")]).map(|_| ()).unwrap_err());
    assert!(error.contains("within 8 tokens"), "{error}");
    let error = format!(
        "{:#}",
        tokens(&[("dialogues = 2\n        every", "dialogues = 10\n        every")]).map(|_| ()).unwrap_err()
    );
    assert!(error.contains("leaves none to learn from"), "{error}");
    let longest = data.train.iter().chain(&data.held_out).map(|example| example.ids.len()).max().unwrap();
    let cut = tokens(&[("max_tokens = 64", &format!("max_tokens = {}", longest - 2))]).unwrap();
    assert!(cut.counts.cut_at_limit > 0 && cut.counts.to_string().contains("cut at the token limit"), "{}", cut.counts);
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    assert!(format!("{:#}", tokens(&[]).map(|_| ()).unwrap_err()).contains("no chat template"));
}
