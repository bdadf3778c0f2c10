//! A model that was asked for: where its weights are, what it is, and how it is opened.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::IMPORTED;
use crate::chat::ChatTemplate;
use crate::engine::Engine;
use crate::engine::open::{self, Probe};
use crate::engine::scripted::ScriptedEngine;
use crate::hub::{self, Repository};
use crate::memory::Memory;
use crate::model::config::ModelConfig;
use crate::model::home::{Held, Home, Stored};
use crate::model_id::{ModelId, Quantization, own_dtype};
use crate::published::Published;
use crate::store::{Manifest, Store};
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, Dtype};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A Hugging Face folder, a GGUF file, or a folder that holds one GGUF file.
    Checkpoint(PathBuf),
    Hub(Repository),
    /// The test engine of that name.
    Scripted(String),
    /// A row of the leaderboard: scores and no weights.
    Published(Published),
    /// What `fireval import` read under that name: answers and no weights.
    Imported(String),
}

/// A model by name, and how it is to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// As it was asked for; what tables call it.
    pub name: String,
    pub source: Source,
    /// The folder of a LoRA adapter.
    pub adapter: Option<PathBuf>,
    /// The checkpoint's own if not given.
    pub dtype: Option<Dtype>,
    pub quantization: Option<Quantization>,
    pub home: Home,
}

impl ModelSpec {
    pub(super) fn plain(name: &str, source: Source) -> ModelSpec {
        ModelSpec {
            name: name.to_owned(),
            source,
            adapter: None,
            dtype: None,
            quantization: None,
            home: Home::default(),
        }
    }

    /// What finds it without this project: its repository on the hub, or its path.
    pub fn outside_name(&self) -> Option<String> {
        match &self.source {
            Source::Checkpoint(path) => Some(path.display().to_string()),
            Source::Hub(repository) => Some(repository.name.clone()),
            Source::Scripted(_) | Source::Published(_) | Source::Imported(_) => None,
        }
    }

    /// An error for a model with an adapter, where the weights under it alone would be used.
    pub fn without_adapter(self) -> Result<ModelSpec> {
        ensure!(self.adapter.is_none(), "model `{}` has an adapter; merge it first (`fireval merge`)", self.name);
        Ok(self)
    }

    /// The checkpoint's folder or GGUF file; one of the hub is fetched as far as it is not in the cache.
    pub fn checkpoint(&self) -> Result<PathBuf> {
        let name = &self.name;
        match &self.source {
            Source::Checkpoint(path) => {
                ensure!(path.exists(), "model `{name}`: there is no {}", path.display());
                only_gguf(path)
            }
            Source::Hub(repository) => hub::fetch_model(repository).with_context(|| {
                format!("model `{name}` is no name of a project and no path here, so the hub was asked for it")
            }),
            Source::Scripted(_) => bail!("{name} is the test engine: it has no weights"),
            Source::Published(_) => bail!("{name} is a row of the leaderboard: it has no weights"),
            Source::Imported(_) => bail!("{name} is what another program answered: it has no weights"),
        }
    }

    /// The model's identity, without loading a weight.
    pub fn id(&self, store: &Store) -> Result<ModelId> {
        if let Source::Scripted(name) = &self.source {
            return Ok(ScriptedEngine::new(name)?.id().clone());
        }
        if let Source::Imported(_) = &self.source {
            return self.imported_id(store);
        }
        let mut digests = store.file_digests();
        let adapter = self.adapter.as_deref();
        let engine = |dtype| self.home.engine(dtype);
        let mut file_digest = |file: &Path| digests.of(file);
        let path = self.checkpoint()?;
        ModelId::of_checkpoint(&path, adapter, self.dtype, self.quantization, engine, &mut file_digest)
            .with_context(|| format!("model `{}`", self.name))
    }

