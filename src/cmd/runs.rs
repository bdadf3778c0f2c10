//! `fireval runs`: what the results folder holds.

use anyhow::Result;

use super::measure::load_task;
use super::{Exit, Workplace, output};
use crate::report::one_line;
use crate::store::{self, Manifest, Verified};

/// List stored runs: model, digest, protocol, task, score, documents, date. Exit code 1 if one can't be read.
#[derive(clap::Args)]
pub struct Args {
    /// Check them instead: every line's checksum, every manifest's documents and estimates. Exit code 1 if one is wrong.
    #[arg(long)]
    verify: bool,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    if args.verify { verify(place) } else { list(place) }
}

fn verify(place: &Workplace) -> Result<Exit> {
    let verified = store::verify(&place.store, &|name| load_task(place, name))?;
    output::print(&findings(&verified))?;
    Ok(if verified.is_whole() { Exit::Done } else { Exit::Differs })
}

fn findings(verified: &Verified) -> String {
    let mut text = String::new();
    for finding in &verified.findings {
        let mark = if finding.is_wrong { "wrong" } else { "note" };
        text.push_str(&format!("{mark}: {}: {}\n", finding.path.display(), finding.what));
    }
    let wrong = verified.findings.iter().filter(|finding| finding.is_wrong).count();
    text.push_str(&format!(
        "{} documents, {} manifests, {} of them counted again: {}\n",
        verified.documents,
        verified.manifests,
        verified.recounted,
        if wrong == 0 { "all is whole".to_owned() } else { format!("{wrong} things are wrong") }
    ));
    text
}

fn list(place: &Workplace) -> Result<Exit> {
    let runs = place.store.manifests()?;
    let mut text = String::new();
    for (_, run) in &runs {
        match run {
            Ok(run) => text.push_str(&line(run)?),
            Err(error) => text.push_str(&format!("wrong: {}\n", one_line(&format!("{error:#}")))),
        }
    }
    if runs.is_empty() {
        text = format!("no runs in {} yet: `fireval eval MODEL` makes some\n", place.store.root().display());
    }
    output::print(&text)?;
    let is_whole = runs.iter().all(|(_, run)| run.is_ok());
    Ok(if is_whole { Exit::Done } else { Exit::Differs })
}

fn line(run: &Manifest) -> Result<String> {
    let estimate = run.reported()?;
    let stderr = estimate.stderr.map(|stderr| format!(" ±{:.2}", stderr * 100.0)).unwrap_or_default();
    let mark = if run.partial { " (part)" } else { "" };
    let chat = if run.chat_template { " chat" } else { "" };
    Ok(format!(
        "{}  {}  {}{chat}  {}  {} {:.2}{stderr}  {} documents{mark}  {}\n",
        one_line(&run.model),
        &run.id.digest()[..12],
        run.protocol.name(),
        run.task,
        run.metric,
        estimate.value * 100.0,
        run.documents,
        run.date
    ))
}
