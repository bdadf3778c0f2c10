//! A run that can be taken up again: adapter, moments and place in the work, in one file a state, written whole or not at
//! all.
//!
//! `states/000012.safetensors`, after twelve steps, holds for every matrix of the adapter `<module>.lora_A.value`, `.mean`
//! and `.square` (and `lora_B` likewise; of a tensor that is trained whole, `<tensor>.value`) in f32; the place in the
//! work is JSON under `progress` in the file's metadata. The last few are kept: the newest that is whole is taken up, by the
//! run it belongs to (same recipe, same data, same base) or where that was told.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, View, serialize_to_file};
use serde::{Deserialize, Serialize};

use super::adamw::AdamW;
use super::moments::{AllMoments, Half, Moments};
use super::scaler::Scaler;
use crate::disk;
use crate::model::adapter::{Adapter, Matrix};

pub const FOLDER: &str = "states";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Which run this is: see `run::identity`.
    pub run: String,
    /// Steps done, skipped ones included.
    pub steps: usize,
    /// Updates made by the optimiser.
    pub updates: usize,
    /// Steps skipped in a row because their loss or gradient was not finite: counted anew by whoever accepts changes.
    pub skipped_in_a_row: usize,
    /// Of a run in fp16.
    #[serde(default)]
    pub scaler: Option<Scaler>,
    /// Tokens learnt from so far, and seconds spent.
    pub tokens: u64,
    pub seconds: f64,
    /// Cross-entropy of the last step.
    pub last_loss: Option<f64>,
    /// Held-out losses: (steps done, loss), `null` where it was not finite.
    pub held_out: Vec<(usize, Option<f64>)>,
}

/// Writes the state into `folder`, and removes all but the newest `keep` (at least this one).
pub fn write(folder: &Path, keep: usize, place: &Place, adapter: &Adapter, optimizer: &AdamW) -> Result<()> {
    let progress = serde_json::to_string(place).context("the place in the work can be written")?;
    let metadata = HashMap::from([("progress".to_owned(), progress)]);
    let (names, failure) = (names(adapter), RefCell::new(None));
    let tensors = names.iter().zip(adapter.matrices()).enumerate().flat_map(|(index, (name, matrix))| {
        let tensor = |kind: &'static str, part| {
            (format!("{name}.{kind}"), Stored { matrix, part, failure: &failure, shape: [matrix.values.len()] })
        };
        let moments = |half| Part::Moments(&optimizer.moments, index, half);
        [tensor("value", Part::Value), tensor("mean", moments(Half::Mean)), tensor("square", moments(Half::Square))]
    });
    disk::make_folder(&folder.join(FOLDER))?;
    let path = folder.join(FOLDER).join(format!("{:06}.{EXTENSION}", place.steps));
    disk::replace_with(&path, |path| {
        serialize_to_file(tensors, Some(metadata), path)?;
        failure.take().map_or(Ok(()), Err)
    })?;
    for old in stored(folder)?.iter().rev().skip(keep.max(1)) {
        std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

/// What of a matrix a tensor holds.
#[derive(Clone, Copy)]
enum Part<'a> {
    Value,
    Moments(&'a AllMoments, usize, Half),
}

/// A tensor on its way into the file: spilled moments are read when it is their turn.
struct Stored<'a> {
    matrix: &'a Matrix,
    part: Part<'a>,
    shape: [usize; 1],
    /// What went wrong with reading them; there is no way to say it in [`View::data`].
    failure: &'a RefCell<Option<Error>>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = match self.part {
            Part::Value => Cow::Borrowed(self.matrix.values.as_slice()),
            Part::Moments(moments, index, half) => moments.numbers(index, half).unwrap_or_else(|error| {
                self.failure.borrow_mut().get_or_insert(error);
                Cow::Owned(vec![0.0; self.shape[0]])
            }),
        };
        Cow::Owned(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.shape[0]
    }
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
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let opened = Content::open(file).and_then(|content| Ok((content.progress()?, content)));
    let (place, content) = match opened.with_context(|| damaged(path)) {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    ensure!(
        place.run == wanted.run || wanted.accepts_others,
        "{} belongs to another run: the recipe, its data or the base model has changed since (give the recipe another \
         `output`, remove the folder to begin anew, or go on all the same with --accept-changes)",
        path.display()
    );
    if let Err(error) = content.fill(adapter, optimizer).with_context(|| damaged(path)) {
        return Ok(Err(error));
    }
    optimizer.updates = place.updates;
    let skipped_in_a_row = if wanted.accepts_others { 0 } else { place.skipped_in_a_row };
    Ok(Ok(Place { run: wanted.run.to_owned(), skipped_in_a_row, ..place }))
}

fn damaged(path: &Path) -> String {
    format!("{} cannot be taken up (remove it to begin anew)", path.display())
}

