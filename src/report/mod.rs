//! A comparison as text. [`Table`] is built once and does all rounding; every format only prints its strings, so the
//! digits are the same everywhere.

pub mod csv;
pub mod github;
pub mod html;
pub mod json;
pub mod junit;
pub mod latex;
pub mod markdown;
pub mod page;
pub mod plan;
pub mod samples;
pub mod terminal;
pub mod verdict;
pub mod why;

use clap::ValueEnum;

use crate::compare::{Cell, Comparison, Origin};

/// The formats a table prints in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal.
    #[default]
    Table,
    Markdown,
    /// A line a model and task, plain columns.
    Csv,
    Json,
    /// Two `tabular`s without packages, to be put into a document.
    Latex,
    /// A page of its own.
    Html,
}

/// A comparison in digits: percentages with two decimals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub protocol: &'static str,
    pub heads: Vec<Head>,
    pub rows: Vec<TableRow>,
    pub notes: Vec<String>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub task: String,
    pub title: String,
    pub metric: String,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRow {
    pub model: String,
    pub source: &'static str,
    /// How the weights were held.
    pub held: String,
    /// One for each head.
    pub figures: Vec<Figure>,
    pub average: Figure,
}

/// A score in digits; what is unknown or does not apply is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figure {
    pub documents: Option<String>,
    pub score: Option<String>,
    pub stderr: Option<String>,
    /// The ends of the score's 95 % interval.
    pub low: Option<String>,
    pub high: Option<String>,
    /// Right answers, where the score is a plain count.
    pub correct: Option<String>,
    pub delta: Option<String>,
    pub delta_stderr: Option<String>,
    pub delta_low: Option<String>,
    pub delta_high: Option<String>,
    /// Of no difference; corrected for the row's other tasks in `holm`.
    pub p: Option<String>,
    pub holm: Option<String>,
    pub gained: Option<String>,
    pub lost: Option<String>,
    /// "yes" where the difference is within the noise floor of 16-bit types, else "no".
    pub noise: Option<&'static str>,
}

impl Table {
    pub fn of(comparison: &Comparison) -> Table {
        let head = |column: &crate::compare::Column| Head {
            task: column.task.clone(),
            title: column.title.clone(),
            metric: column.metric.clone(),
        };
        let row = |row: &crate::compare::Row| TableRow {
            model: row.model.clone(),
            source: match row.origin {
                Origin::Measured => "measured",
                Origin::Published => "published",
            },
            held: row.held.clone(),
            figures: row.cells.iter().map(|cell| Figure::of(cell.as_ref())).collect(),
            average: Figure::of(row.average.as_ref()),
        };
        Table {
            protocol: comparison.protocol.name(),
            heads: comparison.columns.iter().map(head).collect(),
            rows: comparison.rows.iter().map(row).collect(),
            notes: comparison.notes.clone(),
        }
    }

    /// The text in `format`, ending in a newline. `width`: columns of the terminal, if it is one.
    pub fn print(&self, format: Format, width: Option<usize>) -> String {
        match format {
            Format::Table => terminal::print(self, width),
            Format::Markdown => markdown::print(self),
            Format::Csv => csv::print(self),
            Format::Json => json::print(self),
            Format::Latex => latex::print(self),
            Format::Html => html::print(self),
        }
    }

    /// The head and lines of the first table where a cell is one line: a line a model, a column a task.
    fn scores(&self) -> Vec<Vec<String>> {
        let published = self.has_published();
        let mut head = vec!["Model".to_owned()];
        head.extend(published.then(|| "Source".to_owned()));
        head.extend(self.heads.iter().map(|head| format!("{} ({})", head.title, head.metric)));
        head.push("Average".to_owned());
        head.extend(self.has_differences().then(|| "Difference".to_owned()));
        let line = |row: &TableRow| {
            let mut cells = vec![row.model.clone()];
            cells.extend(published.then(|| format!("{}, {}", row.source, row.held)));
            cells.extend(row.figures.iter().map(Figure::one_line));
            cells.push(row.average.score_text());
            cells.extend(self.has_differences().then(|| row.average.delta_text().unwrap_or_default()));
            cells
        };
        [head].into_iter().chain(self.rows.iter().map(line)).collect()
    }

    /// How many columns of [`Table::scores`] are text; the others are figures.
    fn text_columns(&self) -> usize {
        1 + usize::from(self.has_published())
    }

    /// The head and lines of the second table: a line a model and task with 95 % intervals and tests.
    fn intervals(&self) -> Vec<Vec<String>> {
        let head = ["Model", "Task", "Score [95 %]", "Difference [95 %]", "p", "Holm", "Flips"];
        let width = if self.has_differences() { head.len() } else { 3 };
        let mut lines = vec![head[..width].iter().map(|&title| title.to_owned()).collect()];
        for row in &self.rows {
            let titles = self.heads.iter().map(|head| head.title.as_str()).chain(["Average"]);
            for (title, figure) in titles.zip(row.figures.iter().chain([&row.average])) {
                let Some(score) = &figure.score else { continue };
                let mut line = vec![self.name(row), title.to_owned(), with_interval(score, &figure.low, &figure.high)];
                line.extend(figure.delta_cells());
                line.truncate(width);
                lines.push(line);
            }
        }
        lines
    }

