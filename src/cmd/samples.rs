//! `fireval samples MODELS… --prompts FILE`: the same chat prompts answered by each model.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::measure::HeldFlags;
use super::{Exit, Workplace, output};
use crate::disk;
use crate::engine::sampling::Sampling;
use crate::progress::Progress;
use crate::project::ModelSpec;
use crate::report;
use crate::samples::{self, Answer, Answering, Conversation, Settings};

/// Answer the same chat prompts with each model, in its own chat template, and print the answers side by side.
///
/// Greedy, or drawn with --temperature: the same seed draws the same answer to a prompt, whatever is asked beside it.
#[derive(clap::Args)]
pub struct Args {
    /// Models.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// One prompt a line, or JSON Lines of messages: [{"role": "user", "content": "…"}] or {"messages": […]}.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// New tokens of an answer, at most.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = tokens)]
    max_tokens: usize,
    /// Draw tokens, their logits divided by this [default: take the likeliest].
    #[arg(long, value_name = "T", value_parser = above_zero)]
    temperature: Option<f64>,
    /// Draw only from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", requires = "temperature", value_parser = share)]
    top_p: Option<f64>,
    /// Of the draws.
    #[arg(long, value_name = "N", requires = "temperature")]
    seed: Option<u64>,
    /// The model whose chat template serves models without one.
    #[arg(long, value_name = "MODEL")]
    template_of: Option<String>,
    #[command(flatten)]
    held: HeldFlags,
    #[arg(long, default_value = "table")]
    format: SheetFormat,
    /// Also keep the answers in this file, which `fireval report --samples FILE` shows.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SheetFormat {
    Table,
    Markdown,
    Json,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    args.held.run.take_threads()?;
    let prompts = samples::read(&args.prompts)?;
    output::check_writable(args.save.as_deref())?;
    let specs = args.held.resolve(place, &args.models)?;
    let other = args.template_of.as_deref().map(|name| place.project.resolve(name)).transpose()?;
    // All of them before any answers: a template that is missing costs no work.
    let asking: Vec<&ModelSpec> = specs.iter().map(|spec| asking(spec, other.as_ref())).collect::<Result<_>>()?;
    let settings = args.settings();
    let mut models = Vec::new();
    let mut columns: Vec<Vec<Answer>> = Vec::new();
    for (spec, asking) in specs.iter().zip(asking) {
        let (model, answers) = answers(place, spec, asking, &prompts, &args)?;
        models.push(model);
        columns.push(answers);
    }
    let sheet = samples::sheet(settings, models, prompts, &columns);
    if let Some(file) = &args.save {
        disk::replace(file, sheet.to_json().as_bytes())?;
    }
    output::print(&match args.format {
        SheetFormat::Table => report::samples::terminal(&sheet, output::terminal_width()),
        SheetFormat::Markdown => report::samples::markdown(&sheet),
        SheetFormat::Json => sheet.to_json(),
    })?;
    Ok(Exit::Done)
}

impl Args {
    fn settings(&self) -> Settings {
        let sampling = self.temperature.map(|temperature| Sampling {
            temperature,
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.seed.unwrap_or(0),
        });
        Settings { sampling, max_tokens: self.max_tokens }
    }
}

/// Whose template asks `spec`: its own, or `other`'s where it has none.
fn asking<'a>(spec: &'a ModelSpec, other: Option<&'a ModelSpec>) -> Result<&'a ModelSpec> {
    if spec.tokenizer()?.chat_template().is_some() {
        return Ok(spec);
    }
    let asking = other.filter(|other| other.tokenizer().is_ok_and(|tokenizer| tokenizer.chat_template().is_some()));
    let name = &spec.name;
    ensure!(
        asking.is_some() || other.is_none(),
        "model `{name}`: neither its tokenizer nor that of --template-of has a chat template"
    );
    asking.ok_or_else(|| {
        anyhow::anyhow!(
            "model `{name}`: its tokenizer has no chat template; name a model whose template is to serve with --template-of"
        )
    })
}

/// A model's answers to all prompts.
fn answers(
    place: &Workplace,
    spec: &ModelSpec,
    asking: &ModelSpec,
    prompts: &[Conversation],
    args: &Args,
) -> Result<(Answering, Vec<Answer>)> {
    let id = spec.id(&place.store)?;
    let template = asking.chat_template()?;
    let mut engine = spec.open(&id, args.held.run.memory())?;
    let progress = Progress::new(&spec.name, "tok");
    let answers = samples::answer(engine.as_mut(), &template, prompts, args.settings(), &progress);
    progress.finish();
    Ok((Answering::new(&spec.name, id, template.source()), answers?))
}

fn tokens(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or("a whole number of tokens, at least 1".to_owned())
}

fn above_zero(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or("a number above 0 (leave the flag out for the likeliest token)".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&share| 0.0 < share && share <= 1.0).ok_or("a number above 0, at most 1".to_owned())
}
