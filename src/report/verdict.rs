//! A gate's verdict as text and JSON. [`Page`] is built once and does all rounding and wording; JUnit (`junit`) and GitHub's
//! outputs (`github`) print the same strings.

use serde_json::{Value, json};

use super::{one_line, percent, probability, signed};
use crate::gate::uniform::Kind;
use crate::gate::{Check, Finding, Outcome, Rule, Sight, Uniform, Verdict};

/// The version of the JSON in `results/README.md`.
const SCHEMA: u32 = 1;

/// A verdict in words and digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What this many documents can tell; printed first.
    pub sight: String,
    /// Where that is less than the rules claim.
    pub low_power: Option<String>,
    pub title: String,
    pub lines: Vec<Line>,
    pub outcome: Outcome,
    pub conclusion: String,
    pub notes: Vec<String>,
}

/// A rule and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// A task, or "average".
    pub about: String,
    pub rule: &'static str,
    pub finding: Finding,
    pub text: String,
}

impl Page {
    pub fn of(verdict: &Verdict) -> Page {
        let (margin, confidence) = margin_of(verdict);
        Page {
            sight: sight(&verdict.sight, margin, confidence),
            low_power: verdict.sight.is_low().then(|| low_power(&verdict.sight, margin)),
            title: format!(
                "{} beside {}, {}, rules of {}",
                verdict.candidate,
                verdict.baseline,
                verdict.protocol.name(),
                verdict.rules
            ),
            lines: verdict.checks.iter().map(|check| Line::of(verdict, check)).collect(),
            outcome: verdict.outcome(),
            conclusion: conclusion(verdict),
            notes: verdict.notes.clone(),
        }
    }

    /// For a terminal or a log: what can be seen first, the verdict last.
    pub fn text(&self) -> String {
        let cells = |line: &Line| [one_line(&line.about), line.rule.to_owned(), word(line.finding).to_owned()];
        let width =
            |column: usize| self.lines.iter().map(|line| cells(line)[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 3] = std::array::from_fn(width);
        let mut text = format!("{}\n", self.sight);
        text.extend(self.low_power.iter().map(|low| format!("! {low}\n")));
        text.push_str(&format!("\n{}\n", one_line(&self.title)));
        for line in &self.lines {
            let padded: Vec<String> =
                cells(line).iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(&format!("  {}  {}\n", padded.join("  "), line.text));
        }
        text.extend(self.notes.iter().map(|note| format!("  * {}\n", one_line(note))));
        text.push_str(&format!("\n{}\n", one_line(&self.conclusion)));
        text
    }
}

/// A finding in every output.
pub fn word(finding: Finding) -> &'static str {
    match finding {
        Finding::Holds => "holds",
        Finding::Regression => "regression",
        Finding::Suspect => "suspect",
        Finding::Open => "open",
    }
}

impl Line {
    fn of(verdict: &Verdict, check: &Check) -> Line {
        let about = check.task.clone().unwrap_or_else(|| "average".to_owned());
        let text = match &check.rule {
            Rule::NonInferior { difference, interval, margin, confidence } => format!(
                "{} to {}: {} [{}, {}] against a margin of {}, one-sided at {} %",
                percent(verdict.averages[0]),
                percent(verdict.averages[1]),
                signed(*difference),
                signed(interval.low),
                signed(interval.high),
                percent(*margin),
                share(*confidence)
            ),
            Rule::TaskLoss { difference, p, significance, in_noise } => {
                let p = p.map_or("too few documents for a test".to_owned(), |p| {
                    format!("p of no loss {} after Holm, limit {}", probability(p), trimmed(*significance))
                });
                let noise = if *in_noise { ", within the noise of 16-bit types" } else { "" };
                format!("{}, {p}{noise}", signed(*difference))
            }
            Rule::Floor { score, floor } => format!("{}, floor {}", percent(*score), percent(*floor)),
            Rule::Gain { difference, low, most } => {
                format!("{}, at least {} (95 % interval), limit {}", signed(*difference), signed(*low), signed(*most))
            }
            Rule::Alike { uniform, most } => alike(uniform, *most),
        };
        Line { about, rule: check.rule.name(), finding: check.finding, text }
    }
}

fn alike(uniform: &Uniform, most: f64) -> String {
    let Uniform { kind, share: found, documents } = uniform;
    let what = match kind {
        Kind::Pick(index) => format!("choice {} is the likeliest", index + 1),
        Kind::LogLikelihood => "all log-likelihoods are one number".to_owned(),
        Kind::Text => "the generated text is the same".to_owned(),
    };
    format!("{what} in {} % of {documents} documents, limit {} %", share(*found), share(most))
}