    /// The identity under which answers of that name were imported.
    fn imported_id(&self, store: &Store) -> Result<ModelId> {
        let manifests = store.manifests()?;
        let imported = |manifest: &&Manifest| manifest.model.starts_with(IMPORTED);
        // One that can't be read is another model's, or is made again by importing.
        let whole = manifests.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
        let mut known: Vec<&Manifest> = whole.filter(imported).collect();
        if let Some(found) = known.iter().find(|manifest| manifest.model == self.name) {
            return Ok(found.id.clone());
        }
        known.dedup_by_key(|manifest| &manifest.model);
        let names: Vec<&str> = known.iter().map(|manifest| manifest.model.as_str()).collect();
        let there = if names.is_empty() { String::new() } else { format!(" (there is {})", names.join(", ")) };
        bail!("nothing was imported as {}{there}: fireval import RESULTS.json --name NAME", self.name)
    }

    /// The engine that runs it within `memory`; `id` is what `id` gave.
    pub fn open(&self, id: &ModelId, memory: Memory) -> Result<Box<dyn Engine>> {
        if let Source::Scripted(name) = &self.source {
            return Ok(Box::new(ScriptedEngine::new(name)?));
        }
        let checkpoint = self.checkpoint()?;
        let held = Held { dtype: Dtype::parse(&id.dtype)?, nf4: id.quantization.is_some() };
        open::open(self.stored(&checkpoint, held, memory), id).with_context(|| format!("model `{}`", self.name))
    }

    /// How fast one layer of it runs here, and what all of it would need.
    pub fn probe(&self, memory: Memory) -> Result<Probe> {
        let path = self.checkpoint()?;
        let dtype = self.dtype.map_or_else(|| own_dtype(&Checkpoint::open(&path)?), Ok)?;
        let held = Held { dtype, nf4: self.quantization == Some(Quantization::Nf4) };
        open::probe(self.stored(&path, held, memory)).with_context(|| format!("model `{}`", self.name))
    }

    fn stored<'a>(&'a self, checkpoint: &'a Path, held: Held, memory: Memory) -> Stored<'a> {
        Stored { checkpoint, adapter: self.adapter.as_deref(), home: self.home, held, memory }
    }

    /// Its shape.
    pub fn config(&self) -> Result<ModelConfig> {
        let checkpoint = Checkpoint::open(&self.checkpoint()?)?;
        ModelConfig::of(&checkpoint)
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::open(&self.checkpoint()?).with_context(|| format!("model `{}`", self.name))
    }

    /// The chat template of its tokenizer.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let tokenizer = self.tokenizer()?;
        let template = tokenizer.chat_template();
        let template =
            template.with_context(|| format!("model `{}`: its tokenizer has no chat template", self.name))?;
        ChatTemplate::new(template, tokenizer.bos_text(), tokenizer.eos_text())
            .with_context(|| format!("model `{}`: its chat template", self.name))
    }
}

/// `path`, or the one GGUF file of a folder that is no Hugging Face folder.
fn only_gguf(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(path.to_owned());
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("can't read the folder {}", path.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    files.sort();
    match files.len() {
        0 => bail!("{}: no model, since it has neither a config.json nor a .gguf file", path.display()),
        1 => Ok(files.swap_remove(0)),
        count => bail!("{}: {count} .gguf files; name one of them", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_one_gguf_file_is_that_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = || only_gguf(folder.path()).unwrap_err().to_string();
        assert!(error().contains("neither a config.json"));
        std::fs::write(folder.path().join("a.gguf"), "").unwrap();
        assert_eq!(only_gguf(folder.path()).unwrap(), folder.path().join("a.gguf"));
        std::fs::write(folder.path().join("b.gguf"), "").unwrap();
        assert!(error().contains("2 .gguf files"));
        std::fs::write(folder.path().join("config.json"), "").unwrap();
        assert_eq!(only_gguf(folder.path()).unwrap(), folder.path());
    }

    #[test]
    fn models_without_weights_say_so() {
        let spec = ModelSpec::plain("scripted:a", Source::Scripted("a".to_owned()));
        assert!(spec.checkpoint().unwrap_err().to_string().contains("test engine"));
        let gone = ModelSpec::plain("x", Source::Checkpoint("no/such/folder".into()));
        assert!(gone.checkpoint().unwrap_err().to_string().contains("no/such/folder"));
    }
}
