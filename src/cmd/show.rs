//! `fireval show TASK N`: what a model sees for one document.

use std::sync::Arc;

use anyhow::Result;

use super::measure::{SourceFlags, load_task};
use super::prompts::document_of_row;
use super::{Exit, Workplace, output};
use crate::engine::tokens::Encoder;
use crate::model::config::ModelConfig;
use crate::protocol::Protocol;
use crate::request::Request;
use crate::task::Document;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;

/// Show what a model sees for one document: prompt and continuations, and with --model the tokens.
#[derive(clap::Args)]
pub struct Args {
    /// A task, such as arc_challenge or mmlu/astronomy.
    task: String,
    /// The document's row in the official split (of the subject), from 0.
    row: usize,
    #[command(flatten)]
    source: SourceFlags,
    /// Show this model's tokens, what is scored in «marks».
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let task = load_task(place, &args.task)?;
    let protocol = args.source.protocol(place);
    let documents = task.documents(protocol, &args.source.data(place), None, None)?;
    let document = document_of_row(documents, task.name(), args.row)?;
    let mut text = format!("{} document {} by {}\n", document.subtask, document.row, protocol.name());
    text.push_str(&format!("sha256 of the requests: {}\n", document.digest));
    text.push_str(&requests(&document));
    if let Some(model) = &args.model {
        text.push_str(&tokens(place, model, protocol, &document)?);
    }
    output::print(&text)?;
    Ok(Exit::Done)
}

/// Each different context once, followed by the continuations that it is asked with.
fn requests(document: &Document) -> String {
    let mut text = String::new();
    let mut last: Option<&Arc<str>> = None;
    for (index, request) in document.requests.iter().enumerate() {
        let (Request::LogLikelihood { context, .. } | Request::Generate { context, .. }) = request;
        if last != Some(context) {
            text.push_str(&format!("--- context ---\n{context}\n--- end of context ---\n"));
            last = Some(context);
        }
        match request {
            Request::LogLikelihood { continuation, .. } => text.push_str(&format!("{index}: {continuation:?}\n")),
            Request::Generate { stop, max_tokens, .. } => {
                text.push_str(&format!("{index}: at most {max_tokens} new tokens, until one of {stop:?}\n"));
            }
        }
    }
    text
}

fn tokens(place: &Workplace, model: &str, protocol: Protocol, document: &Document) -> Result<String> {
    let path = place.project.resolve(model)?.checkpoint()?;
    let tokenizer = Tokenizer::open(&path)?;
    let checkpoint = Checkpoint::open(&path)?;
    let config = ModelConfig::of(&checkpoint)?;
    let encoder =
        Encoder { tokenizer: &tokenizer, protocol: Some(protocol), max_length: config.max_position_embeddings };
    let spelled = |ids: &[u32]| -> Result<String> {
        let pieces: Result<Vec<String>> =
            ids.iter().map(|&id| Ok(format!("{id}:{:?}", tokenizer.decode(&[id])?))).collect();
        Ok(pieces?.join(" "))
    };
    let mut text = String::new();
    for (index, request) in document.requests.iter().enumerate() {
        let line = match request {
            Request::LogLikelihood { .. } => {
                let pair = encoder.pairs(std::slice::from_ref(request))?.remove(0);
                format!("{} «{}»", spelled(pair.context())?, spelled(pair.continuation())?)
            }
            Request::Generate { context, max_tokens, .. } => spelled(&encoder.prompt(context, *max_tokens)?)?,
        };
        text.push_str(&format!("--- tokens of {index} ---\n{line}\n"));
    }
    Ok(text)
}
