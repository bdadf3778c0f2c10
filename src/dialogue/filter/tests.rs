//! Rules on small files.

use super::*;
use crate::dialogue::contamination::{Benchmarks, Builder, Document};
use crate::dialogue::refusal::Phrases;

#[derive(Default)]
struct Kept {
    rows: Vec<String>,
    removed: Vec<(usize, &'static str, String)>,
}

impl Sink for Kept {
    fn keep(&mut self, row: &[u8]) -> Result<()> {
        self.rows.push(String::from_utf8(row.to_vec())?);
        Ok(())
    }

    fn remove(&mut self, removed: &Removed) -> Result<()> {
        self.removed.push((removed.line, removed.rule, removed.why.clone()));
        Ok(())
    }
}

fn filtered(lines: &[String], rules: &Rules) -> (Report, Kept) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut kept = Kept::default();
    let report = filter(&[path], rules, &mut kept, &Progress::hidden()).unwrap();
    (report, kept)
}

fn row(turns: &[&str]) -> String {
    serde_json::json!({"id": 7, "data": turns}).to_string()
}

fn benchmark(question: &str) -> Benchmarks {
    let name = Named { task: "arc_challenge".to_owned(), row: 5 };
    let mut builder = Builder::default();
    builder.add(Document { name, questions: &[question.to_owned()], answers: &[] });
    builder.finish()
}

fn all_rules() -> Rules {
    Rules {
        length: Some(3..=200),
        language: Some("eng".parse().unwrap()),
        refusals: Some(Phrases::default()),
        repetition: Some(0.3),
        contamination: Some(benchmark("Which of these animals is known to have the longest neck?")),
        duplicates: Some(0.8),
    }
}

const TALK: &str = "The museum opens at nine in the morning, and on Sundays you can look at all of the paintings in the \
                    great hall and in the garden for free, if you bring your own chair and a friend.";

#[test]
fn each_rule_removes_its_own_and_the_first_one_is_told() {
    let lines = [
        row(&["When does it open?", TALK]),
        "no JSON".to_owned(),
        row(&["a", "b"]),
        row(&["Wann öffnet es?", "Das Museum öffnet um neun Uhr, und sonntags kann man alle Gemälde umsonst ansehen."]),
        row(&["Do you like it?", "As an AI language model, I like nothing."]),
        row(&["And now?", &"I say it again and again, my friend. ".repeat(10)]),
        row(&["Now: which of these animals is known to have the longest neck", "The giraffe has it."]),
        row(&["When does it open?", &TALK.replace("friend", "friend of yours")]),
        row(&["one", "This is what I have said to you before.", "two", "This is what I have said to you before."]),
    ];
    let (report, kept) = filtered(&lines, &all_rules());
    assert_eq!(kept.rows, lines[..1], "as it was, with its other keys");
    let removed: Vec<(usize, &str)> = kept.removed.iter().map(|(line, rule, _)| (*line, *rule)).collect();
    let expected = [
        (2, "unreadable"),
        (3, "length"),
        (4, "language"),
        (5, "refusals"),
        (6, "repetition"),
        (7, "contamination"),
        (8, "duplicates"),
        (9, "repetition"),
    ];
    assert_eq!(removed, expected);
    assert_eq!((report.rows, report.kept, report.removed(Rule::Repetition)), (9, 1, 2));
    assert!(kept.removed[6].2.ends_with("some.jsonl, line 1"), "{:?}", kept.removed[6]);
    let found = &report.contaminated[0];
    assert_eq!((found.document.task.as_str(), found.document.row, found.runs), ("arc_challenge", 5, 1));
    assert!(found.text.starts_with("which of these") && found.place.ends_with("line 7"), "{found:?}");
}

#[test]
fn a_rule_that_is_off_removes_nothing() {
    let lines = [row(&["a", "b"]), row(&["a", "b"]), row(&["x", "As an AI, no."])];
    let (report, kept) = filtered(&lines, &Rules::default());
    assert_eq!((kept.rows.as_slice(), report.kept), (lines.as_slice(), 3));
    assert!(report.settings[1..].iter().all(|(_, setting)| setting == "off"), "{:?}", report.settings);
}

#[test]
fn threads_do_not_change_what_is_kept() {
    let lines: Vec<String> = (0..400)
        .map(|n| row(&[&format!("Question {}?", n % 170), &format!("{TALK} It is number {} of {}.", n % 170, n % 7)]))
        .collect();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (_, kept) = pool.install(|| filtered(&lines, &Rules { duplicates: Some(0.99), ..Rules::default() }));
        (kept.rows, kept.removed.len())
    };
    let (one, many) = (on(1), on(3));
    assert_eq!(one, many);
    assert!(one.1 > 0 && one.0.len() > 100, "{} removed", one.1);
}
