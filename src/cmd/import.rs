//! `fireval import RESULTS.json`: what lm-evaluation-harness measured, as runs that can be compared.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::measure::SourceFlags;
use super::{Verdict, Workplace, output};
use crate::eval::{self, Run, Subject};
use crate::exchange::lm_eval::Recorded;
use crate::project::IMPORTED;

/// Read results of lm-evaluation-harness 0.4 with their samples, as a model `imported:NAME` for compare, flips and export.
///
/// Every prompt has to be what the protocol asks of its row, so the benchmark's rows are needed as in an evaluation.
#[derive(clap::Args)]
pub struct Args {
    /// The harness's results_<date>.json, with its samples_*.jsonl beside it (lm_eval --log_samples).
    #[arg(value_name = "RESULTS.json")]
    file: PathBuf,
    /// What follows `imported:` in the model's name [default: the file's model_name].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The samples, where they are not beside the results.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    samples: Vec<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
}

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let recorded = Recorded::read(&args.file, &args.samples, args.name.as_deref(), args.source.protocol)?;
    let subject = Subject { name: format!("{IMPORTED}{}", recorded.name), id: recorded.id.clone() };
    ensure_free(place, &subject)?;
    let mut text = String::new();
    for paired in recorded.pair(&args.source.data(place))? {
        let answers = |document: &_| paired.responses(document);
        let run = eval::record(&subject, &paired.questions, &answers, &paired.conditions, &place.store)?;
        text.push_str(&line(&run)?);
    }
    if !recorded.left_out.is_empty() {
        text.push_str(&format!("left out, since fireval has no such tasks: {}\n", recorded.left_out.join(", ")));
    }
    output::print(&text)?;
    Ok(Verdict::Done)
}

/// A name stands for one model.
fn ensure_free(place: &Workplace, subject: &Subject) -> Result<()> {
    for (path, manifest) in place.store.manifests()? {
        ensure!(
            manifest.model != subject.name || manifest.id == subject.id,
            "{} is another model already (another version, other model arguments: {}); give this one a --name",
            subject.name,
            path.display()
        );
    }
    Ok(())
}

fn line(run: &Run) -> Result<String> {
    let (manifest, estimate) = (&run.manifest, run.manifest.reported()?);
    let mark = if manifest.partial { " (part)" } else { "" };
    Ok(format!(
        "{}  {}  {}  {} {:.2}  {} documents{mark}\n",
        manifest.model,
        manifest.protocol.name(),
        manifest.task,
        manifest.metric,
        estimate.value * 100.0,
        manifest.documents
    ))
}
