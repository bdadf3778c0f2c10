//! `fireval export MODELS…`: what is stored already, as a table or in the forms that other programs read.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::measure::{MeasureFlags, Measurement, Missing, OutputFlags};
use super::{Exit, Workplace, compare, output};
use crate::compare::{self as comparing, Contender, Outcome};
use crate::disk;
use crate::eval::Run;
use crate::exchange::lm_eval::{Export, Measured};
use crate::exchange::model_card::{Card, Source, Wishes};
use crate::project::ModelSpec;
use crate::report::{Format, Table};

/// Print the comparison of stored runs, without evaluating anything, or write them for other programs.
///
/// The digits are those of `compare`. Says what is missing if something is.
#[derive(clap::Args)]
pub struct Args {
    /// Models, the first of which the others are compared with; one for `model-card` and `lm-eval`.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    measure: MeasureFlags,
    /// How it is written [default: table, or what the ending of the output file says].
    #[arg(long)]
    format: Option<ExportFormat>,
    /// Write to this file instead of standard output; a folder for `model-card` and `lm-eval`.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    #[command(flatten)]
    card: CardFlags,
}

/// What only a model card is asked for with.
#[derive(clap::Args)]
#[command(next_help_heading = "Options of --format model-card")]
struct CardFlags {
    /// What the card calls the model [default: the name it was measured by].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the runs can be looked at; without one the card names no source.
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Write scores of a part of a benchmark, marked as such.
    #[arg(long)]
    allow_partial: bool,
}

/// A table, or a form of someone else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExportFormat {
    Table(Format),
    ModelCard,
    LmEval,
}

impl ValueEnum for ExportFormat {
    fn value_variants<'a>() -> &'a [ExportFormat] {
        static ALL: LazyLock<Vec<ExportFormat>> = LazyLock::new(|| {
            let tables = Format::value_variants().iter().map(|format| ExportFormat::Table(*format));
            tables.chain([ExportFormat::ModelCard, ExportFormat::LmEval]).collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            ExportFormat::Table(format) => format.to_possible_value(),
            ExportFormat::ModelCard => Some(
                PossibleValue::new("model-card").help("`model-index` for a model card, and `.eval_results/*.yaml`"),
            ),
            ExportFormat::LmEval => Some(
                PossibleValue::new("lm-eval").help("lm-evaluation-harness' `results_*.json` and `samples_*.jsonl`"),
            ),
        }
    }
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let no_card = args.card.name.is_none() && args.card.source.is_none() && !args.card.allow_partial;
    let wants_card = args.format == Some(ExportFormat::ModelCard);
    ensure!(wants_card || no_card, "--name, --source and --allow-partial go with --format model-card");
    let table = |format| {
        let flags = OutputFlags { format, output: args.output.clone() };
        compare::table(args.measure.measurement(place)?, &args.models, &flags, Missing::Refuse, false)
    };
    match args.format {
        Some(ExportFormat::ModelCard) => {
            model_card(args.measure.measurement(place)?, &args.models, args.card, args.output.as_deref())
        }
        Some(ExportFormat::LmEval) => lm_eval(args.measure.measurement(place)?, &args.models, args.output.as_deref()),
        Some(ExportFormat::Table(format)) => table(Some(format)),
        None => table(None),
    }
}

/// Prints the YAML block, or writes it and the results' files into `folder`.
fn model_card(
    mut measurement: Measurement,
    models: &[String],
    flags: CardFlags,
    folder: Option<&Path>,
) -> Result<Exit> {
    let spec = only(&measurement, models, "a model card")?;
    let contender = [measurement.contender(&spec, Missing::Refuse)?];
    let comparison = comparing::compare(measurement.conditions.protocol, measurement.columns(), &contender)?;
    let source = flags.source.map(|url| Source { url, name: "fireval".to_owned() });
    let wishes = Wishes { name: flags.name, source, allow_partial: flags.allow_partial };
    let card = Card::of(&Table::of(&comparison), &measurement.tasks, runs_of(&contender[0])?, &wishes)?;
    let Some(folder) = folder else {
        output::print(&card.block()?)?;
        return Ok(Exit::Done);
    };
    let block = folder.join("model-index.yaml");
    let results = folder.join(".eval_results");
    disk::make_folder(&results)?;
    disk::replace(&block, card.block()?.as_bytes())?;
    for (name, text) in card.files()? {
        disk::replace(&results.join(name), text.as_bytes())?;
    }
    output::print(&format!(
        "{}: to go between the `---` lines of the model's README.md\n{}: to go into the model's repository as it is\n",
        block.display(),
        results.display()
    ))?;
    Ok(Exit::Done)
}

/// Writes the harness's files of one model into a folder of its name in `folder`.
fn lm_eval(mut measurement: Measurement, models: &[String], folder: Option<&Path>) -> Result<Exit> {
    let folder = folder.context("--format lm-eval writes several files: name a folder with --output DIR")?;
    let spec = only(&measurement, models, "a results file")?;
    let contender = measurement.contender(&spec, Missing::Refuse)?;
    let (data, chat) = (measurement.conditions.data.clone(), measurement.conditions.chat_template);
    let chat_template = if chat { spec.tokenizer()?.chat_template().map(str::to_owned) } else { None };
    let questions = measurement.questions(&spec)?;
    let mut measured = Vec::new();
    for (asked, run) in questions.iter().zip(runs_of(&contender)?) {
        let (task, documents) = (&asked.task, &asked.documents[..]);
        let (records, sizes) = (task.records(&data, documents)?, task.sizes(&data)?);
        measured.push(Measured { task, run, documents, records, sizes });
    }
    let written = Export { model: &spec.name, measured, chat_template }.write(folder)?;
    let lines: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    output::print(&lines)?;
    Ok(Exit::Done)
}

/// The one model that `what` is of.
fn only(measurement: &Measurement, models: &[String], what: &str) -> Result<ModelSpec> {
    let [_] = models else { bail!("{what} is of one model, not of {}", models.len()) };
    Ok(measurement.resolve(models)?.remove(0))
}

fn runs_of(contender: &Contender) -> Result<&[Run]> {
    match &contender.outcome {
        Outcome::Measured(runs) => Ok(runs),
        Outcome::Published(_) => Err(anyhow::anyhow!("{} is a row of the leaderboard", contender.model))
            .context("only what was measured has runs to write"),
    }
}
