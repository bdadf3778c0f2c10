//! The Hugging Face hub [hf-hub]: the files of a repository that a checkpoint needs, into the hub's usual cache.
//!
//! `HF_HOME`, `HF_ENDPOINT`, the stored token or `HF_TOKEN`, and `HF_HUB_OFFLINE` mean what they mean to Python's
//! huggingface_hub. What is complete in the cache is used without asking the network. Weights are taken as safetensors
//! only; a GGUF file has to be named, since a repository holds many.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::weights::{INDEX, SINGLE};

/// Beside the weights; the first two every checkpoint has.
const NEEDED: &[&str] = &["config.json", "tokenizer.json"];
const WELCOME: &[&str] =
    &["tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// A model on the hub: `org/name`, `org/name@revision`, `org/name:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    pub name: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// A GGUF file of the repository.
    pub file: Option<String>,
}

impl Repository {
    /// Reads `org/name[@revision][:file.gguf]`; `None` if it can't be the name of one.
    pub fn parse(text: &str) -> Option<Repository> {
        let (text, file) = match text.split_once(':') {
            Some((before, file)) => (before, Some(file.to_owned())),
            None => (text, None),
        };
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_owned())),
            None => (text, None),
        };
        let (organisation, model) = name.split_once('/')?;
        let word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let revision_fits = revision.as_deref().is_none_or(|revision| !revision.is_empty());
        let file_fits = file.as_deref().is_none_or(|file| file.ends_with(".gguf"));
        (word(organisation) && word(model) && revision_fits && file_fits).then(|| Repository {
            name: name.to_owned(),
            revision,
            file,
        })
    }

    /// As it is written on the command line.
    pub fn describe(&self) -> String {
        let revision = self.revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
        let file = self.file.as_ref().map(|file| format!(":{file}")).unwrap_or_default();
        format!("{}{revision}{file}", self.name)
    }

    fn repo(&self) -> Repo {
        repo(&self.name, RepoType::Model, self.revision.as_deref())
    }
}

/// The folder (or GGUF file) of a model in the cache, fetched as far as it is not there.
pub fn fetch_model(repository: &Repository) -> Result<PathBuf> {
    let cache = cache()?;
    let cached = |file: &str| cache.repo(repository.repo()).get(file);
    if let Some(path) = complete(repository, &cached) {
        return Ok(path);
    }
    let what = repository.describe();
    ensure_online(&what)?;
    let place =
        || format!("can't fetch {what} from the hub; if it can't be reached, give the folder of a copy instead");
    let remote = api()?.repo(repository.repo());
    if let Some(file) = &repository.file {
        return download(&remote, file).with_context(place);
    }
    let info = remote.info().map_err(plain).with_context(place)?;
    let files: BTreeSet<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    for name in NEEDED {
        ensure!(files.contains(*name), "{what}: the repository has no {name}{}", gguf_hint(&files));
    }
    for name in NEEDED.iter().chain(WELCOME).filter(|name| files.contains(**name)) {
        download(&remote, name).with_context(place)?;
    }
    for name in weight_files(&remote, &files, &what).with_context(place)? {
        download(&remote, &name).with_context(place)?;
    }
    complete(repository, &cached)
        .with_context(|| format!("{what}: fetched, but not whole in the cache; fetch it again"))
}

/// A file of a data set, at a pinned revision.
pub fn dataset_file(name: &str, revision: &str, file: &str) -> Result<PathBuf> {
    let repo = repo(name, RepoType::Dataset, Some(revision));
    if let Some(path) = cache()?.repo(repo.clone()).get(file) {
        return Ok(path);
    }
    let what = format!("{name}@{revision}, {file}");
    ensure_online(&what)?;
    download(&api()?.repo(repo), file).with_context(|| {
        format!("can't fetch {what} from the hub; if it can't be reached, give a data folder with --data")
    })
}

/// Copies a fetched model's files to `out`, a folder that is not there yet.
pub fn copy_model(fetched: &Path, out: &Path) -> Result<()> {
    ensure!(!out.exists(), "{} exists already; give another folder, or remove it", out.display());
    let part = out.with_file_name(format!("{}.part", out.file_name().unwrap_or_default().to_string_lossy()));
    let place = || format!("can't copy {} to {}", fetched.display(), part.display());
    std::fs::create_dir_all(&part).with_context(place)?;
    let files: Vec<PathBuf> = if fetched.is_dir() {
        std::fs::read_dir(fetched)
            .with_context(place)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()
            .with_context(place)?
    } else {
        vec![fetched.to_owned()]
    };
    for file in files.iter().filter(|file| file.is_file()) {
        std::fs::copy(file, part.join(file.file_name().unwrap_or_default())).with_context(place)?;
    }
    std::fs::rename(&part, out).with_context(place)
}

/// The model in the cache if all of it is there.
fn complete(repository: &Repository, cached: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(file) = &repository.file {
        return cached(file);
    }
    let config = cached("config.json")?;
    cached("tokenizer.json")?;
    if cached(SINGLE).is_none() {
        for shard in shards(&cached(INDEX)?).ok()? {
            cached(&shard)?;
        }
    }
    config.parent().map(Path::to_owned)
}

