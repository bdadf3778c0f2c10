//! One set of digits: each of the six formats is read back by a reader of that format, and holds the figures of the table
//! under names that hold what every format has to escape.

mod binary;

use std::collections::BTreeMap;

use binary::Workplace;
use fireval::compare::why::Origins;
use fireval::report::Format;
use fireval::report::why::{self, FlipPage, FlipText};
use fireval::rows::Rows;
use fireval::task::Shown;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use serde_json::Value;

/// What is special in CSV, JSON, Markdown, LaTeX, HTML or a terminal's frame. (`+` would choose the engine's behaviour.)
const STRANGE: &str =
    "scripted:a|b, \"c\" 'd' & &amp; &lt;e> <b>50%</b> #_f_{g}$h$ \\i\\| ~~j~~ ^k *l* `m` [n](o) -- │ ┆ é\np";

/// By model (line ends as spaces, as most formats have them) and task, then by the column that CSV calls it; empty for what
/// is not there. Differences without their plus.
type Figures = BTreeMap<(String, String), BTreeMap<&'static str, String>>;

const SCORES: [&str; 4] = ["score", "stderr", "delta", "delta_stderr"];
/// The columns of the second table, by its cells; `noise` is the mark after the difference.
const TESTS: [&[&str]; 5] =
    [&["score", "low", "high"], &["delta", "delta_low", "delta_high"], &["p"], &["holm"], &["gained", "lost"]];
const PLAIN: [&str; 2] = ["documents", "correct"];

const TITLES: [(&str, &str); 4] =
    [("ARC", "arc_challenge"), ("MMLU", "mmlu"), ("Winogrande", "winogrande"), ("Average", "average")];

fn printed(format: &str) -> String {
    let place = Workplace::new();
    let models = ["scripted:b", STRANGE, "published:mistralai/Mixtral-8x7B-v0.1@4bit"];
    let flags = ["--data", "bundled", "--tasks", "arc_challenge,mmlu,winogrande", "--limit", "7", "--format", format];
    place.run(&[&["compare"], &models[..], &flags[..]].concat()).done()
}

fn key(model: &str, task: &str) -> (String, String) {
    (model.replace('\n', " "), task.to_owned())
}

fn columns() -> impl Iterator<Item = &'static str> {
    let tests = TESTS.into_iter().flatten().skip(1).copied().filter(|column| *column != "delta");
    SCORES.into_iter().chain(tests).chain(PLAIN).chain(["noise"])
}

/// The task whose title begins a cell.
fn task(cell: &str) -> Option<&'static str> {
    TITLES.iter().find(|(title, _)| cell.split([' ', '\n']).next() == Some(title)).map(|(_, task)| *task)
}

fn unsigned(text: &str) -> String {
    text.trim().trim_start_matches('+').to_owned()
}

fn from_csv(text: &str) -> Figures {
    let rows = Rows::csv("table.csv".to_owned(), text.as_bytes()).unwrap();
    let mut figures = Figures::new();
    for index in 0..rows.len() {
        let row = rows.get(index).unwrap();
        let name = |column: &str| row[column].as_str().unwrap().to_owned();
        let cells = columns().map(|column| match &row[column] {
            Value::String(text) => (column, text.clone()),
            value => (column, number(column, value)),
        });
        figures.insert(key(&name("model"), &name("task")), cells.collect());
    }
    figures
}

/// A number that a reader gave its type, with the digits of `like`: two decimals for scores, any for what isn't a score.
fn number(column: &str, value: &Value) -> String {
    match (column, value) {
        (_, Value::Null) => String::new(),
        (_, Value::Bool(noise)) => if *noise { "yes" } else { "no" }.to_owned(),
        ("documents" | "correct" | "gained" | "lost", value) => value.as_u64().unwrap().to_string(),
        ("p" | "holm", value) if value.as_f64().unwrap() >= 0.0001 => format!("{:.4}", value.as_f64().unwrap()),
        ("p" | "holm", value) => format!("{:.1e}", value.as_f64().unwrap()),
        (_, value) => format!("{:.2}", value.as_f64().unwrap()),
    }
}