    /// A row's name where no source stands beside it: one that stands twice says it itself.
    fn name(&self, row: &TableRow) -> String {
        match self.rows.iter().filter(|other| other.model == row.model).count() {
            0 | 1 => row.model.clone(),
            _ => format!("{} ({}, {})", row.model, row.source, row.held),
        }
    }

    /// What the second table's columns mean.
    fn legend(&self) -> String {
        if !self.has_differences() {
            return "95 % intervals".to_owned();
        }
        let noise = self
            .rows
            .iter()
            .any(|row| row.figures.iter().chain([&row.average]).any(|figure| figure.noise == Some("yes")));
        let mark =
            if noise { " · ~ no more than float16 and bfloat16 of the same weights differ (nine in ten)" } else { "" };
        format!(
            "95 % intervals · p of no difference, corrected for the tasks by Holm · flips: documents gained, lost{mark}"
        )
    }

    /// Whether there is a model beside the first.
    fn has_differences(&self) -> bool {
        self.rows.len() > 1
    }

    /// Whether some row was not measured here.
    fn has_published(&self) -> bool {
        self.rows.iter().any(|row| row.source == "published")
    }
}

impl Figure {
    fn of(cell: Option<&Cell>) -> Figure {
        let Some(cell) = cell else { return Figure::default() };
        let plain = Figure {
            documents: cell.documents.map(|documents| documents.to_string()),
            score: Some(percent(cell.score)),
            stderr: cell.stderr.map(percent),
            low: cell.interval.map(|interval| percent(interval.low)),
            high: cell.interval.map(|interval| percent(interval.high)),
            correct: cell.correct.map(|correct| correct.to_string()),
            ..Figure::default()
        };
        let Some(difference) = cell.difference else { return plain };
        Figure {
            delta: Some(signed(difference.value)),
            delta_stderr: difference.stderr.map(percent),
            delta_low: difference.interval.map(|interval| signed(interval.low)),
            delta_high: difference.interval.map(|interval| signed(interval.high)),
            p: difference.p_value.map(probability),
            holm: difference.holm.map(probability),
            gained: difference.flips.map(|flips| flips.gained.to_string()),
            lost: difference.flips.map(|flips| flips.lost.to_string()),
            noise: Some(if difference.in_noise { "yes" } else { "no" }),
            ..plain
        }
    }

    /// `+1.42 [-0.36, +3.20] p 0.1183, Holm 0.3549`, `~` after it where it is noise; empty for the first model.
    fn delta_cells(&self) -> [String; 4] {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let delta = self.delta.as_ref().map(|delta| with_interval(delta, &self.delta_low, &self.delta_high));
        let mark = if self.noise == Some("yes") { " ~" } else { "" };
        let flips = self.gained.as_ref().zip(self.lost.as_ref()).map(|(gained, lost)| format!("+{gained} -{lost}"));
        [delta.unwrap_or_default() + mark, text(&self.p), text(&self.holm), text(&flips)]
    }

    /// `56.10 ±1.42`, or `-` where there is no score.
    fn score_text(&self) -> String {
        match &self.score {
            Some(score) => with_error(score, &self.stderr),
            None => "-".to_owned(),
        }
    }

    /// `57.52 ±1.45 (+1.42 ±0.91)`.
    fn one_line(&self) -> String {
        match self.delta_text() {
            Some(delta) => format!("{} ({delta})", self.score_text()),
            None => self.score_text(),
        }
    }

    /// `+1.42 ±0.91`; none for the first model.
    fn delta_text(&self) -> Option<String> {
        self.delta.as_ref().map(|delta| with_error(delta, &self.delta_stderr))
    }
}

/// Text in one line of a cell, a log or a comment, without characters that a terminal or a parser of XML would choke on.
/// Some readers end a line at U+2028 and U+2029 too.
pub fn one_line(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

fn with_error(value: &str, error: &Option<String>) -> String {
    match error {
        Some(error) => format!("{value} ±{error}"),
        None => value.to_owned(),
    }
}

fn with_interval(value: &str, low: &Option<String>, high: &Option<String>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{value} [{low}, {high}]"),
        (None, _) | (_, None) => value.to_owned(),
    }
}

/// Four decimals; below that two digits and the power of ten, which every reader of numbers knows.
fn probability(p: f64) -> String {
    if p >= 0.0001 || p == 0.0 { format!("{p:.4}") } else { format!("{p:.1e}") }
}

/// A fraction as a percentage with two decimals. Halves go away from zero as in a sum by hand, and a billionth is taken
/// for a half that binary numbers missed (72.615 is stored as a little less).
fn percent(fraction: f64) -> String {
    let hundredths = (fraction.abs() * 10_000.0 + 0.5 + 1e-6).floor();
    let sign = if fraction < 0.0 && hundredths > 0.0 { "-" } else { "" };
    format!("{sign}{:.2}", hundredths / 100.0)
}

