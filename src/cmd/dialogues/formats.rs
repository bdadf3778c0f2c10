//! `fireval dialogues formats FILE --model M`: one dialogue in every format, token beside token.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Print, mask};
use crate::cmd::{Exit, Workplace, output};
use crate::dialogue::format::{Example, Format, Formatter};
use crate::dialogue::spelling::KEYS;
use crate::dialogue::{Dialogue, Fault};
use crate::report::terminal::grid;
use crate::rows::RowStream;
use crate::tokenizer::Tokenizer;

/// Show one dialogue's tokens in every format side by side, with the first difference marked.
#[derive(clap::Args)]
pub struct Args {
    /// A file of dialogues.
    file: PathBuf,
    /// Whose tokens.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The dialogue on this line of the file (of Parquet files, this row), from 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    line: usize,
    /// Show at most so many tokens of each (JSON has all).
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: usize,
    #[arg(long, default_value = "table")]
    format: Print,
}

/// The dialogue in one format, or why it has none.
struct Column {
    format: Format,
    example: Result<Example>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let tokenizer = place.project.resolve(&args.model)?.tokenizer()?;
    let dialogue = dialogue(&args.file, args.line)?;
    let columns: Vec<Column> = Format::ALL
        .into_iter()
        .map(|format| {
            let formatter = Formatter::new(format, &tokenizer, usize::MAX);
            Column { format, example: formatter.and_then(|formatter| formatter.example(&dialogue)) }
        })
        .collect();
    let text = match args.format {
        Print::Table => table(&dialogue.place, &columns, &tokenizer, args.tokens),
        Print::Json => super::json(&as_json(&dialogue.place, &columns, &tokenizer))?,
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

fn dialogue(file: &Path, line: usize) -> Result<Dialogue> {
    let mut rows = RowStream::open_columns(file, &KEYS)?;
    loop {
        let batch = rows.batch(1 << 20)?;
        if batch.is_empty() {
            bail!("{} has no row on line {line}", file.display());
        }
        let Some(row) = batch.iter().find(|row| row.number == line) else { continue };
        return match Dialogue::read(rows.place(), row) {
            Ok(dialogue) => Ok(dialogue),
            Err(Fault::Malformed(error) | Fault::EmptyTurn(error)) => Err(error),
            Err(Fault::WithoutAnswer) => bail!("{}, line {line}: there is no answer", file.display()),
        };
    }
}

/// Where the tokens of `a` and `b` first differ, one of them ending there perhaps; none where they are equal.
fn first_difference(a: &Example, b: &Example) -> Option<usize> {
    let equal = a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
    (equal < a.ids.len().max(b.ids.len())).then_some(equal)
}

fn table(place: &str, columns: &[Column], tokenizer: &Tokenizer, most: usize) -> String {
    let made: Vec<(Format, &Example)> =
        columns.iter().filter_map(|column| Some((column.format, column.example.as_ref().ok()?))).collect();
    let mut text = format!("{place}\n");
    for column in columns {
        text.push_str(&headline(column, &made));
    }
    let Some(&(_, first)) = made.first() else { return text };
    let mark = made.iter().filter_map(|(_, example)| first_difference(first, example)).min();
    let mut lines = vec![vec!["token".to_owned()]];
    lines[0].extend(made.iter().map(|(format, _)| format.to_string()));
    let longest = made.iter().map(|(_, example)| example.ids.len()).max().unwrap_or(0);
    for index in 0..longest.min(most) {
        let marked = if mark == Some(index) { "first difference → " } else { "" };
        let mut line = vec![format!("{marked}{index}")];
        line.extend(made.iter().map(|(_, example)| cell(example, index, tokenizer)));
        lines.push(line);
    }
    text.push_str(&grid(lines, 0, None));
    let more = longest.saturating_sub(most);
    text + &if more > 0 { format!("\n{more} more (--tokens N)\n") } else { "\n".to_owned() }
}

fn headline(column: &Column, made: &[(Format, &Example)]) -> String {
    let example = match &column.example {
        Ok(example) => example,
        Err(error) => return format!("{}: none ({error:#})\n", column.format),
    };
    let (learnt, tokens) = (example.learnt.iter().filter(|&&learnt| learnt).count(), example.ids.len());
    let differs = match made.first().map(|(format, first)| (*format, first_difference(first, example))) {
        Some((format, Some(at))) => format!("; differs from {format} from token {at} on"),
        Some((format, None)) if format != column.format => format!("; the tokens of {format}"),
        Some((_, None)) | None => String::new(),
    };
    format!("{}: {tokens} tokens, {learnt} learnt{differs}\n", column.format)
}

/// `733 "[" `, with a star where it is learnt.
fn cell(example: &Example, index: usize, tokenizer: &Tokenizer) -> String {
    let Some((&id, &learnt)) = example.ids.get(index).zip(example.learnt.get(index)) else { return String::new() };
    let token = tokenizer.token(id).unwrap_or_default();
    format!("{token} {id}{}", if learnt { " *" } else { "  " })
}

fn as_json(place: &str, columns: &[Column], tokenizer: &Tokenizer) -> Value {
    let first = columns.iter().find_map(|column| column.example.as_ref().ok());
    let formats: Vec<Value> = columns
        .iter()
        .map(|column| match &column.example {
            Ok(example) => json!({
                "format": column.format,
                "first_difference": first.and_then(|first| first_difference(first, example)),
                "tokens": mask::listed(example, tokenizer),
            }),
            Err(error) => json!({"format": column.format, "error": format!("{error:#}")}),
        })
        .collect();
    json!({"place": place, "formats": formats})
}
