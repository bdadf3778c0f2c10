//! A run that can be taken up again: adapter, moments and place in the work, in one file a state, written whole or not at
//! all.
//!
//! `states/000012.safetensors`, after twelve steps, holds for every matrix of the adapter `<module>.lora_A.value`, `.mean`
//! and `.square` (and `lora_B` likewise) in f32; the place in the work is JSON under `progress` in the file's metadata.
//! The last few are kept: the newest that is whole is taken up, by the run it belongs to (same recipe, same data, same
//! base) or where that was told.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use serde::{Deserialize, Serialize};

use super::adamw::AdamW;
use super::scaler::Scaler;
use crate::disk;
use crate::model::adapter::Adapter;
use crate::model::adapter::peft::F32;

pub const FOLDER: &str = "states";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Which run this is: see [`identity`](super::identity).
    pub run: String,
    /// Steps done, skipped ones included.
    pub steps: usize,
    /// Updates made by the optimiser.
    pub updates: usize,
    /// Steps skipped in a row because their loss or gradient was not finite.
    pub skipped_in_a_row: usize,
    /// Of a run in fp16.
    #[serde(default)]
    pub scaler: Option<Scaler>,
    /// Tokens learnt from so far, and seconds spent.
    pub tokens: u64,
    pub seconds: f64,
    /// Cross-entropy of the last step.
    pub last_loss: Option<f64>,
    /// Held-out losses: (steps done, loss).
    pub held_out: Vec<(usize, f64)>,
}

/// Writes the state into `folder`, and removes all but the newest `keep` (at least this one).
pub fn write(folder: &Path, keep: usize, place: &Place, adapter: &Adapter, optimizer: &AdamW) -> Result<()> {
    let progress = serde_json::to_string(place).context("the place in the work can be written")?;
    let metadata = HashMap::from([("progress".to_owned(), progress)]);
    let names = names(adapter);
    let matrices = adapter.matrices().zip(&optimizer.moments);
    let tensors = names.iter().zip(matrices).flat_map(|(name, (matrix, moments))| {
        let tensor = |kind: &str, values| (format!("{name}.{kind}"), F32 { values, shape: vec![values.len()] });
        [tensor("value", matrix.values.as_slice()), tensor("mean", &moments.mean), tensor("square", &moments.square)]
    });
    disk::make_folder(&folder.join(FOLDER))?;
    let path = folder.join(FOLDER).join(format!("{:06}.{EXTENSION}", place.steps));
    disk::replace_with(&path, |path| Ok(serialize_to_file(tensors, Some(metadata.clone()), path)?))?;
    for old in stored(folder)?.iter().rev().skip(keep.max(1)) {
        std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

const EXTENSION: &str = "safetensors";

/// The states in `folder`, the oldest first.
fn stored(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.join(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let listed = std::fs::read_dir(&folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = listed.with_context(|| format!("cannot read {}", folder.display()))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    paths.sort();
    Ok(paths)
}

/// What is to be taken up.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub run: &'a str,
    /// Also the state of another run (a changed recipe, other data), if its adapter has the same shapes.
    pub accepts_others: bool,
}

/// Fills `adapter` and `optimizer` from the newest state in `folder` that is whole, if there is any; `tell` hears of those
/// that are not. Damaged states alone, and the state of another run, are errors.
pub fn restore(
    folder: &Path,
    wanted: Wanted,
    adapter: &mut Adapter,
    optimizer: &mut AdamW,
    tell: impl Fn(&str),
) -> Result<Option<Place>> {
    let paths = stored(folder)?;
    let mut damage = None;
    for path in paths.iter().rev() {
        match take_up(path, wanted, adapter, optimizer)? {
            Ok(place) => return Ok(Some(place)),
            Err(error) => {
                tell(&format!("{error:#}; the state before it is tried"));
                damage.get_or_insert(error);
            }
        }
    }
    damage.map_or(Ok(None), Err)
}

/// The inner error: the file is damaged.
fn take_up(path: &Path, wanted: Wanted, adapter: &mut Adapter, optimizer: &mut AdamW) -> Result<Result<Place>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let place = match progress(&bytes).with_context(|| damaged(path)) {
        Ok(place) => place,
        Err(error) => return Ok(Err(error)),
    };
    ensure!(
        place.run == wanted.run || wanted.accepts_others,
        "{} belongs to another run: the recipe, its data or the base model has changed since (give the recipe another \
         `output`, remove the folder to begin anew, or go on all the same with --accept-changes)",
        path.display()
    );
    if let Err(error) = fill(&bytes, adapter, optimizer).with_context(|| damaged(path)) {
        return Ok(Err(error));
    }
    optimizer.updates = place.updates;
    Ok(Ok(Place { run: wanted.run.to_owned(), ..place }))
}

fn damaged(path: &Path) -> String {
    format!("{} cannot be taken up (remove it to begin anew)", path.display())
}

fn fill(bytes: &[u8], adapter: &mut Adapter, optimizer: &mut AdamW) -> Result<()> {
    let file = SafeTensors::deserialize(bytes)?;
    let names = names(adapter);
    ensure!(file.len() == 3 * names.len(), "it holds {} tensors, not {}", file.len(), 3 * names.len());
    for (name, (matrix, moments)) in names.iter().zip(adapter.matrices_mut().zip(&mut optimizer.moments)) {
        let parts = [("value", &mut matrix.values), ("mean", &mut moments.mean), ("square", &mut moments.square)];
        for (kind, values) in parts {
            let tensor = file.tensor(&format!("{name}.{kind}"))?;
            let fits = tensor.dtype() == Dtype::F32 && tensor.data().len() == size_of_val(values.as_slice());
            ensure!(fits, "`{name}.{kind}` does not have the adapter's shape");
            let numbers = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        }
    }
    Ok(())
}

fn progress(bytes: &[u8]) -> Result<Place> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).context("not a whole safetensors file")?;
    let Some(text) = metadata.metadata().as_ref().and_then(|entries| entries.get("progress")) else {
        bail!("it does not say how far the run was");
    };
    serde_json::from_str(text).context("how far the run was cannot be read")
}

