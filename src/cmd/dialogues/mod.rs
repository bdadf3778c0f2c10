//! `fireval dialogues`: what is done with dialogues before a model sees them.

mod check;
mod filter;
mod formats;
mod mask;

use anyhow::{Context, Result};

use super::{Exit, Workplace};
use crate::dialogue::format::Format;

/// Check dialogues, choose the good ones of many, or compare the formats they are laid out in.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    Check(check::Args),
    Filter(filter::Args),
    Formats(formats::Args),
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Print {
    /// For people.
    #[default]
    Table,
    Json,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    match args.action {
        Action::Check(args) => check::run(place, args),
        Action::Filter(args) => filter::run(place, args),
        Action::Formats(args) => formats::run(place, args),
    }
}

/// `chat-template` for a tokenizer that has one, else Mistral's.
fn default_format(tokenizer: &crate::tokenizer::Tokenizer) -> Format {
    match tokenizer.chat_template() {
        Some(_) => Format::ChatTemplate,
        None => Format::Mistral,
    }
}

fn json(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("a report is written")? + "\n")
}
