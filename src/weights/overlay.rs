//! Whole tensors that lie over a checkpoint's own: what an adapter trained as a whole (PEFT's `modules_to_save`) and keeps
//! in a file of its own.
//!
//! A tensor of the file takes the place of the checkpoint's, as another run of bytes in another mapped file, so whatever
//! reads the checkpoint reads it: both decoders, streams, `merge`. Nothing is copied.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use memmap2::UncheckedAdvice;
use serde_json::Value;

use super::{Checkpoint, Entry, Extent, Mapped, Stored, folder};

/// One safetensors file by itself, mapped.
pub struct TensorFile {
    file: Mapped,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<TensorFile> {
        let file = Mapped::open(path)?;
        let entries = folder::header(&file, 0)?;
        Ok(TensorFile { file, entries })
    }

    /// Every tensor's name and shape, sorted.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Tells the system that the tensor's pages are not needed any more.
    pub fn give_back(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            entry.extents().into_iter().for_each(|extent| self.file.give_back(extent));
        }
    }

    /// The tensor of that name; a missing one, and an encoding that is not read here, are errors.
    pub fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let place = self.file.path.display();
        let Some(entry) = self.entries.get(name) else { bail!("{place}: tensor `{name}` is missing") };
        if let Err(encoding) = &entry.format {
            bail!("{place}: tensor `{name}` is {encoding}; f32, f16 and bf16 are read");
        }
        entry.stored(|extent| &self.file.map[extent.start..extent.end])
    }
}

impl Mapped {
    fn give_back(&self, extent: Extent) {
        // SAFETY: a private mapping that is only read: pages that are dropped are read from the file again.
        let _ = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, extent.start, extent.end - extent.start)
        }; // advice that is not taken costs memory and nothing else
    }
}

impl Checkpoint {
    /// Tells the system that the tensor's pages are not needed any more: who walks through a model once holds no more of
    /// it than one tensor.
    pub fn give_back(&self, name: &str) -> Result<()> {
        self.entry(name)?.extents().into_iter().for_each(|extent| self.files[extent.file].give_back(extent));
        Ok(())
    }

    /// Lays tensors of the safetensors file at `path` over the checkpoint: `tensors` are (name in the file, name here). A
    /// tensor that the checkpoint has keeps its shape, or this is an error.
    pub fn lay_over(&mut self, path: &Path, tensors: &[(String, String)]) -> Result<()> {
        let TensorFile { file, mut entries } = TensorFile::open(path)?;
        let index = self.files.len();
        for (stored, name) in tensors {
            let Some(entry) = entries.remove(stored) else {
                bail!("{}: tensor `{stored}` is missing", path.display());
            };
            if let Some(own) = self.entries.get(name).filter(|own| own.shape != entry.shape) {
                bail!(
                    "{}: tensor `{stored}` has shape {:?}, but `{name}` of the model {:?}; was the vocabulary resized \
                     before training? Then the base model has to be resized too",
                    path.display(),
                    entry.shape,
                    own.shape
                );
            }
            self.entries.insert(name.clone(), Entry { file: index, ..entry });
        }
        self.files.push(file);
        Ok(())
    }

    /// Makes a head of its own out of an embedding that served as both, and says so in the configuration.
    pub fn untie(&mut self, embedding: &str, head: &str) -> Result<()> {
        let entry = self.entry(embedding)?.clone();
        self.entries.insert(head.to_owned(), entry);
        if let Some(fields) = self.config.as_object_mut() {
            fields.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
        Ok(())
    }
}
