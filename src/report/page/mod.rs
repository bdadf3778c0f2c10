//! `fireval report`: a comparison as one page that needs nothing else, for a reader with a browser.
//!
//! The digits are [`Table`]'s and its siblings'; only charts are drawn from the numbers. The template escapes every text
//! [minijinja, by the name `page.html`]; charts and what is in `style.css` and `script.js` are the only markup put in. Beneath
//! that the page's own policy (CSP) forbids every request and every script and style but these two, so that a text which got
//! through would still do nothing. The same runs and the same command make the same bytes: no clock is read.

mod answers;
mod charts;
mod flips;
mod made;
mod shares;
mod text;

use anyhow::{Context, Result};
use base64::Engine;
use minijinja::{Environment, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use charts::Held;
pub use flips::{FlipSet, PageFlip};
pub use made::{Made, Recorded, Training, speed};

use super::{Figure, Table};
use crate::compare::Comparison;
use crate::compare::why::Origins;
use crate::samples::Sheet;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What a page shows.
pub struct Page<'a> {
    pub comparison: &'a Comparison,
    pub origins: &'a [Origins],
    /// The size and speed of each row's model.
    pub held: &'a [Held],
    pub flips: &'a [FlipSet],
    /// Chat prompts with answers.
    pub samples: Option<&'a Sheet>,
    pub training: &'a [Training],
    pub made: &'a [Made],
    /// The command line that makes the page.
    pub command: &'a str,
}

/// The page.
pub fn print(page: &Page) -> Result<String> {
    let table = Table::of(page.comparison);
    let mut environment = Environment::new();
    environment.add_template("page.html", TEMPLATE).context("the page's template does not parse")?;
    let template = environment.get_template("page.html").context("the page's template")?;
    let style = format!("{}{STYLE}", charts::colours());
    let models: Vec<&str> = table.rows.iter().map(|row| row.model.as_str()).collect();
    let given = context! {
        policy => policy(&style, SCRIPT),
        style => style,
        script => SCRIPT,
        title => models.join(" · "),
        protocol => table.protocol,
        first => models.first(),
        summaries => summaries(&table, page.comparison),
        heads => table.heads.iter().map(|head| [&head.title, &head.metric]).collect::<Vec<_>>(),
        has_published => table.has_published(),
        has_differences => table.has_differences(),
        scores => scores(&table),
        intervals => table.intervals(),
        legend => table.legend(),
        notes => &table.notes,
        forest => charts::differences(page.comparison, &table)?,
        budget => charts::budget(page.comparison, &table, page.held)?,
        shares => shares::views(page.origins),
        flips => flips::view(page.flips),
        samples => page.samples.map(|sheet| answers::view(sheet, &models)),
        training => made::training(page.training)?,
        made => page.made.iter().map(made::view).collect::<Vec<_>>(),
        command => page.command,
        version => env!("CARGO_PKG_VERSION"),
    };
    template.render(given).context("the page does not render")
}

/// What the page may load and run: nothing but its own style and script, by their digests.
fn policy(style: &str, script: &str) -> String {
    let digest = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        digest(style),
        digest(script)
    )
}

/// What a model's average says, at the top of the page.
#[derive(Serialize)]
struct Summary<'a> {
    /// Which of the colours it has in the charts.
    series: usize,
    model: &'a str,
    score: Option<&'a str>,
    interval: Option<String>,
    delta: Option<&'a str>,
    delta_interval: Option<String>,
    p: Option<&'a str>,
    verdict: Option<&'static str>,
}

fn summaries<'a>(table: &'a Table, comparison: &Comparison) -> Vec<Summary<'a>> {
    let rows = table.rows.iter().zip(&comparison.rows).enumerate();
    let summary = |(index, (row, numbers)): (usize, (&'a super::TableRow, &crate::compare::Row))| {
        let Figure { score, low, high, delta, delta_low, delta_high, p, .. } = &row.average;
        let interval = numbers.average.and_then(|average| average.difference?.interval);
        Summary {
            series: charts::series(index),
            model: &row.model,
            score: score.as_deref(),
            interval: between(low, high),
            delta: delta.as_deref(),
            delta_interval: between(delta_low, delta_high),
            p: p.as_deref(),
            verdict: interval.map(|interval| match (interval.low > 0.0, interval.high < 0.0) {
                (true, _) => "above",
                (_, true) => "below",
                (false, false) => "within",
            }),
        }
    };
    rows.map(summary).collect()
}

/// `[53.10, 58.10]`.
fn between(low: &Option<String>, high: &Option<String>) -> Option<String> {
    Some(format!("[{}, {}]", low.as_ref()?, high.as_ref()?))
}

/// A row of the table of scores.
#[derive(Serialize)]
struct ScoreRow<'a> {
    series: usize,
    model: &'a str,
    source: String,
    /// One for each task, and the average.
    cells: Vec<ScoreCell>,
}

#[derive(Serialize)]
struct ScoreCell {
    score: String,
    delta: Option<String>,
    /// "up", "down" or "level" where the difference is outside its interval or not.
    way: &'static str,
}

fn scores(table: &Table) -> Vec<ScoreRow<'_>> {
    let cell = |figure: &Figure| ScoreCell {
        score: figure.score_text(),
        delta: figure.delta_text(),
        way: match (&figure.delta_low, &figure.delta_high) {
            (Some(low), _) if low.starts_with('+') => "up",
            (_, Some(high)) if high.starts_with('-') => "down",
            (_, _) => "level",
        },
    };
    let rows = table.rows.iter().enumerate();
    rows.map(|(index, row)| ScoreRow {
        series: charts::series(index),
        model: &row.model,
        source: format!("{}, {}", row.source, row.held),
        cells: row.figures.iter().chain([&row.average]).map(cell).collect(),
    })
    .collect()
}

#[cfg(test)]
mod tests;
