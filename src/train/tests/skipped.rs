//! Steps that are skipped, and runs of which nothing comes: what is told, what is kept, and how they go on.

use super::*;

/// Puts a number into the model's last norm, the last tensor of its file.
fn set_norm(folder: &Path, number: f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&number.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}

fn newest_state(recipe: &Recipe) -> state::Place {
    let states = std::fs::read_dir(recipe.output.join(state::FOLDER)).unwrap();
    let newest = states.map(|entry| entry.unwrap().path()).max().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["progress"]).unwrap()
}

fn accepting() -> FinetuneOptions {
    FinetuneOptions { accepts_changes: true, ..options() }
}

#[test]
fn steps_without_a_finite_loss_end_the_run_until_something_is_changed() {
    let folder = workshop();
    let recipe = recipe(folder.path(), "out", &[("every = 3", "every = 3\nkeep_best = true")]);
    set_norm(folder.path(), f32::NAN);
    let error = refusal(&recipe, folder.path());
    assert!(error.contains("5 steps in a row") && error.contains("step 5, of "), "{error}");
    assert!(error.contains("dialogues.jsonl, lines ") && error.contains("--accept-changes"), "{error}");
    assert_eq!(refusal(&recipe, folder.path()), error, "nothing has changed");
    let place = newest_state(&recipe);
    assert_eq!((place.steps, place.updates), (5, 0));
    assert_eq!(place.held_out, [(0, None::<f64>), (3, None), (5, None)]);
    assert!(!recipe.output.join(peft::WEIGHTS_FILE).exists());

    set_norm(folder.path(), 1.0);
    let summary = finetune(&recipe, folder.path(), &accepting()).unwrap();
    assert_eq!((summary.steps, summary.held_out.len(), summary.best.unwrap().0), (6, 4, 6));
    assert!(summary.to_string().contains("held-out loss not finite before, "), "{summary}");
    let entries = log::read(&recipe.output.join(log::FILE)).unwrap();
    let steps = entries.iter().filter_map(|entry| if let log::Entry::Step(step) = entry { Some(step) } else { None });
    let (skipped, made): (Vec<_>, Vec<_>) = steps.partition(|step| step.skipped);
    assert_eq!((entries.len(), skipped.len()), (10, 5));
    assert_eq!(made[0].learning_rate, 0.0, "the schedule waits for the first update");
}

#[test]
fn without_any_finite_held_out_loss_the_last_is_kept() {
    let folder = workshop();
    let recipe = recipe(folder.path(), "out", &[("every = 3", "every = 3\nkeep_best = true")]);
    let (data, options) = (data::load(&recipe, folder.path()).unwrap(), options());
    let run = Run::begin(&recipe, folder.path(), &data, &options).unwrap();
    assert_eq!(run.finish().unwrap().best, None);
    assert!(recipe.output.join(peft::WEIGHTS_FILE).exists());
}

#[test]
fn in_fp16_a_step_too_large_halves_the_scale_and_no_bit_depends_on_it() {
    let folder = workshop();
    let half = recipe(folder.path(), "half", &[("dtype = \"f32\"", "dtype = \"f16\"")]);
    let (data, options) = (data::load(&half, folder.path()).unwrap(), options());
    let mut run = Run::begin(&half, folder.path(), &data, &options).unwrap();
    let next = run.next_step();
    let (loss, scaled) = run.gradients(&next).unwrap();
    for _ in 0..6 {
        assert!(!run.is_usable(&loss, f64::INFINITY));
        run.skip(&next);
    }
    assert_eq!(scaled, run.gradients(&next).unwrap().1);
    assert!(run.is_usable(&loss, 1.0));
    for _ in 0..20 {
        run.is_usable(&loss, f64::NAN); // to the smallest scale
    }
    (0..4).for_each(|_| run.skip(&next));
    assert!(!run.is_done());
    run.skip(&next);
    assert!(run.is_done() && run.finish().is_err(), "no smaller scale can help");
}

#[test]
fn a_changed_dtype_brings_or_drops_the_scale_of_the_loss() {
    let folder = workshop();
    for (steps, dtype, scales) in [(1, "f32", false), (2, "f16", true), (3, "bf16", false)] {
        let (steps, dtype) = (format!("steps = {steps}"), format!("dtype = \"{dtype}\""));
        let recipe = recipe(folder.path(), "out", &[("steps = 6", &steps), ("dtype = \"f32\"", &dtype)]);
        finetune(&recipe, folder.path(), &accepting()).unwrap();
        assert_eq!(newest_state(&recipe).scaler.is_some(), scales, "{dtype}");
    }
}
