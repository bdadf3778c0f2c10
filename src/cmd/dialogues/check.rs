//! `fireval dialogues check FILE...`: what is wrong with which lines, and what would be learnt.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::mask::{Marks, listed, shown};
use super::{Print, default_format};
use crate::cmd::{Exit, Workplace, output};
use crate::dialogue::check::{Check, Checked, Finding, Limits, Reading, Tokens, check, percent};
use crate::dialogue::format::{Example, Format, Formatter};
use crate::dialogue::pieces::Long;
use crate::language::Language;
use crate::report::terminal::grid;
use crate::tokenizer::Tokenizer;
use crate::train::recipe::Recipe;

/// Check files of dialogues: what is wrong with which lines, and with a model or a recipe what would be learnt. Ends
/// with 1 where a limit is exceeded above which training refuses.
#[derive(clap::Args)]
pub struct Args {
    /// Files of dialogues (.jsonl, .json, .parquet).
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    files: Vec<PathBuf>,
    /// Check this recipe's data, with its model, format, token limit and limits.
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Count this model's tokens and show what is learnt of them.
    #[arg(long, value_name = "MODEL", conflicts_with = "recipe")]
    model: Option<String>,
    /// How dialogues are laid out [default: chat-template if the model has one, else mistral].
    #[arg(long = "as", value_name = "FORMAT", requires = "model")]
    layout: Option<Format>,
    /// Dialogues are cut to so many tokens.
    #[arg(long, value_name = "N", default_value_t = 1024, conflicts_with = "recipe")]
    max_tokens: usize,
    /// What becomes of longer ones: cut, or split between turns.
    #[arg(long, default_value = "cut", conflicts_with = "recipe", value_parser = long)]
    long: Long,
    /// The language that dialogues should be in, as eng.
    #[arg(long, value_name = "CODE", conflicts_with = "recipe")]
    language: Option<Language>,
    /// Show what is learnt of the first so many dialogues.
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,
    /// Lines named of each finding (JSON has all of them).
    #[arg(long, value_name = "N", default_value_t = 5)]
    lines: usize,
    #[arg(long, default_value = "table")]
    format: Print,
}

fn long(text: &str) -> Result<Long, String> {
    match text {
        "cut" => Ok(Long::Cut),
        "split" => Ok(Long::Split),
        _ => Err("cut or split".to_owned()),
    }
}

/// What is asked, by flags or by a recipe.
struct Asked {
    files: Vec<PathBuf>,
    tokenizer: Option<Tokenizer>,
    layout: Option<Format>,
    max_tokens: usize,
    long: Long,
    limits: Limits,
}

impl Asked {
    fn of(place: &Workplace, args: &Args) -> Result<Asked> {
        let open = |model: &str| place.project.resolve(model)?.tokenizer();
        if let Some(recipe) = &args.recipe {
            let recipe = Recipe::read(recipe)?;
            return Ok(Asked {
                files: recipe.data.paths(),
                tokenizer: Some(open(&recipe.model)?),
                layout: Some(recipe.format),
                max_tokens: recipe.max_tokens,
                long: recipe.data.long,
                limits: recipe.data.limits,
            });
        }
        Ok(Asked {
            files: args.files.clone(),
            tokenizer: args.model.as_deref().map(open).transpose()?,
            layout: args.layout,
            max_tokens: args.max_tokens,
            long: args.long,
            limits: Limits { language: args.language, ..Limits::default() },
        })
    }
}

/// A dialogue that is shown.
struct Sample {
    place: String,
    examples: Vec<Example>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    ensure!(args.max_tokens > 1, "--max-tokens is at least 2");
    let asked = Asked::of(place, &args)?;
    let formatter = asked.tokenizer.as_ref().map(|tokenizer| {
        Formatter::new(asked.layout.unwrap_or(default_format(tokenizer)), tokenizer, asked.max_tokens)
    });
    let formatter = formatter.transpose()?;
    let reading = Reading { formatter: formatter.as_ref(), long: asked.long, language: asked.limits.language };
    let mut samples = Vec::new();
    let found = check(&asked.files, &reading, |checked| {
        if samples.len() < args.show {
            samples.extend(sample(checked));
        }
    })?;
    ensure!(found.rows > 0, "{}: no dialogue is there", found.files.join(", "));
    let text = match args.format {
        Print::Table => table(&found, &asked, &samples, args.lines)?,
        Print::Json => super::json(&as_json(&found, &asked, &samples))?,
    };
    output::print(&text)?;
    Ok(if found.exceeded(&asked.limits).is_empty() { Exit::Done } else { Exit::Differs })
}

fn sample(checked: Checked) -> Option<Sample> {
    Some(Sample { place: checked.dialogue.place, examples: checked.pieces?.examples })
}

