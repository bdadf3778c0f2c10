//! From a written table to claims: which way it lies, which cells are scores of which task, whose they are.

use super::number::{Cell, Printed, read};
use super::table::{Written, WrittenRow};
use super::title::{Title, title};

/// What a table says of one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    pub line: usize,
    /// None where the table doesn't say whose results these are.
    pub model: Option<String>,
    /// In the order of `published::COLUMNS`.
    pub scores: [Option<Printed>; 6],
    /// The leaderboard's seventh task for a while.
    pub drop: Option<Printed>,
    /// Other numbers beside them, which an average may be of too.
    pub others: Vec<Printed>,
    pub average: Option<Printed>,
}

/// A table about scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    pub line: usize,
    pub claims: Vec<Claim>,
    /// Cells that hold digits and no score, with their lines.
    pub unclear: Vec<(usize, String)>,
}

/// The claims of a table, or why it makes none that can be checked.
pub fn claims(table: &Written) -> Result<Claims, String> {
    let down: Vec<Title> = table.rows.iter().map(first).map(title).collect();
    let across: Vec<Title> = table.head.iter().map(|text| title(text)).collect();
    let known =
        |titles: &[Title]| titles.iter().filter(|title| matches!(title, Title::Task(_) | Title::Average)).count();
    if known(&across) == 0 && known(&down) == 0 {
        return Err("it names none of the six tasks and no average".to_owned());
    }
    let claims = if known(&across) >= known(&down) { models_down(table, &across) } else { models_across(table, &down) };
    relevant(&claims.claims)?;
    Ok(claims)
}

/// Whether there is something to recompute or to look up.
fn relevant(claims: &[Claim]) -> Result<(), String> {
    let tasks = claims.iter().map(|claim| claim.scores.iter().flatten().count()).max().unwrap_or(0);
    let averages = claims.iter().any(|claim| claim.average.is_some());
    let others = claims.iter().any(|claim| !claim.others.is_empty());
    match (tasks, averages) {
        (0, false) => Err("it has no scores".to_owned()),
        (0, true) if others => Err("its averages are of other tasks than the leaderboard's six".to_owned()),
        (1 | 2, false) => Err("it has no average and less than three of the six tasks".to_owned()),
        _ => Ok(()),
    }
}

/// A line a model.
fn models_down(table: &Written, titles: &[Title]) -> Claims {
    let name_column = name_column(table, titles);
    let columns: Vec<usize> = (0..titles.len()).filter(|&column| Some(column) != name_column).collect();
    let others: Vec<usize> = columns.iter().copied().filter(|&column| is_score_like(table, titles, column)).collect();
    let mut found = Claims { line: table.line, ..Claims::default() };
    for row in &table.rows {
        let name = name_column.map(|column| row.cells[column].clone()).filter(|name| !name.is_empty());
        let mut claim = Claim { line: row.line, model: name.or(table.linked.clone()), ..Claim::default() };
        for &column in &columns {
            let known = !matches!(titles[column], Title::Other | Title::Foreign);
            if known || others.contains(&column) {
                found.put(&mut claim, titles[column], row.line, &row.cells[column]);
            }
        }
        found.finish(claim);
    }
    found
}

/// The column of names: one that says so, else the first that is not about numbers.
fn name_column(table: &Written, titles: &[Title]) -> Option<usize> {
    let other = |column: &usize| titles[*column] == Title::Other;
    let says_so =
        |column: &usize| ["model", "name", "模型"].iter().any(|word| table.head[*column].to_lowercase().contains(word));
    let of_names = |column: &usize| {
        let named = table.rows.iter().filter(|row| !matches!(read(&row.cells[*column]), Cell::Number(_)));
        named.filter(|row| row.cells[*column].contains(char::is_alphabetic)).count() * 2 > table.rows.len()
    };
    let mut columns = (0..titles.len()).filter(other);
    columns.clone().find(says_so).or_else(|| columns.find(of_names))
}

/// Whether a column that is none of the six tasks may be a part of an average: numbers that are no sizes.
fn is_score_like(table: &Written, titles: &[Title], column: usize) -> bool {
    const SIZES: [&str; 16] = [
        "param", "size", "rank", "#", "diff", "delta", "δ", "token", "length", "batch", "year", "date", "step",
        "epoch", "layer", "version",
    ];
    let head = table.head[column].to_lowercase();
    match titles[column] {
        Title::Foreign => true,
        Title::Other if SIZES.iter().any(|word| head.contains(word)) => false,
        Title::Other => {
            let numbers = table.rows.iter().filter(|row| matches!(read(&row.cells[column]), Cell::Number(_))).count();
            numbers * 2 > table.rows.len()
        }
        Title::Task(_) | Title::Drop | Title::Average => false,
    }
}

/// A column a model, a line a task. In lm-evaluation-harness' own tables a line is a metric of a task, and its value stands in
/// one of several columns.
fn models_across(table: &Written, titles: &[Title]) -> Claims {
    let column_of = |name: &str| table.head.iter().position(|head| head.to_lowercase() == name);
    let (values, metrics) = (column_of("value"), column_of("metric").filter(|&column| column > 0));
    let columns: Vec<usize> = match values {
        Some(column) => vec![column],
        None => (1..table.head.len()).collect(),
    };
    let mut found = Claims { line: table.line, ..Claims::default() };
    for column in columns {
        let head = table.head[column].trim();
        let named =
            !["", "value", "values", "score", "scores", "result", "results"].contains(&head.to_lowercase().as_str());
        let model = if named { Some(head.to_owned()) } else { table.linked.clone() };
        let mut claim = Claim { line: table.line, model, ..Claim::default() };
        let mut last = Title::Other;
        for (row, &title) in table.rows.iter().zip(titles) {
            // A line without a task is another metric of the task above.
            last = if first(row).is_empty() { last } else { title };
            let reported = metrics.is_none_or(|metric| is_reported(last, &row.cells[metric]));
            if last != Title::Other && reported {
                found.put(&mut claim, last, row.line, &row.cells[column]);
            }
        }
        found.finish(claim);
    }
    found
}

