//! A page's charts, each drawn for a screen and for a phone.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::super::{Table, percent, with_interval};
use crate::chart::Ink;
use crate::chart::forest::{Group, Mark, forest};
use crate::chart::scatter::{Axes, Point, scatter};
use crate::compare::{Cell, Comparison, Row, TaskFile};
use crate::protocol::Protocol;
use crate::published::{self, Billions, Published};

/// Widths in pixels that charts are drawn for.
const WIDE: u32 = 860;
const NARROW: u32 = 340;

/// What a model takes to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    pub weights: Option<Billions>,
    /// As measured when it was scored.
    pub tokens_per_second: Option<f64>,
}

#[derive(Serialize)]
pub struct Chart {
    wide: String,
    narrow: String,
}

impl Chart {
    pub fn of(draw: impl Fn(u32) -> Result<String>) -> Result<Chart> {
        Ok(Chart { wide: draw(WIDE)?, narrow: draw(NARROW)? })
    }
}

/// The colour of a row: the first is what the others are compared with.
pub fn series(row: usize) -> usize {
    Ink::series(row)
}

fn ink(row: usize) -> Ink {
    Ink::Series(row)
}

/// Rules that give each ink its colour in the dark, and each row's name its colour.
pub fn colours() -> String {
    let (mut light, mut dark) = (String::new(), String::new());
    for ink in Ink::all() {
        if let Ink::Series(index) = ink {
            let _ = write!(light, "--s{index}:{};", ink.light());
            let _ = write!(dark, "--s{index}:{};", ink.dark());
        }
    }
    let mut rules = format!(":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}\n");
    for ink in Ink::all() {
        let (from, to) = (ink.light(), ink.dark());
        let _ = writeln!(rules, "svg [fill=\"{from}\"]{{fill:{to}}}svg [stroke=\"{from}\"]{{stroke:{to}}}");
    }
    rules.push_str("}\n");
    for ink in Ink::all() {
        if let Ink::Series(index) = ink {
            let _ = writeln!(rules, ".s{index}{{--own:var(--s{index})}}");
        }
    }
    rules
}

/// The differences of every model but the first, task by task; none where there are none.
pub fn differences(comparison: &Comparison, table: &Table) -> Result<Option<Chart>> {
    let columns = comparison.columns.len();
    let titles = comparison.columns.iter().map(|column| column.title.as_str()).chain(["Average"]);
    let cell = |row: &Row, index: usize| -> Option<Cell> { row.cells.get(index).copied().unwrap_or(row.average) };
    let groups: Vec<Group> = titles
        .enumerate()
        .map(|(index, title)| {
            let mark = |(number, row): (usize, &Row)| {
                let difference = cell(row, index)?.difference?;
                let figures = &table.rows[number];
                let figure = figures.figures.get(index).unwrap_or(&figures.average);
                let text = with_interval(figure.delta.as_ref()?, &figure.delta_low, &figure.delta_high);
                let ends = difference.interval.map(|interval| (interval.low * 100.0, interval.high * 100.0));
                Some(Mark { value: difference.value * 100.0, ends, text, ink: ink(number) })
            };
            let marks = comparison.rows.iter().enumerate().filter_map(mark).collect();
            Group { name: title.to_owned(), is_sum: index == columns, marks }
        })
        .filter(|group| !group.marks.is_empty())
        .collect();
    if groups.is_empty() {
        return Ok(None);
    }
    let first = &comparison.rows[0].model;
    let axis = format!("points above {first}");
    let title =
        format!("Differences to {first} with their 95 % intervals, task by task; the numbers are in the table below");
    Ok(Some(Chart::of(|width| forest(&groups, &axis, &title, width))?))
}

/// Scores against what a token costs.
#[derive(Serialize)]
pub struct Budget {
    chart: Chart,
    points: Vec<Cost>,
    /// The tasks that the average is of, where these are not the leaderboard's six.
    tasks: Option<String>,
    /// Models without a place in the chart.
    without: Vec<String>,
    has_published: bool,
}

#[derive(Serialize)]
struct Cost {
    series: Option<usize>,
    model: String,
    all: String,
    active: String,
    average: String,
    tokens_per_second: Option<String>,
}

