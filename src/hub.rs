//! Files of the Hugging Face hub [hf-hub], kept in its usual cache (`HF_HOME`); `HF_ENDPOINT` names another hub,
//! `HF_HUB_OFFLINE=1` allows the cache only.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

/// One file of a data set at a revision, downloaded if it is not in the cache.
pub fn dataset_file(repository: &str, revision: &str, file: &str) -> Result<PathBuf> {
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Dataset, revision.to_owned());
    get(repo, file)
}

fn get(repo: Repo, file: &str) -> Result<PathBuf> {
    let name = format!("{file} of {} at {}", repo.url(), repo.revision());
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !["", "0"].contains(&value.as_str())) {
        let cached = Cache::from_env().repo(repo).get(file);
        return cached
            .ok_or_else(|| anyhow!("{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"));
    }
    let api = ApiBuilder::from_env().with_retries(2).build().context("can't set up the hub's client")?;
    api.repo(repo).get(file).with_context(|| format!("can't fetch {name} from the hub"))
}
