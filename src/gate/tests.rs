//! Each rule on differences worked by hand.

use std::collections::BTreeMap;

use super::*;
use crate::compare::{Column, Origin, Row, TaskFile};
use crate::score::DocScore;

const RULES: &str = "schema = 1\n[average]\nmargin = 1\nconfidence = 0.975\n[tasks]\nsignificance = 0.01\nignore_noise = true\n\
                     [floors]\narc = 50\n[suspect]\naverage_gain = 10\ntask_gain = 20\nalike = 0.98\n";

fn rules() -> Rules {
    Rules::read(RULES, "test.toml").unwrap()
}

fn cell(score: f64, difference: Option<(f64, f64)>, p: f64) -> Cell {
    let difference = difference.map(|(value, half)| Difference {
        value,
        stderr: None,
        interval: Some(Interval { low: value - half, high: value + half }),
        p_value: Some(p),
        holm: None,
        flips: None,
        in_noise: false,
        paired: true,
    });
    Cell { score, stderr: None, interval: None, documents: None, correct: None, difference }
}

/// A comparison of "arc" and "own" whose average differs by `value` give or take `half`, with the tasks' cells.
fn comparison((value, half): (f64, f64), cells: [Cell; 2]) -> Comparison {
    let column = |task: &str| {
        let (task, title, metric) = (task.to_owned(), task.to_owned(), "acc".to_owned());
        Column { task, title, metric, file: TaskFile::Own }
    };
    let row = |model: &str, cells: &[Cell], average| Row {
        model: model.to_owned(),
        origin: Origin::Measured,
        held: "f32".to_owned(),
        cells: cells.iter().copied().map(Some).collect(),
        average: Some(average),
    };
    let before = cell(0.6, None, 1.0);
    Comparison {
        protocol: Protocol::LeaderboardV1,
        columns: vec![column("arc"), column("own")],
        rows: vec![
            row("base", &[before, before], before),
            row("ft", &cells, cell(0.6 + value, Some((value, half)), 1.0)),
        ],
        notes: Vec::new(),
    }
}

fn runs() -> Vec<Run> {
    let manifest = crate::store::manifest::tests::manifest();
    ["arc", "own"]
        .map(|task| {
            let manifest = crate::store::Manifest { task: task.to_owned(), ..manifest.clone() };
            Run { title: task.to_owned(), manifest, scores: Vec::new() }
        })
        .to_vec()
}

fn judged(average: (f64, f64), cells: [Cell; 2]) -> Verdict {
    judge(&rules(), &comparison(average, cells), &runs()).unwrap()
}

fn even() -> Cell {
    cell(0.6, Some((0.0, 0.02)), 1.0)
}

fn findings(verdict: &Verdict, rule: &str) -> Vec<Finding> {
    verdict.checks.iter().filter(|check| check.rule.name() == rule).map(|check| check.finding).collect()
}

#[test]
fn the_margin_is_held_against_the_whole_interval() {
    let outcome = |average| judged(average, [even(), even()]).outcome();
    assert_eq!(outcome((-0.004, 0.005)), Outcome::Pass, "-0.9 to +0.1");
    assert_eq!(outcome((-0.008, 0.001)), Outcome::Pass, "worse, but by less than the margin");
    assert_eq!(outcome((-0.006, 0.005)), Outcome::NotEnough, "-1.1 to -0.1");
    assert_eq!(outcome((0.002, 0.013)), Outcome::NotEnough, "-1.1 to +1.5");
    assert_eq!(outcome((-0.02, 0.009)), Outcome::Regression, "-2.9 to -1.1");
}

#[test]
fn a_loss_on_one_task_is_corrected_for_the_tasks() {
    let with = |p: f64, value: f64| {
        let lost = cell(0.6 + value, Some((value, 0.01)), p);
        findings(&judged((0.0, 0.005), [lost, even()]), "no loss")
    };
    // One-sided 0.0045 times two tasks is 0.009; 0.006 times two is above 0.01.
    assert_eq!(with(0.009, -0.03), [Finding::Regression, Finding::Holds]);
    assert_eq!(with(0.012, -0.03), [Finding::Holds, Finding::Holds]);
    assert_eq!(with(0.0001, 0.03), [Finding::Holds, Finding::Holds], "a gain is no loss");
    let mut noise = cell(0.59, Some((-0.001, 0.0005)), 1e-5);
    noise.difference.as_mut().unwrap().in_noise = true;
    let quiet = judged((0.0, 0.005), [noise, even()]);
    assert_eq!(quiet.outcome(), Outcome::Pass);
    let strict =
        Rules { task_loss: rules().task_loss.map(|loss| rules::TaskLoss { ignore_noise: false, ..loss }), ..rules() };
    assert_eq!(
        judge(&strict, &comparison((0.0, 0.005), [noise, even()]), &runs()).unwrap().outcome(),
        Outcome::Regression
    );
}

