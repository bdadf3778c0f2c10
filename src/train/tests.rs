//! Whole runs on the tiny Mixtral of `tests/fixtures`, with the small tokenizer of the dialogues' fixture.

mod skipped;

use super::*;
use crate::model::adapter::peft;
use crate::model::config::ModelConfig;
use crate::train::data::TrainingData;

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
    FinetuneOptions { progress: Progress::hidden(), ..FinetuneOptions::default() }
}

fn losses(summary: &TrainSummary) -> Vec<f64> {
    summary.held_out.iter().map(|(_, loss)| loss.unwrap()).collect()
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
    assert!(losses(&summary)[2] < losses(&summary)[0] - 0.1, "{:?}", summary.held_out);
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
fn a_run_stops_where_the_held_out_loss_does_and_keeps_the_best() {
    let folder = workshop();
    // A rate so high that the loss soon rises again; and one that does not depend on how many steps there are.
    let rate = ("learning_rate = 1e-2", "learning_rate = 0.3");
    let constant = ("kind = \"linear\"", "kind = \"constant-with-warmup\"");
    let long =
        [("steps = 6", "steps = 60"), rate, ("every = 3", "every = 1\npatience = 4\nkeep_best = true"), constant];
    let keeping = recipe(folder.path(), "kept", &long);
    let kept = finetune(&keeping, folder.path(), &options()).unwrap();
    let losses = losses(&kept);
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert_eq!((best + 4, kept.steps), (losses.len() - 1, losses.len() - 1), "{losses:?}");
    assert!(0 < best && kept.steps < 60, "{losses:?}");
    let steps = format!("steps = {best}");
    let cut =
        finetune(&recipe(folder.path(), "cut", &[("steps = 6", &steps), rate, constant]), folder.path(), &options())
            .unwrap();
    let weights = |summary: &TrainSummary| std::fs::read(summary.adapter.join(peft::WEIGHTS_FILE)).unwrap();
    assert!(weights(&kept) == weights(&cut), "the adapter of step {best}");
    assert_eq!(kept.best, Some((best, losses[best])));
    let told = format!("{:.4} before, {:.4} after {best} steps, the best", losses[0], losses[best]);
    assert!(kept.to_string().contains(&told), "{kept}");

    assert_eq!(finetune(&keeping, folder.path(), &options()).unwrap(), kept);
    std::fs::remove_dir_all(keeping.output.join("best")).unwrap();
    assert_eq!(finetune(&keeping, folder.path(), &options()).unwrap(), kept);
    assert!(weights(&kept) == weights(&cut), "it is left as it was, not replaced by the last");
    std::fs::remove_file(keeping.output.join(peft::WEIGHTS_FILE)).unwrap();
    let error = refusal(&keeping, folder.path());
    assert!(error.contains("best is gone") && error.contains("`keep_best = false`"), "{error}");
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
    std::fs::remove_dir_all(first.output.join(state::FOLDER)).unwrap();
    assert!(refusal(&first, folder.path()).contains("choose another `output`"));
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

#[test]
fn a_files_weight_is_how_often_an_epoch_has_its_dialogues() {
    let folder = workshop();
    let path = folder.path().join("dialogues.jsonl").display().to_string();
    let other = folder.path().join("other.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap().replace("What is", "How much is");
    std::fs::write(&other, lines).unwrap();
    let data = |weights: (f64, f64), held_out: &str| {
        let files = format!(
            "data = {{ files = [{{ path = \"{path}\", weight = {:?} }}, {{ path = \"{}\", weight = {:?} }}] }}",
            weights.0,
            other.display(),
            weights.1
        );
        let changed =
            [(format!("data = [\"{path}\"]"), files), ("dialogues = 2\n        every".to_owned(), held_out.to_owned())];
        let changed: Vec<(&str, &str)> = changed.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        data::load(&recipe(folder.path(), "out", &changed), folder.path())
    };
    let count = |data: &TrainingData| {
        let mut times = std::collections::BTreeMap::new();
        data.train.iter().for_each(|example| *times.entry(example.ids.clone()).or_insert(0) += 1);
        let mut times: Vec<usize> = times.into_values().collect();
        times.sort_unstable();
        times
    };
    let held = "dialogues = 2\n        every";
    let weighted = data((2.5, 0.5), held).unwrap();
    let of_each = count(&weighted);
    let (second, first): (Vec<usize>, Vec<usize>) = of_each.iter().partition(|&&times| times == 1);
    assert!(first.iter().all(|&times| times == 2 || times == 3), "{of_each:?}");
    // 18 dialogues are learnt from; of each file half are drawn once more.
    let left = first.len();
    assert_eq!(first.iter().filter(|&&times| times == 3).count(), (0.5 * left as f64).round() as usize);
    assert_eq!(second.len(), (0.5 * (18 - left) as f64).round() as usize);
    assert_eq!(weighted.digest(), data((2.5, 0.5), held).unwrap().digest(), "the same draw every time");
    assert!(weighted.held_out.iter().all(|example| !weighted.train.contains(example)), "held out is held out");
    assert_eq!(weighted.counts.dialogues, 20);
    let error = format!("{:#}", data((0.01, 0.01), held).map(|_| ()).unwrap_err());
    assert!(error.contains("leave no dialogue"), "{error}");
}

#[test]
fn long_dialogues_are_split_where_the_recipe_says_so() {
    let folder = workshop();
    let path = folder.path().join("dialogues.jsonl").display().to_string();
    let turn = |n: usize| format!("{{\"human\": \"What is {n} + 2?\", \"assistant\": \"{n} + 2 = 4.\"}}");
    let turns: Vec<String> = (0..6).map(turn).collect();
    std::fs::write(&path, format!("{{\"conversation\": [{}]}}\n", turns.join(",")).repeat(1)).unwrap();
    let data = |long: &str| {
        let table = format!("data = {{ files = [\"{path}\"], long = \"{long}\" }}");
        let changed = [
            (format!("data = [\"{path}\"]"), table),
            ("[held_out]\n        dialogues = 2\n        every = 3\n".to_owned(), String::new()),
        ];
        let changed: Vec<(&str, &str)> = changed.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        data::load(&recipe(folder.path(), "out", &changed), folder.path()).unwrap()
    };
    let (cut, split) = (data("cut"), data("split"));
    assert_eq!((cut.train.len(), cut.counts.cut_at_limit, cut.counts.split), (1, 1, 0));
    assert_eq!((split.counts.cut_at_limit, split.counts.split), (0, 1));
    assert!(split.train.len() > 1 && split.train.iter().all(|example| example.ids.len() <= 64));
    assert!(split.counts.learnt > cut.counts.learnt);
    assert!(split.counts.to_string().contains("1 split at the token limit"), "{}", split.counts);
}

#[test]
fn short_dialogues_share_a_sequence_where_the_recipe_says_so() {
    let folder = workshop();
    let path = folder.path().join("dialogues.jsonl").display().to_string();
    let (plain, table) = (format!("data = [\"{path}\"]"), format!("data = {{ files = [\"{path}\"], pack = true }}"));
    let changed = [
        (plain.as_str(), table.as_str()),
        ("steps = 6", "epochs = 1"),
        ("accumulation = 2", "accumulation = 1"),
        ("dialogues = 2\n        accumulation", "dialogues = 1\n        accumulation"),
        ("max_tokens = 64", "max_tokens = 200"),
    ];
    let (packed, plain) = (recipe(folder.path(), "packed", &changed), recipe(folder.path(), "plain", &changed[1..]));
    let (data, alone) = (data::load(&packed, folder.path()).unwrap(), data::load(&plain, folder.path()).unwrap());
    assert_eq!((&data.train, alone.rows.len(), alone.counts.packed), (&alone.train, 8, None));
    let mut examples = data.rows.concat();
    examples.sort_unstable();
    assert_eq!(examples, (0..8).collect::<Vec<_>>(), "each once");
    assert!(data.rows.len() < 8 && (0..data.rows.len()).all(|row| data.row_tokens(row) <= packed.max_tokens));
    let told = format!("8 packed into {} sequences of at most {} tokens", data.rows.len(), packed.max_tokens);
    assert!(data.counts.to_string().contains(&told), "{}", data.counts);
    // An epoch of sequences is fewer steps, and has every token.
    let summary = finetune(&packed, folder.path(), &options()).unwrap();
    let tokens: usize = data.train.iter().map(|example| example.ids.len()).sum();
    assert_eq!((summary.steps, summary.tokens), (data.rows.len(), tokens as u64));
}

#[test]
fn data_beyond_the_limits_are_refused_with_their_lines() {
    let folder = workshop();
    let path = folder.path().join("dialogues.jsonl");
    let good = std::fs::read_to_string(&path).unwrap();
    let first = good.lines().next().unwrap();
    let load = |limits: &str, more: &str| {
        std::fs::write(&path, format!("{good}{more}\n")).unwrap();
        let plain = format!("data = [\"{}\"]", path.display());
        let table = format!("data = {{ files = [\"{}\"], limits = {{ {limits} }} }}", path.display());
        data::load(&recipe(folder.path(), "out", &[(&plain, &table)]), folder.path())
    };
    let error = |limits: &str, more: &str| format!("{:#}", load(limits, more).map(|_| ()).unwrap_err());
    let told = error("", "{\"messages\": 7}");
    assert!(told.contains("`[data.limits] malformed` allows 0 %") && told.contains("1 of 11 (9.1 %)"), "{told}");
    assert!(told.contains("dialogues.jsonl, line 11: `messages` is not a list"), "{told}");
    let told = error("duplicates = 0.05", first);
    assert!(told.contains("`[data.limits] duplicates`") && told.contains("line 11: of "), "{told}");
    let told = error("language = \"deu\", other_language = 0.0", ENGLISH);
    assert!(told.contains("`[data.limits] other_language`") && told.contains("line 11: eng"), "{told}");
    assert!(error("", "{\"data\": [\"x\", \"\"]}").contains("`[data.limits] empty_turns`"));
    let counts = load("malformed = 0.1", "{\"messages\": 7}").unwrap().counts;
    assert_eq!((counts.rows, counts.dialogues, counts.unusable), (11, 10, 1));
    assert!(counts.to_string().contains("1 dropped: no dialogue"), "{counts}");
}

const ENGLISH: &str = "{\"data\": [\"Could you tell me when the museum opens, please?\", \"The museum opens at nine in \
                       the morning, and on Sundays you can look at all of the paintings for free.\"]}";

/// `[full]` in place of `[lora]`, on candle's tensors.
fn full(folder: &Path, output: &str, changed: &[(&str, &str)]) -> Recipe {
    let pairs = "[lora]\n        rank = 4\n        alpha = 8\n        dropout = 0.1\n        \
                 targets = [\"q_proj\", \"v_proj\", \"gate\", \"w1\", \"w2\", \"w3\"]";
    let whole = [(pairs, "[full]"), ("quantization = \"nf4\"", "quantization = \"none\"")];
    recipe(folder, output, &[&whole, changed].concat())
}

fn candle() -> FinetuneOptions {
    FinetuneOptions { home: Home::Candle, ..options() }
}

#[test]
fn a_model_trained_whole_goes_on_where_it_was_and_ends_with_the_same_bytes() {
    let folder = workshop();
    let whole = full(folder.path(), "whole", &[]);
    let summary = finetune(&whole, folder.path(), &candle()).unwrap();
    assert!(summary.is_whole && summary.trained_parameters == 287_552, "{summary:?}");
    assert!(losses(&summary)[2] < losses(&summary)[0] - 0.1, "{:?}", summary.held_out);

    let data = data::load(&whole, folder.path()).unwrap();
    let parts = full(folder.path(), "parts", &[]);
    for _ in 0..2 {
        let options = candle();
        let mut run = Run::begin(&parts, folder.path(), &data, &options).unwrap();
        if run.is_new() {
            run.held_out_loss().unwrap();
        }
        (0..2).for_each(|_| step(&mut run).unwrap());
        run.save().unwrap(); // and is dropped here
    }
    finetune(&parts, folder.path(), &candle()).unwrap();
    let written = |recipe: &Recipe| std::fs::read(recipe.output.join("model.safetensors")).unwrap();
    assert!(written(&whole) == written(&parts));
    assert!(refusal(&full(folder.path(), "other", &[]), folder.path()).contains("--decoder candle"));
}

#[test]
fn only_the_named_tensors_move_and_the_best_model_is_kept() {
    let folder = workshop();
    let named =
        "[full]\n        tensors = [\"model.layers.1.*.w2.weight\", \"model.norm.weight\"]\n        [optimizer]";
    let best = ("every = 3", "every = 3\n        keep_best = true");
    let recipe = full(folder.path(), "some", &[("[full]\n        [optimizer]", named), best]);
    finetune(&recipe, folder.path(), &candle()).unwrap();
    let read = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    let (before, after) = (read(folder.path()), read(&recipe.output));
    let [before, after] = [&before, &after].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    for (name, tensor) in before.tensors() {
        let moves =
            name == "model.norm.weight" || (name.starts_with("model.layers.1.") && name.ends_with(".w2.weight"));
        assert_eq!(tensor.data() != after.tensor(&name).unwrap().data(), moves, "{name}");
    }
    assert!(recipe.output.join("best/model.safetensors").exists());
    let other = full(folder.path(), "some", &[]);
    assert!(format!("{:#}", finetune(&other, folder.path(), &candle()).unwrap_err()).contains("another run"));
}
