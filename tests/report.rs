//! One set of digits: every format is read back and holds the figures of the table.

mod binary;

use std::collections::BTreeMap;

use binary::Workplace;
use fireval::rows::Rows;
use serde_json::Value;

/// Score, error, difference and its error by model and task; `-` for what is not there.
type Figures = BTreeMap<(String, String), [String; 4]>;

const TITLES: [(&str, &str); 3] = [("ARC", "arc_challenge"), ("MMLU", "mmlu"), ("Winogrande", "winogrande")];

fn printed(format: &str) -> String {
    let place = Workplace::new();
    let models = ["scripted:a", "scripted:b", "published:mistralai/Mixtral-8x7B-v0.1@4bit"];
    let flags = ["--data", "bundled", "--tasks", "arc_challenge,mmlu,winogrande", "--limit", "7", "--format", format];
    place.run(&[&["compare"], &models[..], &flags[..]].concat()).done()
}

/// With two decimals and, for differences, a sign: what the formats agree on.
fn digits(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |number| format!("{number:.2}"))
}

fn from_csv(text: &str) -> Figures {
    let rows = Rows::csv("table.csv".to_owned(), text.as_bytes()).unwrap();
    let mut figures = Figures::new();
    for index in 0..rows.len() {
        let row = rows.get(index).unwrap();
        let text = |column: &str| row[column].as_str().unwrap().to_owned();
        let figure = ["score", "stderr", "delta", "delta_stderr"].map(|column| digits(&row[column]));
        figures.insert((text("model"), text("task")), figure);
    }
    figures
}

fn from_json(text: &str) -> Figures {
    let json: Value = serde_json::from_str(text).unwrap();
    let mut figures = Figures::new();
    for model in json["models"].as_array().unwrap() {
        let name = model["model"].as_str().unwrap();
        let scores = model["scores"].as_object().unwrap().iter().map(|(task, figure)| (task.as_str(), figure));
        for (task, figure) in scores.chain([("average", &model["average"])]) {
            let figure = ["score", "stderr", "delta", "delta_stderr"].map(|key| digits(&figure[key]));
            figures.insert((name.to_owned(), task.to_owned()), figure);
        }
    }
    figures
}

/// `57.52 ±1.45`, `-0.50`, or nothing.
fn value_and_error(text: &str) -> [String; 2] {
    let mut parts = text.split(" ±").map(|part| part.trim().trim_start_matches('+').to_owned());
    let part = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or("-".to_owned());
    [part(parts.next()), part(parts.next())]
}

fn from_markdown(text: &str) -> Figures {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().take_while(|line| line.starts_with('|'));
    let head = cells(lines.next().unwrap());
    let mut figures = Figures::new();
    for line in lines.skip(1) {
        let cells = cells(line);
        for (title, cell) in head.iter().zip(&cells) {
            let known = TITLES.iter().find(|(known, _)| title.starts_with(known));
            let (task, score, delta) = match known {
                Some((_, task)) => {
                    let (score, delta) = cell.split_once(" (").unwrap_or((cell, ""));
                    (*task, score.to_owned(), delta.trim_end_matches(')').to_owned())
                }
                None if title == "Average" => ("average", cell.clone(), cells.last().unwrap().clone()),
                None => continue,
            };
            let ([score, stderr], [delta, delta_stderr]) = (value_and_error(&score), value_and_error(&delta));
            figures.insert((cells[0].clone(), task.to_owned()), [score, stderr, delta, delta_stderr]);
        }
    }
    figures
}