fn table(check: &Check, asked: &Asked, samples: &[Sample], lines: usize) -> Result<String> {
    let mut text = summary(check);
    let mut rows = vec![["", "rows", "share", "limit", "lines"].map(str::to_owned).to_vec()];
    for finding in Finding::ALL {
        let found = check.findings.get(&finding).map(Vec::as_slice).unwrap_or_default();
        let limit = asked.limits.of(finding);
        let over = if check.share(finding) > limit { " exceeded" } else { "" };
        rows.push(vec![
            finding.name().to_owned(),
            found.len().to_string(),
            percent(check.share(finding)),
            format!("{}{over}", percent(limit)),
            check.lines(found, lines),
        ]);
    }
    text.push_str(&grid(rows, 1, output::terminal_width()));
    text.push('\n');
    let marks = if std::io::stdout().is_terminal() { Marks::Colour } else { Marks::Quotes };
    for sample in samples {
        let tokenizer = asked.tokenizer.as_ref().context("a sample has tokens")?;
        for example in &sample.examples {
            let (tokens, learnt) = (example.ids.len(), example.target_count());
            text.push_str(&format!("--- {}: {tokens} tokens, {learnt} learnt ---\n", sample.place));
            text.push_str(&shown(example, tokenizer, marks)?);
            text.push('\n');
        }
    }
    text.extend(check.exceeded(&asked.limits).iter().map(|told| format!("refused: {told}\n")));
    Ok(text)
}

fn summary(check: &Check) -> String {
    let mut text = format!("{} dialogues of {} rows, {} turns\n", check.dialogues, check.rows, check.turns);
    let share = |count: usize| percent(count as f64 / check.dialogues.max(1) as f64);
    let languages: Vec<String> =
        languages(check).iter().map(|(code, count)| format!("{code} {count} ({})", share(*count))).collect();
    text.push_str(&format!("languages: {}\n", languages.join(", ")));
    if let Some(tokens) = &check.tokens {
        text.push_str(&token_lines(tokens));
    }
    text
}

fn token_lines(tokens: &Tokens) -> String {
    let (median, longest) = tokens.median_and_longest();
    let share = percent(tokens.learnt as f64 / tokens.tokens.max(1) as f64);
    format!(
        "tokens: {} in {} examples of at most {}, {} of them learnt ({share}); dialogues have {median} at the median, \
         {longest} at most; {} were split\n",
        tokens.tokens, tokens.examples, tokens.limit, tokens.learnt, tokens.split
    )
}

/// Languages with their dialogues, the most spoken first.
fn languages(check: &Check) -> Vec<(&'static str, usize)> {
    let mut languages: Vec<(&str, usize)> =
        check.languages.iter().map(|(code, &count)| (code.unwrap_or("unclear"), count)).collect();
    languages.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    languages
}

fn as_json(check: &Check, asked: &Asked, samples: &[Sample]) -> Value {
    let findings: Vec<Value> = Finding::ALL
        .into_iter()
        .map(|finding| {
            let found = check.findings.get(&finding).map(Vec::as_slice).unwrap_or_default();
            let lines: Vec<Value> = found
                .iter()
                .map(|found| json!({"file": check.files[found.file], "line": found.line, "detail": found.detail}))
                .collect();
            json!({
                "name": finding.name(),
                "meaning": finding.meaning(),
                "left_out": finding.is_left_out(),
                "rows": found.len(),
                "share": check.share(finding),
                "limit": asked.limits.of(finding),
                "lines": lines,
            })
        })
        .collect();
    json!({
        "files": check.files,
        "rows": check.rows,
        "dialogues": check.dialogues,
        "turns": check.turns,
        "languages": languages(check).into_iter().map(|(code, count)| (code.to_owned(), json!(count))).collect::<serde_json::Map<_, _>>(),
        "tokens": check.tokens.as_ref().map(tokens_json),
        "findings": findings,
        "exceeded": check.exceeded(&asked.limits),
        "samples": samples.iter().map(|sample| sample_json(sample, asked)).collect::<Vec<_>>(),
    })
}

fn tokens_json(tokens: &Tokens) -> Value {
    let (median, longest) = tokens.median_and_longest();
    json!({
        "limit": tokens.limit,
        "examples": tokens.examples,
        "tokens": tokens.tokens,
        "learnt": tokens.learnt,
        "split": tokens.split,
        "median": median,
        "longest": longest,
    })
}

fn sample_json(sample: &Sample, asked: &Asked) -> Value {
    let tokens = |example: &Example| asked.tokenizer.as_ref().map(|tokenizer| listed(example, tokenizer));
    json!({"place": sample.place, "examples": sample.examples.iter().map(tokens).collect::<Vec<_>>()})
}
