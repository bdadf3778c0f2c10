//! The model card: `README.md` beside an adapter or a model, with `loss.svg`, written when a run has ended.
//!
//! It states what was done (the whole recipe, the data's counts and the share of tokens that was learnt, the losses) and
//! what is known of the result: scores are put in later by whoever has them ([`with_scores`]). [`readme`] is a function of
//! the facts alone; the form is that of the hub's cards (YAML between lines of dashes, then Markdown).

pub mod curve;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use curve::{WIDTH as CURVE_WIDTH, curve};

use super::TrainSummary;
use super::data::{Counts, Packed, TrainingData};
use super::log::{self, Entry};
use super::recipe::Recipe;
use crate::disk;

pub const FILE: &str = "README.md";
pub const CURVE_FILE: &str = "loss.svg";

const SCORES: [&str; 2] = ["<!-- scores by fireval -->", "<!-- end of scores -->"];
const NO_SCORES: &str = "None yet: `fireval compare` has not been run on this.";

/// What a card tells.
pub struct Facts<'a> {
    pub recipe: &'a Recipe,
    /// The base model's repository on the hub, where it is one.
    pub repository: Option<&'a str>,
    pub summary: &'a TrainSummary,
    pub counts: Counts,
    /// Examples that an epoch learns from, and that are held out.
    pub examples: [usize; 2],
    /// sha256 of the data in tokens.
    pub data_digest: &'a str,
    pub log: &'a [Entry],
    /// Markdown.
    pub scores: Option<&'a str>,
}

/// Writes the card of a finished run of `recipe` on the model `base` into its folder. Scores that an earlier card has are
/// kept; a README that is no card is left as it is.
pub fn write(recipe: &Recipe, base: &str, data: &TrainingData, summary: &TrainSummary) -> Result<()> {
    let folder = &summary.adapter;
    let earlier = std::fs::read_to_string(folder.join(FILE)).ok();
    if earlier.as_deref().is_some_and(|text| scores_of(text).is_none()) {
        return Ok(());
    }
    let log = log::read(&folder.join(log::FILE))?;
    let facts = Facts {
        recipe,
        repository: repository(base),
        summary,
        counts: data.counts,
        examples: [data.train.len(), data.held_out.len()],
        data_digest: &data.digest(),
        log: &log,
        scores: earlier.as_deref().and_then(scores_of).filter(|scores| *scores != NO_SCORES),
    };
    if let Some(curve) = curve(&log, CURVE_WIDTH)? {
        disk::replace(&folder.join(CURVE_FILE), curve.as_bytes())?;
    }
    disk::replace(&folder.join(FILE), readme(&facts).as_bytes())
}

/// `card` with `scores`, Markdown, in place of what stood there. A text that is no card is an error.
pub fn with_scores(card: &str, scores: &str) -> Result<String> {
    let [begin, end] = SCORES;
    let place = card.find(begin).zip(card.find(end)).filter(|(begin, end)| begin < end);
    let (first, last) = place.context("the README is no card of fireval: it has no place for scores")?;
    ensure!(!scores.contains(end), "scores cannot contain `{end}`");
    Ok(format!("{}{begin}\n{}\n{}", &card[..first], scores.trim(), &card[last..]))
}

fn scores_of(card: &str) -> Option<&str> {
    let (_, rest) = card.split_once(SCORES[0])?;
    let (scores, _) = rest.split_once(SCORES[1])?;
    Some(scores.trim())
}

/// The name of a model if it is a repository of the hub and nothing on this disk.
fn repository(model: &str) -> Option<&str> {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let (owner, name) = model.split_once('/')?;
    (is_word(owner) && is_word(name) && !Path::new(model).exists()).then_some(model)
}

/// The card's text.
pub fn readme(facts: &Facts) -> String {
    let title = facts.summary.adapter.file_name().map_or("adapter".into(), |name| name.to_string_lossy());
    let mut text = front_matter(facts);
    let _ = write!(text, "\n# {title}\n\n{}\n", introduction(facts));
    let _ = write!(text, "\n## Data\n\n{}", data(facts));
    let _ = write!(text, "\n## Loss\n\n{}", losses(facts));
    let scores = facts.scores.unwrap_or(NO_SCORES).trim();
    let _ = write!(text, "\n## Scores\n\n{}\n{scores}\n{}\n", SCORES[0], SCORES[1]);
    let _ = write!(text, "\n## Recipe\n\n{}", recipe(facts.recipe));
    text
}

fn front_matter(facts: &Facts) -> String {
    let base = facts.repository.map_or(String::new(), |repository| format!("base_model: {repository}\n"));
    let (library, tag) = if facts.summary.is_whole { ("transformers", "") } else { ("peft", "- lora\n") };
    format!("---\n{base}library_name: {library}\npipeline_tag: text-generation\ntags:\n{tag}- fireval\n---\n")
}

