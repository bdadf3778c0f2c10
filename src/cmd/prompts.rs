//! `fireval prompts TASK`: every request, exactly as an engine is fed.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use super::measure::{SourceFlags, count, load_task};
use super::{Exit, Workplace, output};
use crate::request::Request;
use crate::task::Document;

/// Print every request of a task, a line a document, in evaluation order.
#[derive(clap::Args)]
pub struct Args {
    /// A task, such as arc_challenge or mmlu/astronomy.
    task: String,
    #[command(flatten)]
    source: SourceFlags,
    /// At most this many documents of the task and of each MMLU subject.
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<usize>,
    #[arg(long, default_value = "jsonl")]
    format: LineFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LineFormat {
    Jsonl,
}

#[derive(Serialize)]
struct Line<'a> {
    task: &'a str,
    subtask: &'a str,
    doc: usize,
    requests: Vec<Asked<'a>>,
}

#[derive(Serialize)]
struct Asked<'a> {
    context: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<&'a [String]>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let task = load_task(place, &args.task)?;
    let documents = task.documents(args.source.protocol(place), &args.source.data(place), args.limit, None)?;
    let LineFormat::Jsonl = args.format;
    for document in &documents {
        output::print(&line(task.name(), document)?)?;
    }
    Ok(Exit::Done)
}

fn line(task: &str, document: &Document) -> Result<String> {
    let task = task.split('/').next().unwrap_or(task);
    let requests = document.requests.iter().map(asked).collect();
    let line = Line { task, subtask: &document.subtask, doc: document.row, requests };
    Ok(serde_json::to_string(&line)? + "\n")
}

fn asked(request: &Request) -> Asked<'_> {
    match request {
        Request::LogLikelihood { context, continuation } => {
            Asked { context, continuation: Some(continuation), until: None }
        }
        Request::Generate { context, stop, max_tokens: _ } => Asked { context, continuation: None, until: Some(stop) },
    }
}

/// The document of official row `row`; the error says which subtasks have one.
pub fn document_of_row(documents: Vec<Document>, task: &str, row: usize) -> Result<Document> {
    let rows = documents.len();
    let mut found: Vec<Document> = documents.into_iter().filter(|document| document.row == row).collect();
    match found.len() {
        0 => bail!("{task} has no document {row} here (of {rows}; the bundled slice holds only some rows)"),
        1 => Ok(found.swap_remove(0)),
        _ => {
            let subtask = &found[0].subtask;
            bail!("{task} has a document {row} in {} subtasks; name one, as {task}/{subtask}", found.len())
        }
    }
}