fn conclusion(verdict: &Verdict) -> String {
    let (baseline, candidate, margin) = (&verdict.baseline, &verdict.candidate, percent(margin_of(verdict).0));
    let broken = |finding: Finding| {
        let names = verdict.checks.iter().filter(|check| check.finding == finding);
        let name = |check: &Check| format!("{} ({})", check.task.as_deref().unwrap_or("average"), check.rule.name());
        names.map(name).collect::<Vec<_>>().join(", ")
    };
    match verdict.outcome() {
        Outcome::Pass => format!("pass: {candidate} lost less than {margin} points of the average to {baseline}"),
        Outcome::Regression => format!("regression: {}", broken(Finding::Regression)),
        Outcome::Suspect => {
            let lost = broken(Finding::Regression);
            let also = if lost.is_empty() { String::new() } else { format!("; also a regression: {lost}") };
            format!("suspect: {}; look at the answers before believing the scores{also}", broken(Finding::Suspect))
        }
        Outcome::NotEnough => format!(
            "not enough evidence: a loss of {margin} points is neither shown nor refuted; `fireval plan-eval --margin {margin}` \
             says how many documents that takes"
        ),
    }
}

/// The margin and the confidence that the average was held against.
fn margin_of(verdict: &Verdict) -> (f64, f64) {
    let found = verdict.checks.iter().find_map(|check| match check.rule {
        Rule::NonInferior { margin, confidence, .. } => Some((margin, confidence)),
        Rule::TaskLoss { .. } | Rule::Floor { .. } | Rule::Gain { .. } | Rule::Alike { .. } => None,
    });
    found.unwrap_or_default()
}

/// What documents can tell, in a sentence.
pub fn sight(sight: &Sight, margin: f64, confidence: f64) -> String {
    format!(
        "with {} documents this gate sees a loss of {} points of the average with 80 % power (one-sided at {} %). A loss of \
         {} points ends as a regression as often; a candidate that lost nothing passes the margin of {} with {} %.",
        sight.documents,
        percent(sight.smallest),
        share(confidence),
        percent(sight.refuted),
        percent(margin),
        share(sight.at_margin)
    )
}

/// What to think of rules that claim more.
pub fn low_power(sight: &Sight, margin: f64) -> String {
    format!(
        "power {} % at the margin of {} points is less than half: passing and failing is mostly chance",
        share(sight.at_margin),
        percent(margin)
    )
}