fn introduction(facts: &Facts) -> String {
    let TrainSummary { trained_parameters, steps, tokens, seconds, .. } = facts.summary;
    let (speed, base) = (*tokens as f64 / seconds.max(1e-9), escaped(&facts.recipe.model));
    let (what, opens) = match facts.summary.is_whole {
        true => (
            format!("`{base}` with {trained_parameters} of its parameters"),
            "The folder stands alone: transformers opens it, and so does `path = \"folder\"` of a model in `fireval.toml`.",
        ),
        false => (
            format!("A LoRA adapter for `{base}`: {trained_parameters} parameters,"),
            "It is in PEFT's format: `PeftModel.from_pretrained(base, folder)` opens it, and so does `adapter = \"folder\"` of \
             a model in `fireval.toml`.",
        ),
    };
    format!(
        "{what} trained in {steps} steps on {tokens} tokens ({seconds:.0} s, {speed:.0} tokens a second).\n\n{opens}"
    )
}

fn data(facts: &Facts) -> String {
    let Counts { rows, dialogues, tokens, learnt, .. } = facts.counts;
    let [train, held_out] = facts.examples;
    let files: Vec<String> =
        facts.recipe.data.paths().iter().map(|file| escaped(&file.display().to_string())).collect();
    let share = 100.0 * learnt as f64 / tokens.max(1) as f64;
    let mut text = String::from("| | |\n|---|---|\n");
    for (what, value) in [
        ("files", files.join(", ")),
        ("rows", rows.to_string()),
        ("dialogues", dialogues.to_string()),
        ("examples learnt from in an epoch", train.to_string()),
        ("examples held out", held_out.to_string()),
        ("tokens", tokens.to_string()),
        ("of them learnt", format!("{learnt} ({share:.1} %): the answers and the token that ends each")),
        ("of the rows", left_out(&facts.counts)),
        ("sha256 of the tokens and what is learnt", format!("`{}`", facts.data_digest)),
    ] {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    text
}

/// What was left out or changed, as far as anything was.
fn left_out(counts: &Counts) -> String {
    let told = [
        (counts.unusable, "no dialogue"),
        (counts.without_answer, "without an answer"),
        (counts.nothing_learnt, "with nothing to learn within the token limit"),
        (counts.duplicates, "duplicates, learnt from all the same"),
        (counts.cut_tails, "without the turns behind their last answer"),
        (counts.cut_at_limit, "cut at the token limit"),
        (counts.split, "split into several examples"),
    ];
    let told: Vec<String> =
        told.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let packed = |packed: Packed| format!("{} examples packed into {} sequences", packed.examples, packed.rows);
    let told: Vec<String> = told.into_iter().chain(counts.packed.map(packed)).collect();
    if told.is_empty() { "all are used whole".to_owned() } else { told.join("; ") }
}

fn losses(facts: &Facts) -> String {
    let steps = curve::steps(facts.log);
    let held_out = curve::held_out(facts.log);
    let mut text = String::new();
    if steps.len() > 1 {
        let _ = writeln!(text, "![cross-entropy by step]({CURVE_FILE})\n");
    }
    text.push_str("Mean cross-entropy of the learnt tokens, in natural logs.\n\n| | step | loss |\n|---|---:|---:|\n");
    let best = held_out.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    for (what, point) in [
        ("first step", steps.first().copied()),
        ("last step", steps.last().copied()),
        ("held out, first", held_out.first().copied()),
        ("held out, best", best),
        ("held out, last", held_out.last().copied()),
    ] {
        if let Some((step, loss)) = point {
            let _ = writeln!(text, "| {what} | {step} | {loss:.4} |");
        }
    }
    if let Some((steps, _)) = facts.summary.best {
        let _ = writeln!(text, "\nWhat is here is the best by the held-out loss, of step {steps}.");
    }
    let skipped = facts.log.iter().filter(|entry| matches!(entry, Entry::Step(step) if step.skipped)).count();
    if skipped > 0 {
        let _ = writeln!(text, "\nSteps skipped, since their loss or gradient was not finite: {skipped}.");
    }
    text
}

/// Every key of the recipe with its value, defaults too.
fn recipe(recipe: &Recipe) -> String {
    let mut text = String::from("| key | value |\n|---|---|\n");
    let value = serde_json::to_value(recipe).expect("a recipe has only text and numbers");
    rows(&mut text, "", &value);
    let _ = writeln!(text, "\nsha256 of what decides the numbers: `{}`", recipe.digest());
    text
}

fn rows(text: &mut String, key: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            let name = |field: &str| if key.is_empty() { field.to_owned() } else { format!("{key}.{field}") };
            fields.iter().for_each(|(field, value)| rows(text, &name(field), value));
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            let _ = writeln!(text, "| `{key}` | {} |", items.join(", "));
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = writeln!(text, "| `{key}` | {} |", shown(value));
        }
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), escaped)
}

/// What would end a cell or begin a tag.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests;