/// Averages against active parameters; none where no model's are known.
pub fn budget(comparison: &Comparison, table: &Table, held: &[Held]) -> Result<Option<Budget>> {
    let (mut points, mut costs, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for (number, row) in comparison.rows.iter().enumerate() {
        let Held { weights, tokens_per_second } = held.get(number).copied().unwrap_or_default();
        let average = row.average.zip(table.rows[number].average.score.clone());
        let (Some(weights), Some((cell, average))) = (weights, average) else {
            without.push(row.model.clone());
            continue;
        };
        let speed = tokens_per_second.map(|speed| format!("{speed:.0}"));
        let name = last_part(&row.model);
        let named = speed.as_ref().map(|speed| format!("{name} ({speed} tokens/s)"));
        points.push(Point {
            x: weights.active,
            y: cell.score * 100.0,
            ends: cell.interval.map(|interval| (interval.low * 100.0, interval.high * 100.0)),
            name: named.unwrap_or_else(|| name.to_owned()),
            ink: ink(number),
        });
        let cost = Cost::of(&row.model, weights, average);
        costs.push(Cost { series: Some(series(number)), tokens_per_second: speed, ..cost });
    }
    if points.is_empty() {
        return Ok(None);
    }
    let others = others(comparison)?;
    for (row, average, weights) in &others {
        let name = last_part(&row.model).to_owned();
        points.push(Point { x: weights.active, y: *average, ends: None, name, ink: Ink::Grey });
        costs.push(Cost::of(&row.model, *weights, percent(average / 100.0)));
    }
    let largest = points.iter().map(|point| point.x).fold(0.0, f64::max);
    let (unit, of_a_billion) =
        if largest < 0.5 { ("active parameters, millions", 1e3) } else { ("active parameters, billions", 1.0) };
    points.iter_mut().for_each(|point| point.x *= of_a_billion);
    let axes = Axes { x: unit, y: "average, %" };
    let title = "Averages against the parameters that a token goes through; the numbers are in the table below";
    let chart = Chart::of(|width| scatter(&points, &axes, title, width))?;
    let tasks: Vec<&str> = comparison.columns.iter().map(|column| column.title.as_str()).collect();
    let tasks = (!is_the_six(comparison)).then(|| tasks.join(", "));
    Ok(Some(Budget { chart, points: costs, tasks, without, has_published: !others.is_empty() }))
}

/// A model without its owner.
fn last_part(model: &str) -> &str {
    model.trim_end_matches('/').rsplit('/').next().unwrap_or(model)
}

impl Cost {
    fn of(model: &str, weights: Billions, average: String) -> Cost {
        Cost {
            series: None,
            model: model.to_owned(),
            all: billions(weights.all),
            active: billions(weights.active),
            average,
            tokens_per_second: None,
        }
    }
}

/// "46.7 B", "135 M".
fn billions(weights: f64) -> String {
    match weights {
        weights if weights >= 0.9995 => format!("{weights:.1} B"),
        weights if weights >= 0.000_999_5 => format!("{:.0} M", weights * 1e3),
        weights => format!("{:.0} k", weights * 1e6),
    }
}

fn is_the_six(comparison: &Comparison) -> bool {
    published::are_the_six(comparison.columns.iter().map(|column| column.task.as_str()))
}

/// Published models that are not compared, a row each, with their average of the comparison's tasks; nothing where these
/// were not asked as the leaderboard did.
fn others(comparison: &Comparison) -> Result<Vec<(Published, f64, Billions)>> {
    let mut others: Vec<(Published, f64, Billions)> = Vec::new();
    let is_changed = comparison.columns.iter().any(|column| column.file == TaskFile::Changed);
    if comparison.protocol != Protocol::LeaderboardV1 || is_changed {
        return Ok(others);
    }
    let mut rows = published::all()?;
    rows.sort_by_key(|row| row.precision);
    for row in rows {
        let is_there = comparison.rows.iter().any(|compared| compared.model == row.model)
            || others.iter().any(|(other, ..)| other.model == row.model);
        let scores: Option<Vec<f64>> = comparison.columns.iter().map(|column| row.score(&column.task)).collect();
        if let (false, Some(scores), Some(weights)) = (is_there, scores, row.weights()) {
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let average = if is_the_six(comparison) { row.average } else { mean };
            others.push((row, average, weights));
        }
    }
    others.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.model.cmp(&b.0.model)));
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_a_fitting_unit() {
        assert_eq!([46.7, 1.0, 0.1345, 0.000_02].map(billions), ["46.7 B", "1.0 B", "134 M", "20 k"]);
    }
}