/// With `+` where it is above zero.
fn signed(fraction: f64) -> String {
    let text = percent(fraction);
    if text.starts_with('-') || text == "0.00" { text } else { format!("+{text}") }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::compare::{Column, Difference, Row, TaskFile};
    use crate::protocol::Protocol;
    use crate::stats::Interval;
    use crate::stats::paired::Flips;

    /// A comparison with every kind of cell, for tests.
    pub fn comparison() -> Comparison {
        let cell = |score, difference| Cell {
            score,
            stderr: Some(0.0145),
            interval: Some(Interval { low: score - 0.03, high: score + 0.02 }),
            documents: Some(40),
            correct: Some(22),
            difference,
        };
        let paired = Difference {
            value: 0.0142,
            stderr: Some(0.0091),
            interval: Some(Interval { low: -0.0036, high: 0.032 }),
            p_value: Some(0.1183),
            holm: Some(0.2366),
            flips: Some(Flips { both: 20, gained: 3, lost: 2, neither: 15 }),
            in_noise: false,
            paired: true,
        };
        let unpaired = Difference {
            value: -0.001,
            stderr: None,
            interval: None,
            p_value: Some(2e-7),
            holm: None,
            flips: None,
            in_noise: true,
            paired: false,
        };
        let published = Cell {
            score: 0.556,
            stderr: None,
            interval: None,
            documents: None,
            correct: None,
            difference: Some(unpaired),
        };
        let column = |task: &str, title: &str, metric: &str| Column {
            task: task.to_owned(),
            title: title.to_owned(),
            metric: metric.to_owned(),
            file: if task == "own" { TaskFile::Own } else { TaskFile::BuiltIn },
        };
        let row = |model: &str, origin, cells: Vec<Option<Cell>>| Row {
            model: model.to_owned(),
            origin,
            held: "f32".to_owned(),
            average: cells[0].filter(|_| cells[1].is_some()),
            cells,
        };
        Comparison {
            protocol: Protocol::LeaderboardV1,
            columns: vec![column("arc_challenge", "ARC", "acc_norm"), column("own", "Own | task", "acc")],
            rows: vec![
                row("base", Origin::Measured, vec![Some(cell(0.561, None)), Some(cell(0.5, None))]),
                row("ft", Origin::Measured, vec![Some(cell(0.5752, Some(paired))), Some(cell(0.5, Some(paired)))]),
                row("a,\"b\"|c", Origin::Published, vec![Some(published), None]),
            ],
            notes: vec!["a \"note\"".to_owned()],
        }
    }

    #[test]
    fn rounding_is_that_of_a_sum_by_hand() {
        assert_eq!(percent(0.72615), "72.62", "a tie that is stored as a little less");
        assert_eq!(percent(0.01915), "1.92");
        assert_eq!(percent(0.561), "56.10");
        assert_eq!(percent(1.0), "100.00");
        assert_eq!(percent(0.0000499), "0.00");
        assert_eq!((signed(0.01915), signed(-0.01915)), ("+1.92".to_owned(), "-1.92".to_owned()));
        assert_eq!((signed(0.0), signed(-0.00001)), ("0.00".to_owned(), "0.00".to_owned()));
    }

    #[test]
    fn a_table_has_every_figure() {
        let table = Table::of(&comparison());
        assert_eq!(table.rows[1].figures[0].score_text(), "57.52 ±1.45");
        assert_eq!(table.rows[1].figures[0].delta_text().unwrap(), "+1.42 ±0.91");
        assert_eq!(table.rows[2].figures[0].delta_text().unwrap(), "-0.10");
        assert_eq!(table.rows[2].figures[1].score_text(), "-");
        assert_eq!(table.rows[0].average.delta, None);
        assert!(table.has_published());
        let lines = table.intervals();
        assert_eq!(
            lines[4],
            ["ft", "ARC", "57.52 [54.52, 59.52]", "+1.42 [-0.36, +3.20]", "0.1183", "0.2366", "+3 -2"]
        );
        assert_eq!(lines[7], ["a,\"b\"|c", "ARC", "55.60", "-0.10 ~", "2.0e-7", "", ""]);
        assert_eq!((lines.len(), lines[1][3].as_str()), (1 + 3 + 3 + 1, ""), "unknown scores have no line");
        assert!(table.legend().contains('~'));
    }

    #[test]
    fn a_name_that_stands_twice_says_its_source() {
        let mut table = Table::of(&comparison());
        table.rows[1].model = "base".to_owned();
        (table.rows[1].source, table.rows[1].held) = ("published", "float16".to_owned());
        let lines = table.intervals();
        assert_eq!((lines[4][0].as_str(), lines[7][0].as_str()), ("base (published, float16)", "a,\"b\"|c"));
        assert!(lines[1][0].starts_with("base (measured, "), "{}", lines[1][0]);
    }
}