/// The weight files of a repository; the index, if it has one, is fetched and comes last.
fn weight_files(remote: &ApiRepo, files: &BTreeSet<String>, what: &str) -> Result<Vec<String>> {
    if files.contains(SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    if files.contains(INDEX) {
        let index = download(remote, INDEX)?;
        return shards(&index);
    }
    let pickle = files.iter().find(|name| name.ends_with(".bin") || name.ends_with(".pth"));
    match pickle {
        Some(name) => {
            bail!("{what}: weights only as {name} (Python pickles are not opened); look for a safetensors copy")
        }
        None => bail!("{what}: the repository has no {SINGLE}{}", gguf_hint(files)),
    }
}

fn gguf_hint(files: &BTreeSet<String>) -> String {
    match files.iter().find(|name| name.ends_with(".gguf")) {
        Some(name) => format!("; name one of its GGUF files, such as `:{name}` after the repository"),
        None => String::new(),
    }
}

/// The files that an index names, without those that would leave the folder.
fn shards(index: &Path) -> Result<Vec<String>> {
    let place = || format!("{}: not an index of shards", index.display());
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(index).with_context(place)?).with_context(place)?;
    let map = json["weight_map"].as_object().with_context(place)?;
    let names: Option<BTreeSet<String>> = map.values().map(|name| name.as_str().map(str::to_owned)).collect();
    let names = names.with_context(place)?;
    let stays = |name: &String| !name.is_empty() && !name.contains(['/', '\\']) && name != "..";
    ensure!(names.iter().all(stays), "{}: a shard's name is a path", index.display());
    Ok(names.into_iter().collect())
}

fn repo(name: &str, kind: RepoType, revision: Option<&str>) -> Repo {
    Repo::with_revision(name.to_owned(), kind, revision.unwrap_or("main").to_owned())
}

/// hf-hub's own `from_env` panics where there is neither `HF_HOME` nor a home directory.
fn cache() -> Result<Cache> {
    Ok(Cache::new(cache_folder(std::env::var_os("HF_HOME"), std::env::home_dir())?))
}

fn cache_folder(hf_home: Option<OsString>, home: Option<PathBuf>) -> Result<PathBuf> {
    let set = hf_home.filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = set.or_else(|| Some(home?.join(".cache/huggingface")));
    let folder =
        folder.context("there is no home directory, so no cache of the hub: set HF_HOME to a folder for it")?;
    Ok(folder.join("hub"))
}

fn api() -> Result<Api> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut builder = ApiBuilder::from_cache(cache()?)
        .with_progress(std::io::stderr().is_terminal())
        .with_retries(3)
        .with_user_agent("fireval", env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint);
    }
    let token = variable("HF_TOKEN");
    if token.is_some() {
        builder = builder.with_token(token);
    }
    builder.build().map_err(plain).context("the hub's client")
}

fn ensure_online(what: &str) -> Result<()> {
    ensure!(
        !std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_true(&value)),
        "{what} is not whole in the hub's cache and HF_HUB_OFFLINE is set; unset it, or give the folder of a copy instead"
    );
    Ok(())
}

/// What huggingface_hub takes for yes (`constants.py`, `ENV_VARS_TRUE_VALUES`).
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn download(remote: &ApiRepo, file: &str) -> Result<PathBuf> {
    remote.get(file).map_err(plain).with_context(|| file.to_owned())
}

/// The client's error with the reason for the two statuses that people meet.
fn plain(error: hf_hub::api::sync::ApiError) -> anyhow::Error {
    let text = error.to_string();
    if text.contains("status: 401") || text.contains("http status: 403") {
        return anyhow!("{text}: no such repository, or a gated one (set HF_TOKEN)");
    }
    if text.contains("status: 404") {
        return anyhow!("{text}: no such repository, revision or file");
    }
    anyhow!(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        let parsed = Repository::parse("mistralai/Mixtral-8x7B-v0.1@4dd4b0f").unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.revision.as_deref()),
            ("mistralai/Mixtral-8x7B-v0.1", Some("4dd4b0f"))
        );
        let gguf = Repository::parse("org/name@main:model.Q4_1.gguf").unwrap();
        assert_eq!(gguf.file.as_deref(), Some("model.Q4_1.gguf"));
        assert_eq!(gguf.describe(), "org/name@main:model.Q4_1.gguf");
        for other in
            ["base", "./base", "/models/base", "a/b/c", "../x", "org/", "/name", "org/name@", "org/name:x.bin", "ö/x"]
        {
            assert_eq!(Repository::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_cache_is_at_hf_home_or_at_home_or_nowhere() {
        let folder = |hf_home: Option<&str>, home: Option<&str>| {
            cache_folder(hf_home.map(OsString::from), home.map(PathBuf::from))
        };
        assert_eq!(folder(Some("/x"), Some("/home/me")).unwrap(), Path::new("/x/hub"));
        for unset in [None, Some("")] {
            assert_eq!(folder(unset, Some("/home/me")).unwrap(), Path::new("/home/me/.cache/huggingface/hub"));
            assert!(folder(unset, None).unwrap_err().to_string().contains("set HF_HOME"));
        }
    }

    #[test]
    fn offline_is_what_python_takes_for_yes() {
        assert!(["1", "on", "Yes", "TRUE"].into_iter().all(is_true));
        assert!(!["", "0", "false", "no", "off", "2"].into_iter().any(is_true));
    }

    #[test]
    fn an_index_names_its_shards_and_no_paths() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        let found = |text: &str| {
            std::fs::write(&index, text).unwrap();
            shards(&index)
        };
        assert_eq!(found("{\"weight_map\":{\"x\":\"b\",\"y\":\"a\",\"z\":\"b\"}}").unwrap(), ["a", "b"]);
        assert!(found("{\"weight_map\":{\"x\":\"../a\"}}").unwrap_err().to_string().contains("path"));
        assert!(found("{}").unwrap_err().to_string().contains("index"));
        assert!(found("{\"weight_map\":{\"x\":1}}").is_err());
    }

    #[test]
    fn a_copy_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (from, out) = (folder.path().join("from"), folder.path().join("models/out"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(from.join("config.json"), "{}").unwrap();
        copy_model(&from, &out).unwrap();
        assert!(out.join("config.json").exists());
        assert!(copy_model(&from, &out).unwrap_err().to_string().contains("exists already"));
    }
}
