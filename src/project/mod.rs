//! `fireval.toml`: names for models, where the data is, what is measured by default.
//!
//! Paths in it are relative to it. Without one, models are named by path, repository or scheme, and results are kept in
//! the working folder.

mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

pub use model::{ModelSpec, Source};

use crate::hub::Repository;
use crate::model::home::Home;
use crate::model_id::Quantization;
use crate::protocol::Protocol;
use crate::published;
use crate::settings;
use crate::task::DataSource;
use crate::weights::Dtype;

pub const FILE: &str = "fireval.toml";

/// What the name of a model begins with whose answers another program gave.
pub const IMPORTED: &str = "imported:";
/// What names of models begin with that are no names of the project's file.
const SCHEMES: [&str; 3] = ["scripted:", "published:", IMPORTED];

/// The file, key by key.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default)]
    model: BTreeMap<String, WireModel>,
    #[serde(default)]
    data: WireData,
    #[serde(default)]
    eval: WireEval,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireModel {
    path: Option<PathBuf>,
    hub: Option<String>,
    revision: Option<String>,
    adapter: Option<PathBuf>,
    dtype: Option<Dtype>,
    quantization: Option<Quantization>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireData {
    dir: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEval {
    suite: Option<String>,
    tasks: Option<Vec<String>>,
    task_dir: Option<PathBuf>,
    protocol: Option<Protocol>,
    limit: Option<usize>,
    chat_template: Option<bool>,
}

/// What is measured when no flag says otherwise.
#[derive(Clone, Debug, Default)]
pub struct EvalSettings {
    pub suite: Option<String>,
    pub tasks: Option<Vec<String>>,
    /// A folder whose task files stand before the built-in ones.
    pub task_dir: Option<PathBuf>,
    pub protocol: Option<Protocol>,
    pub limit: Option<usize>,
    pub chat_template: bool,
}

/// An opened project.
#[derive(Clone, Debug)]
pub struct Project {
    /// The folder of `fireval.toml`, or the working folder.
    folder: PathBuf,
    models: BTreeMap<String, ModelSpec>,
    pub data: Option<DataSource>,
    pub eval: EvalSettings,
}

impl Project {
    /// Opens `file`, or `fireval.toml` of the working folder if there is one.
    pub fn open(file: Option<&Path>) -> Result<Project> {
        let path = match file {
            Some(file) => file.to_owned(),
            None if Path::new(FILE).exists() => PathBuf::from(FILE),
            None => return Project::read("", Path::new(FILE)),
        };
        let place = || format!("can't read the project file {}", path.display());
        Project::read(&std::fs::read_to_string(&path).with_context(place)?, &path)
    }

    fn read(text: &str, path: &Path) -> Result<Project> {
        let place = path.display().to_string();
        let wire: Wire = settings::parse(text, &place)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut models = BTreeMap::new();
        for (name, model) in wire.model {
            check_name(&name).and_then(|()| check_scheme(&name)).with_context(|| format!("{place}: [model]"))?;
            let spec = model.check(&name, &folder).with_context(|| format!("{place}: [model.{name}]"))?;
            models.insert(name, spec);
        }
        ensure!(wire.eval.limit != Some(0), "{place}: [eval] a limit of 0 documents leaves nothing to score");
        Ok(Project {
            models,
            data: wire.data.dir.map(|dir| data_source(&dir, &folder)),
            eval: EvalSettings {
                suite: wire.eval.suite,
                tasks: wire.eval.tasks,
                task_dir: wire.eval.task_dir.map(|dir| folder.join(dir)),
                protocol: wire.eval.protocol,
                limit: wire.eval.limit,
                chat_template: wire.eval.chat_template.unwrap_or(false),
            },
            folder,
        })
    }

    /// Where runs are kept unless a flag says otherwise.
    pub fn results(&self) -> PathBuf {
        self.folder.join("results")
    }

    /// Whether `text` is a model's name whatever may lie in a file or folder of that name.
    pub fn names(&self, text: &str) -> bool {
        self.models.contains_key(text) || SCHEMES.iter().any(|head| text.starts_with(head))
    }

    /// The model that `text` names: one of this file's, `scripted:NAME`, `published:ORG/NAME[@PRECISION]`, `imported:NAME`, a
    /// folder, a GGUF file, or a repository of the hub `org/name[@revision]`.
    pub fn resolve(&self, text: &str) -> Result<ModelSpec> {
        if let Some(spec) = self.models.get(text) {
            return Ok(spec.clone());
        }
        if let Some(name) = text.strip_prefix("scripted:") {
            return Ok(ModelSpec::plain(text, Source::Scripted(name.to_owned())));
        }
        if let Some(name) = text.strip_prefix("published:") {
            return Ok(ModelSpec::plain(text, Source::Published(published::find(name)?)));
        }
        if let Some(name) = text.strip_prefix(IMPORTED) {
            return Ok(ModelSpec::plain(text, Source::Imported(name.to_owned())));
        }
        if Path::new(text).exists() {
            return Ok(ModelSpec::plain(text, Source::Checkpoint(PathBuf::from(text))));
        }
        match Repository::parse(text) {
            Some(repository) => Ok(ModelSpec::plain(text, Source::Hub(repository))),
            None => bail!("{}", self.unknown(text)),
        }
    }

    fn unknown(&self, text: &str) -> String {
        let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
        let near = settings::closest(text, known.iter().copied());
        let hint = match (near, known.is_empty()) {
            (Some(near), _) => format!("did you mean `{near}`? "),
            (None, false) => format!("{FILE} has {}; ", known.join(", ")),
            (None, true) => String::new(),
        };
        format!(
            "there is no model `{text}`: {hint}a model is a name of {FILE}, a folder, a .gguf file, a repository of the hub \
             (org/name), published:org/name or imported:name"
        )
    }
}

/// Refuses control characters in a name that others wrote: after a line end in it, tables, logs and YAML would have a line
/// of their making.
pub fn check_name(name: &str) -> Result<()> {
    ensure!(!name.chars().any(char::is_control), "{name:?} has control characters, as a line end: leave them out");
    Ok(())
}

/// Refuses a name that would hide what its scheme stands for.
fn check_scheme(name: &str) -> Result<()> {
    match SCHEMES.iter().find(|head| name.starts_with(*head)) {
        Some(head) => bail!("{name:?}: `{head}` begins names of another kind; give the model a name without it"),
        None => Ok(()),
    }
}

/// `dir` of `[data]`: `hub`, `bundled`, or a folder beside the file.
fn data_source(dir: &str, folder: &Path) -> DataSource {
    match DataSource::parse(dir) {
        DataSource::Folder(dir) => DataSource::Folder(folder.join(dir)),
        other @ (DataSource::Hub | DataSource::Bundled) => other,
    }
}

impl WireModel {
    fn check(self, name: &str, folder: &Path) -> Result<ModelSpec> {
        let source = match (self.path, self.hub, self.revision) {
            (Some(path), None, None) => Source::Checkpoint(folder.join(path)),
            (None, Some(hub), revision) => {
                let named = match &revision {
                    Some(revision) => format!("{hub}@{revision}"),
                    None => hub.clone(),
                };
                let repository = Repository::parse(&named);
                Source::Hub(
                    repository.with_context(|| format!("hub = {hub:?}: not the name of a repository (org/name)"))?,
                )
            }
            (Some(_), None, Some(_)) => bail!("`revision` goes with `hub`, not with `path`"),
            (Some(_), Some(_), _) => bail!("either `path` or `hub`, not both"),
            (None, None, _) => bail!("give `path` (a folder or a GGUF file) or `hub` (a repository)"),
        };
        Ok(ModelSpec {
            name: name.to_owned(),
            source,
            adapter: self.adapter.map(|adapter| folder.join(adapter)),
            dtype: self.dtype,
            quantization: self.quantization,
            home: Home::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Project> {
        Project::read(text, Path::new("some/fireval.toml"))
    }

    fn error(text: &str) -> String {
        format!("{:#}", read(text).unwrap_err())
    }

    #[test]
    fn models_have_their_paths_beside_the_file() {
        let project = read(
            "[model.base]\npath = \"models/base\"\n\
             [model.ft]\npath = \"models/base\"\nadapter = \"a\"\nquantization = \"nf4\"\ndtype = \"bf16\"\n\
             [model.big]\nhub = \"org/big\"\nrevision = \"abc\"\n\
             [data]\ndir = \"data\"\n[eval]\nprotocol = \"lm-eval-latest\"\nlimit = 3",
        )
        .unwrap();
        assert_eq!(project.resolve("base").unwrap().source, Source::Checkpoint("some/models/base".into()));
        let ft = project.resolve("ft").unwrap();
        assert_eq!(ft.adapter, Some("some/a".into()));
        assert_eq!((ft.dtype, ft.quantization), (Some(Dtype::BF16), Some(Quantization::Nf4)));
        let big = Repository { name: "org/big".to_owned(), revision: Some("abc".to_owned()), file: None };
        assert_eq!(project.resolve("big").unwrap().source, Source::Hub(big));
        assert_eq!(project.data, Some(DataSource::Folder("some/data".into())));
        assert_eq!((project.eval.protocol, project.eval.limit), (Some(Protocol::LmEvalLatest), Some(3)));
        assert_eq!(project.results(), Path::new("some/results"));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        assert!(error("[model.base]\npaht = \"x\"").contains("some/fireval.toml, line 2"));
        assert!(error("[model.base]\npaht = \"x\"").contains("did you mean `path`?"));
        assert!(error("[model.base]").contains("[model.base]"));
        assert!(error("[model.base]\npath = \"x\"\nhub = \"a/b\"").contains("not both"));
        assert!(error("[model.base]\npath = \"x\"\nrevision = \"b\"").contains("`revision`"));
        assert!(error("[model.base]\nhub = \"x\"").contains("org/name"));
        assert!(error("[model.base]\npath = \"x\"\ndtype = \"f64\"").contains("f64"));
        assert!(error("[eval]\nlimit = 0").contains("limit"));
        assert!(error("[eval]\nprotocol = \"latest\"").contains("leaderboard-v1"));
        assert!(error("[data]\nfolder = \"x\"").contains("`folder`"));
        assert!(error("[model.\"x\\n::error::y\"]\npath = \"x\"").contains("[model]: \"x\\n::error::y\" has control"));
        for scheme in SCHEMES {
            let error = error(&format!("[model.\"{scheme}a\"]\npath = \"x\""));
            assert!(error.contains(&format!("[model]: \"{scheme}a\": `{scheme}` begins")), "{error}");
        }
    }

    #[test]
    fn models_without_a_name_are_paths_repositories_or_schemes() {
        let project = read("[model.instruct]\npath = \"x\"").unwrap();
        let source = |text: &str| project.resolve(text).unwrap().source;
        assert_eq!(source("scripted:a"), Source::Scripted("a".to_owned()));
        assert!(matches!(source("published:mistralai/Mixtral-8x7B-v0.1"), Source::Published(_)));
        assert_eq!(source("imported:org/name"), Source::Imported("org/name".to_owned()));
        assert!(matches!(source("org/name@rev"), Source::Hub(_)));
        assert!(matches!(source("."), Source::Checkpoint(_)));
        let error = |text: &str| project.resolve(text).unwrap_err().to_string();
        assert!(error("instrukt").contains("did you mean `instruct`?"));
        assert!(error("zzzzzzz").contains("fireval.toml has instruct"));
        assert!(["instruct", "scripted:a", "imported:results.json"].into_iter().all(|text| project.names(text)));
        assert!(!["results.json", "org/name", "."].into_iter().any(|text| project.names(text)));
    }
}