/// A probability or share in percent, one decimal.
fn share(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

/// Without zeros at its end.
fn trimmed(value: f64) -> String {
    format!("{value}")
}

/// The verdict as JSON: scores and differences in points, with the digits of the text.
pub fn json(verdict: &Verdict) -> String {
    let page = Page::of(verdict);
    let checks = verdict.checks.iter().zip(&page.lines).map(|(check, line)| {
        let mut object = json!({
            "about": line.about, "rule": line.rule, "finding": word(line.finding), "text": line.text,
        });
        if let Value::Object(map) = &mut object {
            map.extend(numbers(&check.rule));
        }
        object
    });
    let sight = &verdict.sight;
    let value = json!({
        "schema": SCHEMA,
        "outcome": page.outcome.name(),
        "exit_code": page.outcome.exit_code(),
        "conclusion": page.conclusion,
        "baseline": verdict.baseline,
        "candidate": verdict.candidate,
        "protocol": verdict.protocol.name(),
        "rules": verdict.rules,
        "sight": {
            "documents": sight.documents,
            "stderr": points(sight.stderr),
            "smallest_visible_loss": points(sight.smallest),
            "regression_from": points(sight.refuted),
            "power_at_margin": rounded(&format!("{:.3}", sight.at_margin)),
            "low": sight.is_low(),
        },
        "checks": checks.collect::<Vec<_>>(),
        "notes": page.notes,
    });
    serde_json::to_string_pretty(&value).expect("strings and numbers serialise") + "\n"
}

fn numbers(rule: &Rule) -> Vec<(String, Value)> {
    let named =
        |values: &[(&str, Value)]| values.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    match rule {
        Rule::NonInferior { difference, interval, margin, confidence } => named(&[
            ("difference", points(*difference)),
            ("low", points(interval.low)),
            ("high", points(interval.high)),
            ("margin", points(*margin)),
            ("confidence", json!(confidence)),
        ]),
        Rule::TaskLoss { difference, p, significance, in_noise } => named(&[
            ("difference", points(*difference)),
            ("p", p.map_or(Value::Null, |p| rounded(&probability(p)))),
            ("significance", json!(significance)),
            ("in_noise", json!(in_noise)),
        ]),
        Rule::Floor { score, floor } => named(&[("score", points(*score)), ("floor", points(*floor))]),
        Rule::Gain { difference, low, most } => {
            named(&[("difference", points(*difference)), ("low", points(*low)), ("most", points(*most))])
        }
        Rule::Alike { uniform, most } => named(&[
            ("share", rounded(&format!("{:.3}", uniform.share))),
            ("documents", json!(uniform.documents)),
            ("most", json!(most)),
        ]),
    }
}

fn points(fraction: f64) -> Value {
    rounded(&percent(fraction))
}

/// The number that `digits` are.
fn rounded(digits: &str) -> Value {
    digits.parse::<f64>().map_or(Value::Null, |number| json!(number))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::stats::Interval;

    /// A verdict with every kind of rule and finding, and names that want escaping, for tests.
    pub fn verdict() -> Verdict {
        let check = |task: Option<&str>, rule, finding| Check { task: task.map(str::to_owned), rule, finding };
        let uniform = Uniform { kind: Kind::Pick(0), share: 0.995, documents: 200 };
        let loss = |difference, p, in_noise| Rule::TaskLoss { difference, p, significance: 0.005, in_noise };
        Verdict {
            baseline: "base".to_owned(),
            candidate: "ft <\"&'>|\u{1}\n%".to_owned(),
            protocol: Protocol::LeaderboardV1,
            rules: "results/gate.toml, built in".to_owned(),
            sight: Sight::new(28_659, 0.004, 0.01, 0.975),
            averages: [0.6842, 0.678],
            checks: vec![
                check(
                    None,
                    Rule::NonInferior {
                        difference: -0.0062,
                        interval: Interval { low: -0.0114, high: -0.001 },
                        margin: 0.01,
                        confidence: 0.975,
                    },
                    Finding::Open,
                ),
                check(Some("gsm8k"), loss(-0.04, Some(2e-5), false), Finding::Regression),
                check(Some("arc_challenge"), loss(-0.001, None, true), Finding::Holds),
                check(Some("mmlu"), Rule::Floor { score: 0.21, floor: 0.22 }, Finding::Regression),
                check(Some("mmlu"), Rule::Gain { difference: 0.31, low: 0.28, most: 0.3 }, Finding::Suspect),
                check(Some("mmlu"), Rule::Alike { uniform, most: 0.98 }, Finding::Suspect),
            ],
            notes: vec!["a\nnote".to_owned()],
        }
    }

    #[test]
    fn what_can_be_seen_stands_first_and_the_verdict_last() {
        let text = Page::of(&verdict()).text();
        assert!(text.starts_with("with 28659 documents this gate sees a loss of 1.12 points"), "{text}");
        assert!(text.contains("A loss of 2.12 points ends as a regression") && text.contains("with 70.5 %"), "{text}");
        assert!(
            text.contains("68.42 to 67.80: -0.62 [-1.14, -0.10] against a margin of 1.00, one-sided at 97.5 %"),
            "{text}"
        );
        assert!(text.contains("-4.00, p of no loss 2.0e-5 after Holm, limit 0.005"), "{text}");
        assert!(text.contains("too few documents for a test, within the noise"), "{text}");
        assert!(text.contains("21.00, floor 22.00") && text.contains("+31.00, at least +28.00"), "{text}");
        assert!(text.contains("choice 1 is the likeliest in 99.5 % of 200 documents"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("suspect: mmlu (credible gain), mmlu (answers differ)"), "{last}");
        assert!(last.ends_with("; also a regression: gsm8k (no loss), mmlu (floor)"), "{last}");
    }

    #[test]
    fn names_and_notes_stay_in_their_lines() {
        // GitHub's runner obeys a line of a log that begins with `::`.
        let mut evil = verdict();
        evil.candidate = "ft\n::error::y".to_owned();
        evil.checks.truncate(1);
        evil.checks[0].finding = Finding::Holds;
        evil.notes = vec!["a\r::error::note".to_owned()];
        let text = Page::of(&evil).text();
        assert!(text.contains("ft ::error::y beside base") && text.contains("pass: ft ::error::y lost"), "{text}");
        assert!(!text.contains("\n::") && !text.contains('\r'), "{text}");
    }

    #[test]
    fn json_has_the_digits_of_the_text() {
        let value: Value = serde_json::from_str(&json(&verdict())).unwrap();
        assert_eq!((value["outcome"].as_str(), value["exit_code"].as_u64()), (Some("suspect"), Some(1)));
        assert_eq!(
            (value["sight"]["smallest_visible_loss"].as_f64(), value["sight"]["power_at_margin"].as_f64()),
            (Some(1.12), Some(0.705))
        );
        let check = &value["checks"][0];
        assert_eq!(
            (check["difference"].as_f64(), check["low"].as_f64(), check["margin"].as_f64()),
            (Some(-0.62), Some(-1.14), Some(1.0))
        );
        assert_eq!((value["checks"][1]["p"].as_f64(), value["checks"][2]["p"].is_null()), (Some(2e-5), true));
        assert_eq!(value["checks"][3]["finding"], "regression");
    }

    #[test]
    fn every_outcome_has_its_sentence_and_code() {
        let only = |finding: Finding| {
            let mut verdict = verdict();
            verdict.checks.truncate(1);
            verdict.checks[0].finding = finding;
            (verdict.outcome().exit_code(), Page::of(&verdict).conclusion)
        };
        let cases = [
            (Finding::Holds, 0, "pass: "),
            (Finding::Regression, 1, "regression: average (non-inferior)"),
            (Finding::Suspect, 1, "suspect: "),
            (Finding::Open, 3, "not enough evidence: a loss of 1.00 points"),
        ];
        for (finding, code, start) in cases {
            let found = only(finding);
            assert!(found.0 == code && found.1.starts_with(start), "{found:?}");
        }
    }
}