/// A whole safetensors file, of which one tensor is in memory at a time.
struct Content {
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

/// safetensors' own limit.
const LONGEST_HEADER: u64 = 100_000_000;

impl Content {
    fn open(mut file: File) -> Result<Content> {
        let whole = "not a whole safetensors file";
        let all = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).context(whole)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= LONGEST_HEADER && 8 + length <= all, "{whole}");
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).context(whole)?;
        let header: Metadata = serde_json::from_slice(&header).context(whole)?;
        let start = 8 + length;
        ensure!(start + header.data_len() as u64 == all, "{whole}");
        Ok(Content { file, header, start })
    }

    fn progress(&self) -> Result<Place> {
        let Some(text) = self.header.metadata().as_ref().and_then(|entries| entries.get("progress")) else {
            bail!("it does not say how far the run was");
        };
        serde_json::from_str(text).context("how far the run was cannot be read")
    }

    fn fill(&self, adapter: &mut Adapter, optimizer: &mut AdamW) -> Result<()> {
        let (names, found) = (names(adapter), self.header.offset_keys().len());
        ensure!(found == 3 * names.len(), "it holds {found} tensors, not {}", 3 * names.len());
        let moments = names.iter().zip(adapter.matrices_mut()).map(|(name, matrix)| {
            let mut moments = Moments::zeros(matrix.values.len());
            self.read(&format!("{name}.value"), &mut matrix.values)?;
            self.read(&format!("{name}.mean"), &mut moments.mean)?;
            self.read(&format!("{name}.square"), &mut moments.square)?;
            Ok(moments)
        });
        optimizer.moments = AllMoments::InMemory(moments.collect::<Result<_>>()?);
        Ok(())
    }

    fn read(&self, name: &str, values: &mut [f32]) -> Result<()> {
        let info = self.header.info(name).with_context(|| format!("it holds no `{name}`"))?;
        let (from, to) = info.data_offsets;
        let fits = info.dtype == Dtype::F32 && to - from == size_of_val(values);
        ensure!(fits, "`{name}` does not have the adapter's shape");
        let mut bytes = vec![0; to - from];
        self.file.read_exact_at(&mut bytes, self.start + from as u64)?;
        let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        Ok(())
    }
}

/// A name for each of the adapter's matrices, in order.
fn names(adapter: &Adapter) -> Vec<String> {
    let pairs = adapter.pairs.iter().flat_map(|pair| ["A", "B"].map(|half| format!("{}.lora_{half}", pair.module)));
    pairs.chain(adapter.whole.iter().map(|whole| whole.tensor.clone())).collect()
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
        let adapter = Adapter { pairs: vec![pair], whole: Vec::new() };
        let settings = Settings {
            learning_rate: 0.1,
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: None,
            lora_plus_ratio: 1.0,
        };
        let mut optimizer = AdamW::new(settings, &adapter);
        optimizer.moments.change(vec![(); 2], |index, (), moments| moments.square[index] = 0.25).unwrap();
        optimizer.updates = 6;
        let place = Place {
            run: "abc".to_owned(),
            steps: 7,
            updates: 6,
            tokens: 1234,
            seconds: 0.1 + 0.2,
            last_loss: Some(1.0 / 3.0),
            held_out: vec![(0, Some(2.5)), (3, None), (7, Some(2.25))],
            skipped_in_a_row: 5,
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

    /// All moments, and how many updates made them.
    fn learnt(optimizer: &AdamW) -> (Vec<Vec<f32>>, usize) {
        let halves = (0..2).flat_map(|index| [(index, Half::Mean), (index, Half::Square)]);
        let numbers = |(index, half)| optimizer.moments.numbers(index, half).unwrap().into_owned();
        (halves.map(numbers).collect(), optimizer.updates)
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
        assert_eq!((again, learnt(&moments)), (adapter, learnt(&optimizer)));
    }

    #[test]
    fn spilled_moments_are_written_as_those_in_memory_are() {
        let folder = tempfile::tempdir().unwrap();
        let (adapter, mut optimizer, place) = run();
        write(folder.path(), 2, &place, &adapter, &optimizer).unwrap();
        let path = stored(folder.path()).unwrap().remove(0);
        let held = std::fs::read(&path).unwrap();
        optimizer.spill(folder.path()).unwrap();
        write(folder.path(), 2, &place, &adapter, &optimizer).unwrap();
        assert!(optimizer.moments.are_spilled() && std::fs::read(&path).unwrap() == held);
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
        assert_eq!((again, learnt(&moments)), (adapter, learnt(&optimizer)));
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
        assert_eq!((progress.skipped_in_a_row, place.skipped_in_a_row), (5, 0), "with new patience");
        other.pairs[0].module = "layer.k".to_owned();
        assert!(taken_up(folder.path(), "abc", &mut other, &mut moments).is_err());
        let (mut wide, _) = blank(&adapter, &optimizer);
        wide.pairs[0].a = Matrix::zeros(2, 4);
        let mut moments = AdamW::new(optimizer.settings, &wide);
        let error = format!("{:#}", taken_up(folder.path(), "abc", &mut wide, &mut moments).unwrap_err());
        assert!(error.contains("`layer.q.lora_A.value`"), "{error}");
    }
}