fn first(row: &WrittenRow) -> &str {
    row.cells.first().map_or("", String::as_str)
}

/// Whether the leaderboard reported this metric of a task.
fn is_reported(title: Title, metric: &str) -> bool {
    match title {
        Title::Task(0 | 1) => metric == "acc_norm",
        Title::Task(3) => matches!(metric, "mc2" | "acc"),
        Title::Task(5) => matches!(metric, "acc" | "exact_match"),
        Title::Task(_) | Title::Drop | Title::Average | Title::Foreign | Title::Other => true,
    }
}

impl Claims {
    /// Puts a cell where its title says. The first of several numbers of a task counts.
    fn put(&mut self, claim: &mut Claim, title: Title, line: usize, text: &str) {
        let number = match read(text) {
            Cell::Number(number) => number,
            Cell::Empty => return,
            Cell::Unclear => return self.unclear.push((line, text.to_owned())),
        };
        match title {
            Title::Task(task) => drop(claim.scores[task].get_or_insert(number)),
            Title::Drop => drop(claim.drop.get_or_insert(number)),
            Title::Average => drop(claim.average.get_or_insert(number)),
            Title::Foreign | Title::Other => claim.others.push(number),
        }
    }

    /// Keeps a claim that says something, in percent. No model has an average or all of its scores at or below one percent, so
    /// where nothing is above 1 they are fractions.
    fn finish(&mut self, mut claim: Claim) {
        let numbers = claim.scores.iter().flatten().chain(&claim.drop).chain(&claim.average);
        let highest = numbers.map(|number| number.percent).reduce(f64::max);
        match highest {
            None => return,
            Some(highest) if highest <= 1.0 => {
                let scaled = |number: &mut Option<Printed>| *number = number.take().map(Printed::of_fraction);
                claim.scores.iter_mut().chain([&mut claim.drop, &mut claim.average]).for_each(scaled);
                claim.others = claim.others.into_iter().map(Printed::of_fraction).collect();
            }
            Some(_) => {}
        }
        self.claims.push(claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::table::tables;

    fn read_one(text: &str) -> Result<Claims, String> {
        claims(&tables(text)[0])
    }

    fn percents(claim: &Claim) -> Vec<Option<f64>> {
        let percent = |number: &Option<Printed>| number.as_ref().map(|number| (number.percent * 100.0).round() / 100.0);
        claim.scores.iter().chain([&claim.average]).map(percent).collect()
    }

    #[test]
    fn a_line_a_model() {
        let text = "| # | Model | Params | Avg | ARC-c | GSM8k |\n|-|-|-|-|-|-|\n| 1 | [a](x) | 7 | **50.5** | 60 | 41.0 |\n| 2 | b | 13 | - | 3/4 | |\n| 3 | c | 1 | | | 5 |\n";
        let found = read_one(text).unwrap();
        assert_eq!(found.claims.len(), 2, "b says nothing");
        assert_eq!((found.claims[0].model.as_deref(), found.claims[0].line), (Some("a"), 3));
        assert_eq!(percents(&found.claims[0]), [Some(60.0), None, None, None, None, Some(41.0), Some(50.5)]);
        assert!(found.claims[0].others.is_empty(), "ranks and sizes are no scores");
        assert_eq!(found.unclear, [(4, "3/4".to_owned())]);
    }

    #[test]
    fn a_column_a_model_and_fractions() {
        let text = "| Task | a | b |\n|-|-|-|\n| HellaSwag (10-shot) | 0.8649 | 80 |\n| MMLU | 0.7182 | 60 |\n| Average | 0.79155 | 70 |\n| Price | 3 | 4 |\n";
        let found = read_one(text).unwrap();
        assert_eq!(percents(&found.claims[0]), [None, Some(86.49), Some(71.82), None, None, None, Some(79.16)]);
        assert_eq!(percents(&found.claims[1])[1..3], [Some(80.0), Some(60.0)]);
        assert_eq!(found.claims[1].model.as_deref(), Some("b"));
    }

    #[test]
    fn the_harness_s_own_table() {
        let text = "|    Tasks    |Version|n-shot| Metric |Value |   |Stderr|\n|-|-|-|-|-:|-|-:|\n|arc_challenge|1|25|acc|0.5614|±|0.0145|\n| | |25|acc_norm|0.5956|±|0.0143|\n|hellaswag|1|10|acc|0.6|±|0.1|\n| | |10|acc_norm|0.81|±|0.1|\n|winogrande|1|5|acc|0.7|±|0.1|\n";
        let found = read_one(text).unwrap();
        assert_eq!(percents(&found.claims[0]), [Some(59.56), Some(81.0), None, None, Some(70.0), None, None]);
        assert_eq!((found.claims.len(), found.claims[0].model.clone()), (1, None));
    }

    #[test]
    fn other_tables_are_left_with_a_reason() {
        let reason = |text: &str| read_one(text).unwrap_err();
        assert!(reason("| Model | Base |\n|-|-|\n| a | b |\n").contains("none of the six tasks"));
        assert!(reason("| Model | GSM8K | HumanEval |\n|-|-|-|\n| a | 5 | 6 |\n").contains("less than three"));
        assert!(reason("| Model | Average | IFEval | BBH |\n|-|-|-|-|\n| a | 5 | 6 | 4 |\n").contains("other tasks"));
        assert!(reason("| Model | Average |\n|-|-|\n| a | |\n").contains("no scores"));
    }
}