fn from_json(text: &str) -> Figures {
    let json: Value = serde_json::from_str(text).unwrap();
    let mut figures = Figures::new();
    for model in json["models"].as_array().unwrap() {
        let name = model["model"].as_str().unwrap();
        let scores = model["scores"].as_object().unwrap().iter().map(|(task, figure)| (task.as_str(), figure));
        for (task, figure) in scores.chain([("average", &model["average"])]) {
            let cells = columns().map(|column| (column, number(column, figure.get(column).expect(column))));
            figures.insert(key(name, task), cells.collect());
        }
    }
    figures
}

/// Lines of cells, the first the head.
type Grid = Vec<Vec<String>>;

/// `57.52 ±1.45`, `-0.50`, or nothing.
fn value_and_error(text: &str) -> [String; 2] {
    let mut parts = text.split(" ±").map(unsigned);
    let mut part = || parts.next().filter(|part| part != "-").unwrap_or_default();
    [part(), part()]
}

/// The figures of a format that prints two tables for people. In the first a cell is `57.52 ±1.45 (+1.42 ±0.91)`, in the
/// second `+1.42 [-0.36, +3.20] ~` and `+3 -2`.
fn from_grids(grids: &[Grid]) -> Figures {
    let [first, second] = grids else { panic!("{} tables", grids.len()) };
    let mut figures = Figures::new();
    for line in &first[1..] {
        assert_eq!(line.len(), first[0].len(), "{line:?}");
        for (title, cell) in first[0].iter().zip(line).skip(1) {
            let Some(task) = task(title) else { continue };
            let (score, delta) = match task {
                "average" => (cell.as_str(), line.last().unwrap().as_str()),
                _ => cell
                    .split_once(" (")
                    .map_or((cell.as_str(), ""), |(score, delta)| (score, delta.trim_end_matches(')'))),
            };
            let numbers = [value_and_error(score), value_and_error(delta)].concat();
            figures.insert(key(&line[0], task), SCORES.into_iter().zip(numbers).collect());
        }
    }
    for line in &second[1..] {
        let figure = figures.get_mut(&key(&line[0], task(&line[1]).unwrap())).unwrap();
        for (names, cell) in TESTS.into_iter().zip(&line[2..]) {
            let words = cell.split([' ', '[', ']', ',']).filter(|word| !word.is_empty() && *word != "~");
            let mut words = words.map(|word| if names[0] == "gained" { word[1..].to_owned() } else { unsigned(word) });
            for name in names {
                let word = words.next().unwrap_or_default();
                let before = figure.insert(name, word.clone()).unwrap_or(word.clone());
                assert_eq!(before, word, "{name} in both tables");
            }
        }
        let noise = if line[3].ends_with('~') { "yes" } else { "no" };
        figure.insert("noise", if line[3].is_empty() { "" } else { noise }.to_owned());
    }
    figures
}

/// Every text in a cell, read with all that GitHub reads; anything else than text there is a name that was not escaped.
fn from_markdown(text: &str) -> Figures {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_MATH;
    let mut grids: Vec<Grid> = Vec::new();
    let mut inside = false;
    for event in Parser::new_ext(text, options) {
        let grid = grids.last_mut();
        match event {
            Event::Start(Tag::Table(_)) => {
                inside = true;
                grids.push(Grid::new());
            }
            Event::End(TagEnd::Table) => inside = false,
            Event::Start(Tag::TableHead | Tag::TableRow) => grid.unwrap().push(Vec::new()),
            Event::Start(Tag::TableCell) => grid.unwrap().last_mut().unwrap().push(String::new()),
            Event::Text(text) if inside => grid.unwrap().last_mut().unwrap().last_mut().unwrap().push_str(&text),
            Event::End(TagEnd::TableHead | TagEnd::TableRow | TagEnd::TableCell) => {}
            other => assert!(!inside, "in a table: {other:?}"),
        }
    }
    from_grids(&grids)
}