/// A name for each of the adapter's matrices, in order.
fn names(adapter: &Adapter) -> Vec<String> {
    adapter.pairs.iter().flat_map(|pair| ["A", "B"].map(|half| format!("{}.lora_{half}", pair.module))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::{LoraPair, Matrix};
    use crate::train::adamw::Settings;

    fn run() -> (Adapter, AdamW, Place) {
        let matrix = |rows, columns, first: f32| Matrix {
            rows,
            columns,
            values: (0..rows * columns).map(|index| first + index as f32).collect(),
        };
        let pair = LoraPair { module: "layer.q".to_owned(), scale: 1.0, a: matrix(2, 3, 1.5), b: matrix(4, 2, -7.0) };
        let adapter = Adapter { pairs: vec![pair] };
        let settings =
            Settings { learning_rate: 0.1, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: None };
        let mut optimizer = AdamW::new(settings, &adapter);
        optimizer.moments[1].square[7] = 0.25;
        optimizer.updates = 6;
        let place = Place {
            run: "abc".to_owned(),
            steps: 7,
            updates: 6,
            tokens: 1234,
            seconds: 0.1 + 0.2,
            last_loss: Some(1.0 / 3.0),
            held_out: vec![(0, 2.5), (7, 2.25)],
            ..Place::default()
        };
        (adapter, optimizer, place)
    }

    fn blank(adapter: &Adapter, optimizer: &AdamW) -> (Adapter, AdamW) {
        let mut adapter = adapter.clone();
        adapter.matrices_mut().for_each(|matrix| matrix.values.fill(0.0));
        let optimizer = AdamW::new(optimizer.settings, &adapter);
        (adapter, optimizer)
    }

    fn taken_up(folder: &Path, run: &str, adapter: &mut Adapter, optimizer: &mut AdamW) -> Result<Option<Place>> {
        restore(folder, Wanted { run, accepts_others: false }, adapter, optimizer, |_| {})
    }

    #[test]
    fn a_state_is_read_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, optimizer, progress) = run();
        let (mut again, mut moments) = blank(&adapter, &optimizer);
        assert_eq!(taken_up(folder.path(), "abc", &mut again, &mut moments).unwrap(), None);
        write(folder.path(), 2, &progress, &adapter, &optimizer).unwrap();
        assert_eq!(taken_up(folder.path(), "abc", &mut again, &mut moments).unwrap(), Some(progress));
        assert_eq!((again, moments), (adapter, optimizer));
    }

    #[test]
    fn the_last_states_are_kept_and_the_newest_whole_one_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, optimizer, place) = run();
        for steps in [2, 10, 9, 100] {
            write(folder.path(), 2, &Place { steps, ..place.clone() }, &adapter, &optimizer).unwrap();
        }
        let states = stored(folder.path()).unwrap();
        assert_eq!(
            states.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect::<Vec<_>>(),
            ["000010", "000100"]
        );
        let whole = std::fs::read(&states[1]).unwrap();
        std::fs::write(&states[1], &whole[..whole.len() - 1]).unwrap();
        let (mut again, mut moments) = blank(&adapter, &optimizer);
        let told = std::cell::RefCell::new(String::new());
        let wanted = Wanted { run: "abc", accepts_others: false };
        let found = restore(folder.path(), wanted, &mut again, &mut moments, |line| told.borrow_mut().push_str(line));
        assert_eq!(found.unwrap().unwrap().steps, 10);
        assert_eq!((again, moments), (adapter, optimizer));
        assert!(told.borrow().contains("000100.safetensors cannot be taken up"), "{told:?}");
    }

    #[test]
    fn a_cut_or_foreign_state_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, optimizer, progress) = run();
        write(folder.path(), 1, &progress, &adapter, &optimizer).unwrap();
        let path = stored(folder.path()).unwrap().remove(0);
        let bytes = std::fs::read(&path).unwrap();
        let (mut other, mut moments) = blank(&adapter, &optimizer);
        for length in [0, 5, 60, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = format!("{:#}", taken_up(folder.path(), "abc", &mut other, &mut moments).unwrap_err());
            assert!(error.contains("000007.safetensors cannot be taken up"), "{length}: {error}");
        }
        std::fs::write(&path, &bytes).unwrap();
        let error = taken_up(folder.path(), "xyz", &mut other, &mut moments).unwrap_err().to_string();
        assert!(error.contains("another run") && error.contains("--accept-changes"), "{error}");
        let wanted = Wanted { run: "xyz", accepts_others: true };
        let place = restore(folder.path(), wanted, &mut other, &mut moments, |_| {}).unwrap().unwrap();
        assert_eq!((place.run.as_str(), place.steps), ("xyz", 7), "it goes on as the new run");
        other.pairs[0].module = "layer.k".to_owned();
        assert!(taken_up(folder.path(), "abc", &mut other, &mut moments).is_err());
        let (mut wide, _) = blank(&adapter, &optimizer);
        wide.pairs[0].a = Matrix::zeros(2, 4);
        let mut moments = AdamW::new(optimizer.settings, &wide);
        let error = format!("{:#}", taken_up(folder.path(), "abc", &mut wide, &mut moments).unwrap_err());
        assert!(error.contains("`layer.q.lora_A.value`"), "{error}");
    }
}