fn from_terminal(text: &str) -> Figures {
    let grid: Vec<Vec<String>> = text
        .lines()
        .take_while(|line| !line.starts_with("leaderboard-v1"))
        .filter(|line| line.starts_with('│'))
        .map(|line| line.trim_matches('│').split('┆').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    let head = &grid[0];
    let mut figures = Figures::new();
    for pair in grid[2..].chunks(2) {
        let (first, second) = (&pair[0], &pair[1]);
        for (column, title) in head.iter().enumerate() {
            let known = TITLES.iter().find(|(known, _)| known == title);
            let (task, delta) = match known {
                Some((_, task)) => (*task, &second[column]),
                None if title == "Average" => ("average", first.last().unwrap()),
                None => continue,
            };
            let ([score, stderr], [delta, delta_stderr]) = (value_and_error(&first[column]), value_and_error(delta));
            figures.insert((first[0].clone(), task.to_owned()), [score, stderr, delta, delta_stderr]);
        }
    }
    figures
}

#[test]
fn every_format_has_the_same_digits() {
    let csv = from_csv(&printed("csv"));
    assert_eq!(csv.len(), 3 * 4);
    let measured = &csv[&("scripted:b".to_owned(), "mmlu".to_owned())];
    assert!(measured.iter().all(|figure| figure != "-"), "{measured:?}");
    let published = &csv[&("mistralai/Mixtral-8x7B-v0.1".to_owned(), "mmlu".to_owned())];
    // sqrt(0.7017 * 0.2983 / 9528.2), the subjects' effective number.
    assert_eq!((published[0].as_str(), published[1].as_str()), ("70.17", "0.47"));
    assert_eq!(from_json(&printed("json")), csv);
    assert_eq!(from_markdown(&printed("markdown")), csv);
    assert_eq!(from_terminal(&printed("table")), csv);
}

/// Score, its interval, difference, its interval, p, Holm's p, gained and lost by model and task.
type Tests = BTreeMap<(String, String), [String; 10]>;

const TEST_COLUMNS: [&str; 10] =
    ["score", "low", "high", "delta", "delta_low", "delta_high", "p", "holm", "gained", "lost"];

/// A number as every format spells it apart from its sign and trailing zeros.
fn plain(value: &Value) -> String {
    value.as_f64().map_or("-".to_owned(), |number| number.to_string())
}

fn tests_from_csv(text: &str) -> Tests {
    let rows = Rows::csv("table.csv".to_owned(), text.as_bytes()).unwrap();
    let all = (0..rows.len()).map(|index| {
        let row = rows.get(index).unwrap();
        let text = |column: &str| row[column].as_str().unwrap().to_owned();
        ((text("model"), text("task")), TEST_COLUMNS.map(|column| plain(&row[column])))
    });
    all.collect()
}

fn tests_from_json(text: &str) -> Tests {
    let json: Value = serde_json::from_str(text).unwrap();
    let mut tests = Tests::new();
    for model in json["models"].as_array().unwrap() {
        let scores = model["scores"].as_object().unwrap().iter().map(|(task, figure)| (task.as_str(), figure));
        for (task, figure) in scores.chain([("average", &model["average"])]) {
            let key = (model["model"].as_str().unwrap().to_owned(), task.to_owned());
            tests.insert(key, TEST_COLUMNS.map(|column| plain(&figure[column])));
        }
    }
    tests
}

/// The second table of Markdown or a terminal, by its cells.
fn tests_from_cells(lines: impl Iterator<Item = Vec<String>>) -> Tests {
    let mut tests = Tests::new();
    for cells in lines {
        let known = TITLES.iter().find(|(title, _)| cells.get(1).is_some_and(|cell| cell == title));
        let task = match known {
            Some((_, task)) => *task,
            None if cells.get(1).is_some_and(|cell| cell == "Average") => "average",
            None => continue,
        };
        // `+1.42 [-0.36, +3.20] ~` and `+3 -2` are numbers with signs of their own between them.
        let mut numbers = Vec::new();
        for (cell, count) in cells[2..].iter().zip([3, 3, 1, 1, 2]) {
            let words = cell.split([' ', '[', ']', ',', '~']).filter(|word| !word.is_empty());
            let found: Vec<String> = words.map(|word| word.parse::<f64>().unwrap().to_string()).collect();
            numbers.extend((0..count).map(|index| found.get(index).cloned().unwrap_or("-".to_owned())));
        }
        if numbers[9] != "-" {
            numbers[9] = numbers[9].trim_start_matches('-').to_owned();
        }
        tests.insert((cells[0].clone(), task.to_owned()), numbers.try_into().unwrap());
    }
    tests
}

#[test]
fn every_format_has_the_same_intervals_and_tests() {
    let csv = tests_from_csv(&printed("csv"));
    let arc = &csv[&("scripted:b".to_owned(), "arc_challenge".to_owned())];
    assert!(arc.iter().all(|number| number != "-"), "{arc:?}");
    assert_eq!(tests_from_json(&printed("json")), csv);
    let markdown = printed("markdown");
    let second = markdown.lines().skip_while(|line| !line.contains("[95 %]")).filter(|line| line.starts_with('|'));
    let cells = |line: &str, bar: char| -> Vec<String> {
        let inside = line.trim_matches(['|', '│']);
        inside.split(bar).map(|cell| cell.trim().to_owned()).collect()
    };
    assert_eq!(tests_from_cells(second.map(|line| cells(line, '|'))), csv);
    let terminal = printed("table");
    let second = terminal.lines().skip_while(|line| !line.contains("[95 %]")).filter(|line| line.starts_with('│'));
    assert_eq!(tests_from_cells(second.map(|line| cells(line, '┆'))), csv);
}