#[test]
fn a_floor_is_absolute() {
    let at = |score: f64| judged((0.0, 0.005), [cell(score, Some((0.0, 0.02)), 1.0), even()]).outcome();
    assert_eq!((at(0.5), at(0.4999)), (Outcome::Pass, Outcome::Regression));
}

#[test]
fn a_subject_has_its_own_floor() {
    let mut runs = runs();
    runs[0].scores = [("x", 1.0), ("x", 0.0), ("y", 1.0)]
        .map(|(subtask, right)| DocScore {
            task: "arc".to_owned(),
            subtask: subtask.to_owned(),
            doc: 0,
            digest: String::new(),
            requests: Vec::new(),
            output: None,
            metrics: BTreeMap::from([(runs[0].manifest.metric.clone(), right)]),
        })
        .to_vec();
    let under = |floors: &str| {
        let rules = Rules::read(&format!("{RULES}[floors]\n{floors}").replacen("[floors]\narc = 50\n", "", 1), "x");
        judge(&rules.unwrap(), &comparison((0.0, 0.005), [even(), even()]), &runs).unwrap()
    };
    assert_eq!(under("\"arc/x\" = 50.1").outcome(), Outcome::Regression);
    let held = under("\"arc/x\" = 50\n\"arc/y\" = 99\n\"arc/z\" = 99");
    assert_eq!(findings(&held, "floor"), [Finding::Holds, Finding::Holds], "nobody asked of z");
    assert_eq!(held.notes, ["the floor of arc/z was not applied: none of its documents were asked"]);
    let idle = under("\"arc/z\" = 99\nmmlu = 99");
    assert_eq!(idle.notes, ["the floors of arc/z, mmlu were not applied: none of their documents were asked"]);
}

#[test]
fn a_gain_has_to_be_credible() {
    let gained = |value: f64, half: f64| judged((0.0, 0.005), [cell(0.9, Some((value, half)), 1e-9), even()]).outcome();
    assert_eq!(gained(0.21, 0.05), Outcome::Suspect);
    assert_eq!(gained(0.19, 0.05), Outcome::Pass, "below the limit");
    assert_eq!(gained(0.4, 0.5), Outcome::Pass, "a few documents");
    assert_eq!(judged((0.11, 0.05), [even(), even()]).outcome(), Outcome::Suspect, "the average");
    let lost = cell(0.3, Some((-0.3, 0.05)), 1e-9);
    assert_eq!(judged((0.11, 0.05), [lost, even()]).outcome(), Outcome::Suspect, "before a regression");
}

#[test]
fn a_rule_that_is_left_out_is_not_applied() {
    let bare = Rules::read("schema = 1\n[average]\nmargin = 1\nconfidence = 0.975", "x").unwrap();
    let lost = cell(0.1, Some((-0.5, 0.05)), 1e-9);
    let verdict = judge(&bare, &comparison((0.5, 0.005), [lost, even()]), &runs()).unwrap();
    assert_eq!((verdict.checks.len(), verdict.outcome()), (1, Outcome::Pass));
}

#[test]
fn what_can_t_be_judged_is_an_error() {
    let mut partial = comparison((0.0, 0.005), [even(), even()]);
    partial.rows[1].cells[1] = None;
    assert!(judge(&rules(), &partial, &runs()).unwrap_err().to_string().contains("no common score of own"));
    let mut few = comparison((0.0, 0.005), [even(), even()]);
    few.rows[1].average.as_mut().unwrap().difference.as_mut().unwrap().interval = None;
    assert!(judge(&rules(), &few, &runs()).unwrap_err().to_string().contains("too few documents"));
}
