//! `fireval verify-claim CARD.md`: whether the scores that a card claims can be.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Exit, output};
use crate::claim::{self, Checked, Report, tasks};
use crate::published::rows_of;

/// Check the scores that a Markdown file claims for the old leaderboard's six tasks.
///
/// Recomputes averages and says whether they are of six tasks or of the four that the leaderboard had until November 2023; finds
/// scores of ARC, HellaSwag, Winogrande and GSM8K that no count of their documents gives; looks models up in the published rows.
/// A number is taken to be rounded at its last printed digit. A claim about a model with several published rows holds if one of
/// them fits; a model that nobody published is not looked up. Reads Markdown's tables, with models as rows or as columns,
/// percentages or fractions; HTML's tables are not read.
///
/// Exit code 0 if every claim holds, 1 if one does not, 2 if the file can't be read or has no table of scores.
#[derive(clap::Args)]
pub struct Args {
    /// A model card, a README, any Markdown file.
    card: PathBuf,
    /// Published rows: CSV with the columns of `fireval published check` [default: the rows that are built in].
    #[arg(long, value_name = "FILE")]
    published: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Exit> {
    let place = args.card.display().to_string();
    let markdown = std::fs::read_to_string(&args.card).with_context(|| format!("can't read {place}"))?;
    let (rows_place, rows) = rows_of(args.published.as_deref())?;
    let report = claim::verify(&markdown, &rows);
    if report.tables.is_empty() {
        bail!("{place}: {}", nothing(&report));
    }
    output::print(&text(&place, &rows_place, &report))?;
    Ok(if report.findings().next().is_none() { Exit::Done } else { Exit::Differs })
}

/// Why there is nothing to check.
fn nothing(report: &Report) -> String {
    if report.ignored.is_empty() {
        return "there is no Markdown table to check (HTML's tables are not read)".to_owned();
    }
    let tables: Vec<String> =
        report.ignored.iter().map(|(line, reason)| format!("the one in line {line}: {reason}")).collect();
    format!("no table has scores that can be checked; {}", tables.join("; "))
}

fn text(place: &str, rows_place: &str, report: &Report) -> String {
    let mut text = String::new();
    for table in &report.tables {
        text.push_str(&table_text(place, table));
    }
    for (line, reason) in &report.ignored {
        text.push_str(&format!("{place}, line {line}: table left out: {reason}\n"));
    }
    let (claims, confirmed) =
        report.tables.iter().fold((0, 0), |sum, table| (sum.0 + table.claims, sum.1 + table.confirmed));
    let findings = report.findings().count();
    let verdict = match findings {
        0 => "every claim holds".to_owned(),
        1 => "1 finding".to_owned(),
        findings => format!("{findings} findings"),
    };
    text + &format!("{claims} models, {confirmed} as published in {rows_place}: {verdict}\n")
}

fn table_text(place: &str, table: &Checked) -> String {
    let mut text = format!("{place}, line {}: table of {} models", table.line, table.claims);
    let averages: Vec<String> =
        table.averages.iter().map(|(basis, count)| format!("{count} of {}", tasks(*basis))).collect();
    if !averages.is_empty() {
        text.push_str(&format!("; averages: {}", averages.join(", ")));
    }
    text.push('\n');
    for located in &table.findings {
        let model = located.model.as_ref().map(|model| format!("{model}: ")).unwrap_or_default();
        text.push_str(&format!("  WRONG line {}: {model}{}\n", located.line, located.finding));
    }
    text.extend(table.notes.iter().map(|note| format!("  {note}\n")));
    if !table.unknown.is_empty() {
        text.push_str(&format!("  not published under this name, so not looked up: {}\n", table.unknown.join(", ")));
    }
    text
}
