//! What stands on one side of a gate.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::super::measure::Measurement;
use crate::eval::{NamedModel, Run};
use crate::gate::baseline::Baseline;
use crate::model::home::Home;
use crate::project::{ModelSpec, Project, Source};
use crate::protocol::Protocol;
use crate::store::{Manifest, Store};

/// A baseline or a candidate.
pub enum Side {
    /// As `compare` takes it.
    Model(String),
    /// A folder of stored runs: the model itself need not be here.
    Runs(StoredRuns),
    /// A committed file.
    File(Box<Baseline>),
}

/// `results/runs/<model>-<digits>`, of any results folder.
pub struct StoredRuns {
    store: Store,
    model: NamedModel,
}

impl Side {
    /// A name is a model as everywhere; of paths a file that ends in `.json` is a baseline, a folder of manifests a model's
    /// runs; all else is a model.
    pub fn of(project: &Project, text: &str) -> Result<Side> {
        if project.names(text) {
            return Ok(Side::Model(text.to_owned()));
        }
        let path = Path::new(text);
        if path.extension().is_some_and(|ending| ending == "json") && !path.is_dir() {
            return Ok(Side::File(Box::new(Baseline::read(path)?)));
        }
        match manifest_in(path)? {
            Some(manifest) => Ok(Side::Runs(StoredRuns::of(path, manifest)?)),
            None => Ok(Side::Model(text.to_owned())),
        }
    }
}

impl StoredRuns {
    fn of(folder: &Path, manifest: Manifest) -> Result<StoredRuns> {
        let whole = folder.canonicalize().with_context(|| format!("can't read {}", folder.display()))?;
        let runs = whole.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "runs"));
        let root = runs.and_then(Path::parent);
        let root = root.with_context(|| {
            format!("{}: a model's runs lie in the folder runs of a results folder", folder.display())
        })?;
        Ok(StoredRuns { store: Store::new(root), model: NamedModel { name: manifest.model, id: manifest.id } })
    }

    pub fn name(&self) -> String {
        self.model.name.clone()
    }

    /// A stand-in for the model, which is nowhere: good for a name, and for questions without a chat template.
    pub fn spec(&self) -> ModelSpec {
        ModelSpec {
            name: self.model.name.clone(),
            source: Source::Checkpoint(PathBuf::from(&self.model.name)),
            adapter: None,
            dtype: None,
            quantization: None,
            home: Home::default(),
        }
    }

    /// The runs on the documents that `spec` is asked.
    pub fn read(&self, measurement: &mut Measurement, spec: &ModelSpec) -> Result<Vec<Run>> {
        ensure!(
            !measurement.conditions.chat_template,
            "{}: a folder of runs says nothing of the chat template; name the model itself, or save a baseline",
            self.model.name
        );
        measurement.stored(&self.model, &self.store, spec)
    }
}

/// The first manifest of a folder's protocols that can be read; other folders in it, as those of checkpoints, hold none.
fn manifest_in(folder: &Path) -> Result<Option<Manifest>> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        paths
    };
    let protocols = Protocol::value_variants().iter().map(|protocol| folder.join(protocol.name()));
    let files = protocols.flat_map(|protocol| entries(&protocol));
    let manifest = files.filter(|file| file.extension().is_some_and(|ending| ending == "json"));
    let found: Vec<Result<Manifest>> = manifest.filter_map(|file| Manifest::read(&file).transpose()).collect();
    let whole = found.iter().position(Result::is_ok).unwrap_or(0);
    found.into_iter().nth(whole).transpose()
}
