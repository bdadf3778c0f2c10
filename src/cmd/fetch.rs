//! `fireval fetch REPOSITORY`: a model from the hub.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Exit, output};
use crate::hub::{self, Repository};

/// Fetch a model from the Hugging Face hub, into its usual cache or a folder.
///
/// HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
#[derive(clap::Args)]
pub struct Args {
    /// org/name, org/name@revision, or org/name:file.gguf.
    repository: String,
    /// Copy the files to this new folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Exit> {
    let repository = Repository::parse(&args.repository);
    let repository = repository
        .with_context(|| format!("`{}` is not the name of a repository (org/name[@revision])", args.repository))?;
    if let Some(out) = &args.out {
        ensure!(!out.exists(), "{} exists already; give another folder, or remove it", out.display());
    }
    let fetched = hub::fetch_model(&repository)?;
    let path = match args.out {
        Some(out) => {
            hub::copy_model(&fetched, &out)?;
            out
        }
        None => fetched,
    };
    output::print(&format!("{}\n", path.display()))?;
    Ok(Exit::Done)
}
