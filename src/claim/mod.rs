//! Claims of scores in Markdown tables: are the averages those of the scores, can the scores be, were they published so?
//!
//! A number is taken to be rounded at its last printed digit, and a claim is wrong only if no unrounded number explains it.

mod average;
mod claims;
mod finding;
mod lookup;
mod name;
mod number;
mod table;
mod title;

pub use average::Basis;
pub use finding::{Finding, tasks};

use average::{Standing, mean_of_four, standing};
use claims::{Claim, Claims};
use finding::named;
use lookup::{Directory, Found};
use title::task_key;

use crate::published::{self, HALF, Published};

/// What a file claims, table by table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub tables: Vec<Checked>,
    /// Lines of tables that claim nothing that can be checked, and why.
    pub ignored: Vec<(usize, String)>,
}

/// A table of scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    pub line: usize,
    /// Models, or columns of results.
    pub claims: usize,
    /// What the averages are of, and how many.
    pub averages: Vec<(Basis, usize)>,
    pub findings: Vec<Located>,
    /// Models whose figures are as published.
    pub confirmed: usize,
    /// Models that nobody published under this name, so that nothing was looked up.
    pub unknown: Vec<String>,
    /// What a reader should know and is not wrong.
    pub notes: Vec<String>,
}

/// A finding and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub line: usize,
    /// None where the table doesn't say whose results these are.
    pub model: Option<String>,
    pub finding: Finding,
}

impl Report {
    pub fn findings(&self) -> impl Iterator<Item = &Located> {
        self.tables.iter().flat_map(|table| &table.findings)
    }
}

/// Checks the tables of `markdown` against `rows`.
pub fn verify(markdown: &str, rows: &[Published]) -> Report {
    let directory = Directory::new(rows);
    let mut report = Report::default();
    for written in table::tables(markdown) {
        match claims::claims(&written) {
            Ok(claims) => report.tables.push(check(&claims, &directory)),
            Err(reason) => report.ignored.push((written.line, reason)),
        }
    }
    report
}

fn check(claims: &Claims, directory: &Directory) -> Checked {
    let mut checked = Checked { line: claims.line, claims: claims.claims.len(), ..Checked::default() };
    let bases: Vec<Option<Basis>> = claims.claims.iter().map(|claim| checked.take(claim, directory)).collect();
    checked.mixed(&claims.claims, &bases);
    checked.averages = counted(&bases);
    let unclear =
        claims.unclear.iter().map(|(line, text)| format!("line {line}: `{text}` is not one score, and was left out"));
    checked.notes.extend(unclear);
    checked.findings.sort_by_key(|located| located.line);
    checked
}

impl Checked {
    /// Adds what is to be said of one claim, and answers what its average is of, where that is known.
    fn take(&mut self, claim: &Claim, directory: &Directory) -> Option<Basis> {
        let standing = standing(claim);
        let found = directory.find(claim, &standing);
        let row = match &found {
            Found::Fits(row) | Found::ByFigures(row) | Found::Misnamed(row) => Some(*row),
            Found::Differs { .. } | Found::Unknown => None,
        };
        let basis = basis(claim, &standing, row);
        self.check_average(claim, &standing, basis);
        for (task, score) in claim.scores.iter().enumerate() {
            let impossible =
                score.as_ref().filter(|score| !published::is_possible(task_key(task), score.percent, score.half));
            if let Some(score) = impossible {
                self.add(claim, Finding::NoCount { task, score: score.clone() });
            }
        }
        self.look_up(claim, &standing, found);
        basis
    }

    fn check_average(&mut self, claim: &Claim, standing: &Standing, basis: Option<Basis>) {
        let Some(average) = claim.average.clone() else { return };
        let scores: Vec<_> = claim.scores.iter().flatten().collect();
        match standing {
            // Where fewer scores are shown, a published row may say that it is the average of all.
            Standing::NoMean { mean, tasks } if basis.is_none() => {
                self.add(claim, Finding::NoMean { average, mean: *mean, tasks: *tasks });
            }
            Standing::MeanOf(Basis::Four) if scores.len() == claim.scores.len() => {
                self.add(claim, Finding::FourOfSix { average, mean: number::mean(&scores) });
            }
            Standing::Unknown if basis.is_none() => self.notes.push(format!(
                "line {}: average {average} is no mean of the six tasks; it may be of other columns too, and was not recomputed",
                claim.line
            )),
            Standing::NoMean { .. } | Standing::Unknown | Standing::MeanOf(_) | Standing::Alone => {}
        }
    }

    fn look_up(&mut self, claim: &Claim, standing: &Standing, found: Found) {
        match found {
            Found::Fits(_) => self.confirmed += 1,
            Found::Differs { row, whose } => {
                let differences = lookup::differences(claim, standing, row);
                self.add(claim, Finding::Differs { row: row.clone(), differences, whose: whose.cloned() });
            }
            Found::ByFigures(row) => {
                self.confirmed += 1;
                let name = claim.model.as_deref().unwrap_or("it has no name here");
                self.notes.push(format!(
                    "line {}: {name}: taken for {}, whose figures these are",
                    claim.line,
                    named(row)
                ));
            }
            Found::Misnamed(row) => self.add(claim, Finding::Misnamed { row: row.clone() }),
            Found::Unknown => self.unknown.push(claim.model.clone().unwrap_or_else(|| format!("line {}", claim.line))),
        }
    }

    /// Averages of four tasks among those of six, or the other way round: the fewer are found wrong.
    fn mixed(&mut self, claims: &[Claim], bases: &[Option<Basis>]) {
        let count = |basis: Basis| bases.iter().filter(|found| **found == Some(basis)).count();
        let (six, four) = (count(Basis::Six), count(Basis::Four));
        if six == 0 || four == 0 {
            return;
        }
        let (odd, others) = if six < four { (Basis::Six, Basis::Four) } else { (Basis::Four, Basis::Six) };
        for (claim, basis) in claims.iter().zip(bases) {
            let told = self.findings.iter().any(|located| {
                (located.line, &located.model) == (claim.line, &claim.model)
                    && matches!(located.finding, Finding::FourOfSix { .. })
            });
            if let Some(average) = claim.average.clone().filter(|_| *basis == Some(odd) && !told) {
                self.add(claim, Finding::Mixed { average, basis: odd, others });
            }
        }
    }

    fn add(&mut self, claim: &Claim, finding: Finding) {
        self.findings.push(Located { line: claim.line, model: claim.model.clone(), finding });
    }
}

/// What an average is of: as its scores say, else as the published row that has these figures says.
fn basis(claim: &Claim, standing: &Standing, row: Option<&Published>) -> Option<Basis> {
    match (standing, &claim.average, row) {
        (Standing::MeanOf(basis), _, _) => Some(*basis),
        (_, Some(average), Some(row)) if average.is(row.average, HALF) => Some(Basis::Six),
        (_, Some(average), Some(row)) if average.is(mean_of_four(row), 2.0 * HALF) => Some(Basis::Four),
        (Standing::Alone | Standing::NoMean { .. } | Standing::Unknown, _, _) => None,
    }
}

fn counted(bases: &[Option<Basis>]) -> Vec<(Basis, usize)> {
    let mut found: Vec<Basis> = bases.iter().flatten().copied().collect();
    found.sort();
    let counts = found.chunk_by(|a, b| a == b).map(|alike| (alike[0], alike.len()));
    counts.collect()
}

#[cfg(test)]
mod tests;
