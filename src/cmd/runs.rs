//! `fireval runs`: what the results folder holds.

use anyhow::Result;

use super::{Verdict, Workplace, output};
use crate::store::Manifest;

/// List stored runs: model, digest, protocol, task, score, documents, date.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(place: &Workplace, Args {}: Args) -> Result<Verdict> {
    let runs = place.store.manifests()?;
    let mut text = String::new();
    for (_, run) in &runs {
        text.push_str(&line(run)?);
    }
    if runs.is_empty() {
        text = format!("no runs in {} yet: `fireval eval MODEL` makes some\n", place.store.root().display());
    }
    output::print(&text)?;
    Ok(Verdict::Done)
}

fn line(run: &Manifest) -> Result<String> {
    let estimate = run.reported()?;
    let stderr = estimate.stderr.map(|stderr| format!(" ±{:.2}", stderr * 100.0)).unwrap_or_default();
    let mark = if run.partial { " (part)" } else { "" };
    let chat = if run.chat_template { " chat" } else { "" };
    Ok(format!(
        "{}  {}  {}{chat}  {}  {} {:.2}{stderr}  {} documents{mark}  {}\n",
        run.model,
        &run.id.digest()[..12],
        run.protocol.name(),
        run.task,
        run.metric,
        estimate.value * 100.0,
        run.documents,
        run.date
    ))
}
