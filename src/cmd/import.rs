//! `fireval import RESULTS.json`: what lm-evaluation-harness measured, as runs that can be compared.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::measure::SourceFlags;
use super::{Exit, Workplace, output};
use crate::eval::{self, NamedModel, Run};
use crate::exchange::lm_eval::Recorded;
use crate::project::IMPORTED;
use crate::report::one_line;

/// Read results of lm-evaluation-harness 0.4 with their samples, as a model `imported:NAME` for compare, flips and export.
///
/// Every prompt has to be what the protocol asks of its row, so the benchmark's rows are needed as in an evaluation.
#[derive(clap::Args)]
#[command(mut_arg("protocol", |protocol| protocol.help("Whose rules [default: those that the file was made by]")))]
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

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let recorded = Recorded::read(&args.file, &args.samples, args.name.as_deref(), args.source.protocol)?;
    let model = NamedModel { name: format!("{IMPORTED}{}", recorded.name), id: recorded.id.clone() };
    ensure_free(place, &model)?;
    let mut text = String::new();
    for paired in recorded.pair(&args.source.data(place))? {
        let answers = |document: &_| paired.responses(document);
        let run = eval::record(&model, &paired.questions, &answers, &paired.conditions, &place.store)?;
        text.push_str(&line(&run)?);
    }
    if !recorded.left_out.is_empty() {
        let left_out = one_line(&recorded.left_out.join(", "));
        text.push_str(&format!("left out, since fireval has no such tasks: {left_out}\n"));
    }
    output::print(&text)?;
    Ok(Exit::Done)
}

/// A name stands for one model. A manifest that can't be read says nothing of whose it is.
fn ensure_free(place: &Workplace, model: &NamedModel) -> Result<()> {
    for (path, manifest) in place.store.manifests()? {
        let Ok(manifest) = manifest else { continue };
        ensure!(
            manifest.model != model.name || manifest.id == model.id,
            "{} is another model already (another version, other model arguments: {}); give this one a --name",
            model.name,
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
