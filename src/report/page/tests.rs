//! A page is whole, escapes what others wrote, and has the digits of the table.

use super::*;
use crate::compare::why::Share;
use crate::published::Billions;
use crate::report::samples::tests::answers;
use crate::report::tests::comparison;
use crate::report::why::FlipText;
use crate::store::manifest::tests::manifest;
use crate::task::Shown;
use crate::train::log::tests::step;
use crate::train::log::{Entry, HeldOut};

fn flip(question: &str, pick: &str) -> PageFlip {
    PageFlip {
        text: FlipText {
            place: "arc_challenge document 4".to_owned(),
            scores: [0.0, 1.0],
            shown: Shown { question: question.to_owned(), options: vec![pick.to_owned()], right: "r".to_owned() },
            picks: ["p".to_owned(), pick.to_owned()],
        },
        prompts: ["asked".to_owned(), "asked otherwise".to_owned()],
    }
}

fn set(shown: Vec<PageFlip>) -> FlipSet {
    FlipSet { task: "arc_challenge".to_owned(), models: ["base".to_owned(), "ft".to_owned()], all: 7, shown }
}

fn steps() -> Vec<Entry> {
    let step = |at| step(at, Some(3.0 - 0.125 * at as f64));
    (1..=4).map(step).chain([Entry::HeldOut(HeldOut { step: 4, held_out_loss: Some(2.75) })]).collect()
}

/// A page of all its parts, with `flips`.
fn page(flips: &[FlipSet]) -> String {
    let share = |name: &str, change| Share { name: name.to_owned(), change, flips: Some((3, 2)) };
    let origins = [Origins {
        model: "ft".to_owned(),
        change: 0.0142,
        tasks: vec![share("arc_challenge", 0.0142)],
        subtasks: vec![share("arc_challenge/one", 0.01), share("arc_challenge/two", 0.0042)],
    }];
    let weights = Some(Billions { all: 46.7, active: 12.9 });
    let held = [Held { weights, tokens_per_second: Some(234.4) }, Held { weights, tokens_per_second: None }];
    let runs = vec![Recorded { manifest: manifest(), is_dated: true }];
    let made = [
        Made::Measured { model: "base".to_owned(), runs },
        Made::Published { model: "a,\"b\"|c".to_owned(), precision: "float16" },
    ];
    print(&Page {
        comparison: &comparison(),
        origins: &origins,
        held: &held,
        flips,
        samples: Some(&answers()),
        training: &[Training { model: "ft".to_owned(), log: steps() }],
        made: &made,
        command: "fireval report base 'f t'",
    })
    .unwrap()
}

#[test]
fn a_page_has_every_part_and_the_table_s_digits() {
    let text = page(&[set(vec![flip("why?", "q")])]);
    for part in ["scores", "differences", "budget", "origins", "flips", "samples", "training", "made"] {
        assert!(text.contains(&format!("<section id=\"{part}\">")), "{part}");
    }
    let table = Table::of(&comparison());
    for line in &table.intervals()[1..] {
        let cell = |cell: &String| format!(">{}</td>", cell.replace('"', "&quot;"));
        assert!(line.iter().all(|found| text.contains(&cell(found))), "{line:?}");
    }
    for told in
        ["57.52 ±1.45", "<small class=\"level\">+1.42 ±0.91</small>", "1970-01-01T00:00:00Z", "1 of 7 in arc_challenge"]
    {
        assert!(text.contains(told), "{told}");
    }
    assert!(text.contains("<td>46.7 B</td><td>12.9 B</td><td>56.10</td><td>234</td>"), "{text}");
    assert!(text.contains("4 steps, 400 tokens; mean cross-entropy of the learnt tokens from 2.8750 to 2.5000"));
    assert!(text.contains("fireval report base &#x27;f t&#x27;"), "the command, escaped");
    assert!(text.contains("<p class=\"text\">a|b</p>") && text.contains("3 tokens, cut there"), "answers");
    assert_eq!(page(&[]), page(&[]), "the same bytes");
    assert!(!page(&[]).contains("<section id=\"flips\">"));
}

#[test]
fn what_others_wrote_stays_text() {
    let evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>";
    let mut flips = set(vec![flip(evil, evil)]);
    flips.shown[0].prompts = [evil.to_owned(), "x".repeat(200_000)];
    flips.models[1] = "\"><script>".to_owned();
    let text = page(&[flips]);
    assert_eq!((text.matches("<script>").count(), text.matches("</script>").count()), (1, 1), "its own");
    assert!(!text.contains("<img") && text.contains("&lt;img src=x onerror=alert(1)&gt;"), "escaped");
    assert!(text.contains("196000 characters before this are not shown"), "a long line is cut, which is said");
    assert!(text.len() < 400_000, "{}", text.len());
}

#[test]
fn a_page_loads_nothing_and_runs_only_its_own() {
    let text = page(&[]);
    let policy = text.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(policy.starts_with("default-src &#x27;none&#x27;; style-src &#x27;sha256-"), "{policy}");
    let between = |start: &str, end: &str| {
        let rest = text.split(start).nth(1).unwrap();
        rest.split(end).next().unwrap().to_owned()
    };
    let (style, script) = (between("<style>", "</style>"), between("<script>", "</script>"));
    assert_eq!(super::policy(&style, &script).replace('\'', "&#x27;").replace('/', "&#x2f;"), policy);
    for loads in ["src=", "@import", "url(", " style=", "<iframe", "fetch("] {
        assert!(!text.contains(loads), "{loads}");
    }
    let links: Vec<&str> = text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(links.iter().all(|link| link.starts_with('#') || *link == "data:,"), "{links:?}");
}