fn from_html(text: &str) -> Figures {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let page = roxmltree::Document::parse_with_options(text, options).unwrap();
    let named = |node: roxmltree::Node, name: &str| node.tag_name().name() == name;
    let tables = page.descendants().filter(|node| named(*node, "table"));
    let grids: Vec<Grid> = tables
        .map(|table| {
            let rows = table.descendants().filter(|node| named(*node, "tr"));
            let cells =
                |row: roxmltree::Node| row.children().map(|cell| cell.text().unwrap_or_default().to_owned()).collect();
            rows.map(cells).collect()
        })
        .collect();
    from_grids(&grids)
}

/// The cells of the `tabular`s in what fireval writes: escaped characters, a few commands, `$`, `&` and `\\`.
fn from_latex(text: &str) -> Figures {
    let tabulars =
        text.split("\\begin{tabular}{").skip(1).map(|tabular| tabular.split("\\end{tabular}").next().unwrap());
    let grids: Vec<Grid> = tabulars
        .map(|tabular| {
            let (columns, body) = tabular.split_once('}').unwrap();
            let mut grid: Grid = body.replace("\\hline\n", "").trim().split(" \\\\").map(latex_cells).collect();
            assert_eq!(grid.pop(), Some(vec![String::new()]), "the last line ends too");
            assert!(grid.iter().all(|line| line.len() == columns.len()), "{grid:?}");
            grid
        })
        .collect();
    from_grids(&grids)
}

