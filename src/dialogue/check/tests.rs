//! Whole files, without a model (with one: `tests/dialogues.rs` and the trainer's tests).

use super::*;

fn row(question: &str, answer: &str) -> String {
    serde_json::json!({"data": [question, answer]}).to_string()
}

fn looked(text: &str, language: Option<Language>) -> (Check, Vec<Checked>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.jsonl");
    std::fs::write(&path, text).unwrap();
    let mut dialogues = Vec::new();
    let reading = Reading { language, ..Reading::default() };
    let mut check = check(&[path], &reading, |checked| dialogues.push(checked)).unwrap();
    check.files = vec!["some.jsonl".to_owned()];
    (check, dialogues)
}

#[test]
fn findings_have_their_lines_in_order() {
    let german = row("Wann öffnet das Museum?", "Das Museum öffnet um neun, und sonntags kostet es gar nichts.");
    let lines = [
        row("Hi", "Hello."),
        "{".to_owned(),
        row("", "x"),
        serde_json::json!({"data": ["only a question"]}).to_string(),
        row("HI!", "hello"),
        german.clone(),
        serde_json::json!({"data": ["a", "b", "c"]}).to_string(),
        row("Go on", "It was a dark night, and then she"),
    ];
    let (check, dialogues) = looked(&lines.join("\n"), Some("eng".parse().unwrap()));
    assert_eq!((check.rows, check.dialogues, check.turns, dialogues.len()), (8, 5, 10, 5));
    let lines = |finding: Finding| -> Vec<usize> { check.findings[&finding].iter().map(|found| found.line).collect() };
    for (finding, expected) in [
        (Finding::Malformed, 2),
        (Finding::EmptyTurns, 3),
        (Finding::WithoutAnswer, 4),
        (Finding::Duplicates, 5),
        (Finding::OtherLanguage, 6),
        (Finding::CutTails, 7),
        (Finding::Unfinished, 8),
    ] {
        assert_eq!(lines(finding), [expected], "{finding:?}");
    }
    let duplicate = &check.findings[&Finding::Duplicates];
    assert!(check.lines(duplicate, 5).starts_with("some.jsonl, line 5: of ") && check.tokens.is_none());
    assert_eq!(check.languages.values().sum::<usize>(), 5);
    assert_eq!(check.languages[&Some("deu")], 1);
    let (check, _) = looked(&german, None);
    assert!(check.findings.is_empty(), "no language is asked for");
}

#[test]
fn limits_are_shares_of_the_rows() {
    let (check, _) = looked(&format!("{}\n", row("Hi", "Hello.")).repeat(4), None);
    assert_eq!((check.found(Finding::Duplicates), check.share(Finding::Duplicates)), (3, 0.75));
    let limits = |duplicates: f64| Limits { duplicates, ..Limits::default() };
    assert!(check.enforce(&limits(0.75)).is_ok());
    let told = check.enforce(&limits(0.5)).unwrap_err().to_string();
    assert!(told.contains("`[data.limits] duplicates` allows 50 % of the rows, and 3 of 4 (75 %)"), "{told}");
    assert!(told.contains("some.jsonl, lines 2: of "), "{told}");
    let found = &check.findings[&Finding::Duplicates];
    assert!(check.lines(found, 1).ends_with("; and 2 more"), "{}", check.lines(found, 1));
    assert_eq!([0.0, 0.1, 0.0349, 1.0].map(percent), ["0 %", "10 %", "3.5 %", "100 %"]);
}

#[test]
fn an_answer_that_stops_in_the_middle_is_told_from_a_list_or_a_link() {
    for (answer, unfinished) in [
        ("It was a dark night, and then she", true),
        ("The cases are one, two, three, four,", true),
        ("It was a dark night, and then she left.", false),
        ("Some cities:\n- the old town of Rome and its many hills", false),
        ("2. Take the bus to the very last stop", false),
        ("Have a nice day", false),
        ("Here:\n```rust\nfn main() {", true),
        ("Here:\n```rust\nfn main() {}\n```", false),
        ("Read about the whole of it here: https://example.org/", false),
    ] {
        assert_eq!(is_unfinished(answer), unfinished, "{answer}");
    }
}
