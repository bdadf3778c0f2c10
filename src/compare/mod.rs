//! Models side by side: scores, their average, and the difference to the first model with its standard error.
//!
//! Where both models answered the same documents the difference is paired: its error comes from the differences document
//! by document, which is smaller than that of two unrelated scores because models fail on the same questions (Miller,
//! "Adding Error Bars to Evals", arXiv 2411.00640, section 4.2). Unlike runs are refused (`alike`). All values are fractions
//! and unrounded; rounding is `report`'s.

mod alike;
mod difference;
mod notes;
pub mod why;

use anyhow::{Result, bail, ensure};

pub use alike::TaskFile;

use crate::eval::Run;
use crate::protocol::Protocol;
use crate::published::{self, Published};
use crate::stats::paired::Flips;
use crate::stats::{Interval, holm};
use crate::task::Task;

/// A model and what is known about it.
#[derive(Clone, Debug)]
pub struct Contender {
    pub model: String,
    pub outcome: Outcome,
}

/// Where scores come from.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A run for each column.
    Measured(Vec<Run>),
    Published(Published),
}

/// Models side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub protocol: Protocol,
    pub columns: Vec<Column>,
    /// The first is what the others differ from.
    pub rows: Vec<Row>,
    /// What a reader has to know to read the numbers.
    pub notes: Vec<String>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub task: String,
    pub title: String,
    pub metric: String,
    pub file: TaskFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Measured,
    Published,
}

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub model: String,
    pub origin: Origin,
    /// How the weights were held: "f32", "nf4", "bfloat16".
    pub held: String,
    /// One for each column; none where nothing was published.
    pub cells: Vec<Option<Cell>>,
    /// None if a cell is.
    pub average: Option<Cell>,
}

/// A score and how far it is from the first model's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub score: f64,
    pub stderr: Option<f64>,
    /// At 95 %; none for a single document that is neither right nor wrong.
    pub interval: Option<Interval>,
    pub documents: Option<usize>,
    /// Right answers where the score is a plain count; recovered from the percentage where that was published.
    pub correct: Option<usize>,
    /// None for the first model.
    pub difference: Option<Difference>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    pub value: f64,
    pub stderr: Option<f64>,
    /// At 95 %.
    pub interval: Option<Interval>,
    /// Two-sided, of no difference.
    pub p_value: Option<f64>,
    /// `p_value` corrected for the row's other tasks (Holm); none for the average, which is one question.
    pub holm: Option<f64>,
    /// None where answers are neither right nor wrong, and unpaired.
    pub flips: Option<Flips>,
    /// No larger than nine in ten of the differences between float16 and bfloat16 of one model's weights.
    pub in_noise: bool,
    /// Whether the error was taken document by document.
    pub paired: bool,
}

impl Column {
    pub fn of(task: &Task, protocol: Protocol) -> Column {
        Column {
            task: task.name().to_owned(),
            title: task.title().to_owned(),
            metric: task.metric(protocol).to_owned(),
            file: TaskFile::of(task),
        }
    }
}

/// Compares `contenders`, each with a run for each of `columns` in that order, with the first of them.
pub fn compare(protocol: Protocol, columns: Vec<Column>, contenders: &[Contender]) -> Result<Comparison> {
    let Some(first) = contenders.first() else { bail!("nothing to compare: name at least one model") };
    alike::check(protocol, &columns, contenders)?;
    let mut rows: Vec<Row> = Vec::new();
    for contender in contenders {
        let mut row = plain_row(&columns, contender)?;
        if let Some(baseline) = rows.first() {
            add_differences(protocol, &columns, (first, baseline), contender, &mut row)?;
        }
        rows.push(row);
    }
    let notes = notes::notes(&columns, contenders);
    Ok(Comparison { protocol, columns, rows, notes })
}

/// A contender's scores, without differences.
fn plain_row(columns: &[Column], contender: &Contender) -> Result<Row> {
    let (origin, cells): (Origin, Vec<Option<Cell>>) = match &contender.outcome {
        Outcome::Measured(runs) => {
            ensure!(
                runs.len() == columns.len(),
                "{}: {} runs for {} tasks",
                contender.model,
                runs.len(),
                columns.len()
            );
            let cell = |run: &Run| Ok(Some(difference::measured_cell(run, run.manifest.reported()?)));
            (Origin::Measured, runs.iter().map(cell).collect::<Result<_>>()?)
        }
        Outcome::Published(row) => {
            let cell = |column: &Column| difference::published_cell(row, &column.task);
            (Origin::Published, columns.iter().map(cell).collect())
        }
    };
    let average = difference::average_cell(&cells, known_average(columns, &contender.outcome));
    Ok(Row { model: contender.model.clone(), origin, held: held(&contender.outcome), cells, average })
}

/// How the weights were held.
fn held(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Measured(runs) => runs.first().map_or(String::new(), |run| {
            let id = &run.manifest.id;
            id.quantization.clone().unwrap_or_else(|| id.dtype.clone())
        }),
        Outcome::Published(row) => row.precision.name().to_owned(),
    }
}

/// Over all six tasks the leaderboard's own average, which it took of unrounded scores.
fn known_average(columns: &[Column], outcome: &Outcome) -> Option<f64> {
    match outcome {
        Outcome::Published(row) if are_the_six(columns) => Some(row.average / 100.0),
        Outcome::Published(_) | Outcome::Measured(_) => None,
    }
}

fn are_the_six(columns: &[Column]) -> bool {
    published::are_the_six(columns.iter().map(|column| column.task.as_str()))
}

/// The differences of `row` to the baseline, and what they are worth beside each other.
fn add_differences(
    protocol: Protocol,
    columns: &[Column],
    (first, baseline): (&Contender, &Row),
    contender: &Contender,
    row: &mut Row,
) -> Result<()> {
    for (index, cell) in row.cells.iter_mut().enumerate() {
        if let (Some(cell), Some(before)) = (cell, &baseline.cells[index]) {
            let mut found = match (&first.outcome, &contender.outcome) {
                (Outcome::Measured(first), Outcome::Measured(other)) => {
                    difference::paired(protocol, &first[index], &other[index], before, cell)
                }
                (Outcome::Published(_), _) | (_, Outcome::Published(_)) => difference::unpaired(before, cell),
            };
            let Column { task, file, .. } = &columns[index];
            found.in_noise = *file == TaskFile::BuiltIn && published::is_noise(task, found.value)?;
            cell.difference = Some(found);
        }
    }
    correct_for_tasks(&mut row.cells);
    if let (Some(average), Some(before)) = (&mut row.average, &baseline.average) {
        let mut found = difference::of_average(&row.cells, average.score - before.score);
        if let Some(found) = &mut found {
            let is_known = are_the_six(columns) && columns.iter().all(|column| column.file == TaskFile::BuiltIn);
            found.in_noise = is_known && published::is_noise("average", found.value)?;
        }
        average.difference = found;
    }
    Ok(())
}

/// Holm's correction over the tasks of a row.
fn correct_for_tasks(cells: &mut [Option<Cell>]) {
    let tested = || |cell: &Option<Cell>| cell.and_then(|cell| cell.difference?.p_value);
    let p_values: Vec<f64> = cells.iter().filter_map(tested()).collect();
    let mut adjusted = holm::adjusted(&p_values).into_iter();
    for difference in cells.iter_mut().flatten().filter_map(|cell| cell.difference.as_mut()) {
        difference.holm = difference.p_value.and_then(|_| adjusted.next());
    }
}

#[cfg(test)]
mod tests;