fn latex_cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut rest = line.trim();
    while let Some(c) = rest.chars().next() {
        let commands = [
            ("\\textbackslash{}", "\\"),
            ("\\textasciitilde{}", "~"),
            ("\\textasciicircum{}", "^"),
            ("\\textless{}", "<"),
            ("\\textgreater{}", ">"),
            ("\\textbar{}", "|"),
            ("\\textasciigrave{}", "`"),
            ("\\textquotesingle{}", "'"),
            ("\\char34{}", "\""),
            ("$\\pm$", "±"),
            ("$+$", "+"),
            ("$-$", "-"),
        ];
        let known = commands.into_iter().find(|(command, _)| rest.starts_with(command));
        let (read, text) = match (known, c) {
            (Some((command, text)), _) => (command.len(), text),
            (None, '\\') => {
                assert!("&%$#_{}".contains(&rest[1..2]), "{rest}");
                (2, &rest[1..2])
            }
            (None, '{' | '}') => (1, ""),
            (None, '$' | '%' | '#' | '_' | '^' | '~' | '<' | '>' | '|' | '"') => panic!("not escaped: {rest}"),
            (None, '&') => {
                cells.push(String::new());
                (1, "")
            }
            (None, c) => (c.len_utf8(), &rest[..c.len_utf8()]),
        };
        cells.last_mut().unwrap().push_str(text);
        rest = &rest[read..];
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

/// A cell is what stands between the crossings of the rule under the head; all characters here are one column wide.
fn from_terminal(text: &str) -> Figures {
    let mut grids: Vec<Grid> = Vec::new();
    let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
    let rules = lines.iter().enumerate().filter(|(_, line)| line.first() == Some(&'╞'));
    for (below, rule) in rules {
        let crossings: Vec<usize> = (0..rule.len()).filter(|&at| "╞╪╡".contains(rule[at])).collect();
        let cells = |line: &Vec<char>| -> Vec<String> {
            crossings
                .windows(2)
                .map(|ends| line[ends[0] + 1..ends[1]].iter().collect::<String>().trim().to_owned())
                .collect()
        };
        let in_frame = |line: &&Vec<char>| line.first() == Some(&'│');
        let head = lines[..below].iter().rev().take_while(in_frame).last().unwrap();
        grids.push([head].into_iter().chain(lines[below + 1..].iter().take_while(in_frame)).map(cells).collect());
    }
    // In the first table a model has two lines, differences below scores, in one cell for the average.
    let first = &grids[0];
    let pairs = first[1..].chunks(2).map(|pair| {
        let cell = |(column, score): (usize, &String)| match (column, pair[1][column].as_str()) {
            (0, _) | (_, "") => score.clone(),
            (_, delta) => format!("{score} ({delta})"),
        };
        pair[0].iter().enumerate().map(cell).collect()
    });
    grids[0] = [first[0].clone()].into_iter().chain(pairs).collect();
    from_grids(&grids)
}

#[test]
fn every_format_has_the_same_digits() {
    let csv = from_csv(&printed("csv"));
    assert_eq!(csv.len(), 3 * 4);
    let arc = &csv[&key(STRANGE, "arc_challenge")];
    assert!(columns().all(|column| !arc[column].is_empty()), "{arc:?}");
    let published = &csv[&key("mistralai/Mixtral-8x7B-v0.1", "mmlu")];
    // sqrt(0.7017 * 0.2983 / 9528.2), the subjects' effective number.
    assert_eq!((published["score"].as_str(), published["stderr"].as_str()), ("70.17", "0.47"));
    assert_eq!(from_json(&printed("json")), csv);

    let mut shown = csv;
    shown.values_mut().for_each(|figure| figure.retain(|column, _| !PLAIN.contains(column)));
    assert_eq!(from_markdown(&printed("markdown")), shown);
    assert_eq!(from_html(&printed("html")), shown);
    assert_eq!(from_latex(&printed("latex")), shown);
    assert_eq!(from_terminal(&printed("table")), shown);
}

/// Differences and flips in Markdown, whose documents and models are called by what Markdown would obey.
#[test]
fn what_others_wrote_stays_text_in_markdown_s_flips() {
    let evil = "<img src=x>\n# a heading\n```\n[a](b)";
    let shown = Shown { question: evil.to_owned(), options: vec![evil.to_owned()], right: evil.to_owned() };
    let picks = [evil.to_owned(), evil.to_owned()];
    let flip = FlipText { place: "t document 4".to_owned(), scores: [0.0, 1.0], shown, picks };
    let models = ["<b>*a*", "# a heading\n# too"];
    let command = "fireval flips t '<b>*a*'";
    let page = FlipPage { task: "t", models, flips: &[flip], skip: 0, all: 2, command };
    let origins =
        models.map(|model| Origins { model: model.to_owned(), change: 0.0, tasks: Vec::new(), subtasks: Vec::new() });
    let text = why::print(&origins, Format::Markdown, None) + &page.print(Format::Markdown);
    let mut shown = [String::new(), String::new()];
    let mut in_code = false;
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Html(_) | Event::InlineHtml(_) => panic!("{event:?} in {text}"),
            Event::Start(Tag::Heading { .. } | Tag::Link { .. } | Tag::Image { .. } | Tag::Emphasis) => {
                panic!("{event:?} in {text}")
            }
            Event::Text(words) => shown[usize::from(in_code)].push_str(&words),
            _ => {}
        }
    }
    let [prose, code] = shown;
    assert_eq!(code.matches(evil).count(), 5, "question, option, right and two picks: {text}");
    assert!(prose.contains("differently by <b>*a* and # a heading # too") && prose.contains(command), "{prose}");
}

#[test]
fn a_file_s_ending_says_its_format() {
    let place = Workplace::new();
    let begins = [
        ("t.html", "<!DOCTYPE html>"),
        ("t.tex", "% fireval"),
        ("t.md", "| Model |"),
        ("t.csv", "protocol,"),
        ("t.json", "{"),
    ];
    for (file, begin) in begins {
        let args = [
            "compare",
            "scripted:a",
            "--data",
            "bundled",
            "--tasks",
            "arc_challenge",
            "--limit",
            "2",
            "--output",
            file,
        ];
        assert_eq!(place.run(&args).done(), "", "{file}");
        assert!(place.read(file).starts_with(begin), "{file}");
    }
}
