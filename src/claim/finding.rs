//! What is wrong with a claim, in words.

use std::fmt;

use super::average::{Basis, mean_of_four};
use super::lookup::Difference;
use super::number::Printed;
use super::title::{task_key, task_name};
use crate::published::{Published, size};

#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// In percent, of so many tasks.
    NoMean {
        average: Printed,
        mean: f64,
        tasks: usize,
    },
    /// Beside six scores stands the mean of the first four; `mean` is that of the six.
    FourOfSix {
        average: Printed,
        mean: f64,
    },
    /// Other averages of the table are of `others`.
    Mixed {
        average: Printed,
        basis: Basis,
        others: Basis,
    },
    /// An index into `published::COLUMNS`.
    NoCount {
        task: usize,
        score: Printed,
    },
    Differs {
        row: Published,
        differences: Vec<Difference>,
        whose: Option<Published>,
    },
    Misnamed {
        row: Published,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Finding::NoMean { average, mean, tasks } => {
                write!(formatter, "average {average} is not the mean of the {tasks} scores beside it, {mean:.2}")
            }
            Finding::FourOfSix { average, mean } => write!(
                formatter,
                "average {average} is the mean of ARC, HellaSwag, MMLU and TruthfulQA alone, as the leaderboard's was until November \
                 2023; that of the six scores beside it is {mean:.2}"
            ),
            Finding::Mixed { average, basis, others } => write!(
                formatter,
                "average {average} is of {} and stands among averages of {}: they are not alike",
                tasks(*basis),
                tasks(*others)
            ),
            Finding::NoCount { task, score } => no_count(formatter, *task, score),
            Finding::Differs { row, differences, whose } => {
                let list: Vec<String> = differences.iter().map(difference).collect();
                write!(formatter, "{}; published is {}", list.join(", "), named(row))?;
                match whose {
                    Some(whose) => write!(formatter, ". These figures are those of {}", named(whose)),
                    None => Ok(()),
                }
            }
            Finding::Misnamed { row } => write!(
                formatter,
                "no row of this name was published, and the figures are those of {} (average {:.2}, of the first four tasks {:.2})",
                named(row),
                row.average,
                mean_of_four(row)
            ),
        }
    }
}

pub fn named(row: &Published) -> String {
    format!("{} ({})", row.model, row.precision.name())
}

/// What an average is of.
pub fn tasks(basis: Basis) -> String {
    match basis {
        Basis::Six => "the six tasks".to_owned(),
        Basis::Four => "the four tasks until November 2023".to_owned(),
        Basis::Seven => "seven tasks (with DROP, November 2023)".to_owned(),
        Basis::Shown(count) => format!("the {count} scores beside it"),
    }
}

fn difference(difference: &Difference) -> String {
    let Difference { what, claimed, published } = difference;
    format!("{what} {claimed} was published as {published:.2}")
}

/// Names the counts on both sides of a score that is none.
fn no_count(formatter: &mut fmt::Formatter, task: usize, score: &Printed) -> fmt::Result {
    let documents = size(task_key(task)).map_or(0, |size| size.documents);
    let below = (score.percent / 100.0 * documents as f64).floor();
    let percent = |count: f64| count / documents as f64 * 100.0;
    write!(
        formatter,
        "{} {score} is no count of {documents} documents: {below} are {:.2} %, {} are {:.2} %",
        task_name(task),
        percent(below),
        below + 1.0,
        percent(below + 1.0)
    )
}
