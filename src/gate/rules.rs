//! The rules of a gate: a TOML file in points, checked once. `results/gate.toml` explains every key and is the default.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::eval::TaskDocuments;
use crate::settings;
use crate::task::{self, Task};

/// The version of the file's format.
const SCHEMA: u32 = 1;

/// The file that is built in.
pub const DEFAULT: &str = include_str!("../../results/gate.toml");
/// What the built-in rules are called.
pub const DEFAULT_PLACE: &str = "results/gate.toml, built in";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    schema: u32,
    average: WireAverage,
    tasks: Option<WireTasks>,
    #[serde(default)]
    floors: BTreeMap<String, f64>,
    #[serde(default)]
    suspect: WireSuspect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireAverage {
    margin: f64,
    confidence: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTasks {
    significance: f64,
    #[serde(default)]
    ignore_noise: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSuspect {
    average_gain: Option<f64>,
    task_gain: Option<f64>,
    alike: Option<f64>,
}

/// When a candidate passes. All in fractions; a rule that is none is not applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Where they were read.
    pub place: String,
    /// How much worse the average may be.
    pub margin: f64,
    /// One-sided, of the interval that the margin is held against.
    pub confidence: f64,
    pub task_loss: Option<TaskLoss>,
    /// The least score, by task or subject.
    pub floors: BTreeMap<String, f64>,
    pub average_gain: Option<f64>,
    pub task_gain: Option<f64>,
    /// The share of a task's documents.
    pub alike: Option<f64>,
}

/// When a task alone has lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskLoss {
    /// One-sided, after Holm's correction.
    pub significance: f64,
    /// Whether a loss within the noise floor of 16-bit types is none.
    pub ignore_noise: bool,
}

impl Rules {
    /// Reads `file`, or the built-in rules.
    pub fn open(file: Option<&Path>) -> Result<Rules> {
        let Some(file) = file else { return Rules::read(DEFAULT, DEFAULT_PLACE) };
        let text = std::fs::read_to_string(file).with_context(|| format!("can't read the rules {}", file.display()))?;
        Rules::read(&text, &file.display().to_string())
    }

    /// Reads the text of `place`.
    pub fn read(text: &str, place: &str) -> Result<Rules> {
        let wire: Wire = settings::parse(text, place)?;
        wire.checked(place).with_context(|| place.to_owned())
    }

    /// Refuses a floor of a task or subject that is neither built in nor among `asked`: it would never be applied.
    pub fn check_tasks(&self, asked: &[&str]) -> Result<()> {
        let known = known_names()?;
        let all = || known.iter().map(String::as_str).chain(asked.iter().copied());
        for name in self.floors.keys() {
            if !all().any(|task| task == name) {
                let near = settings::closest(name, all());
                let hint = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
                bail!("{}: [floors] there is no task `{name}`{hint}", self.place);
            }
        }
        Ok(())
    }

    /// Refuses a floor of which `questions` have no document: nothing would be held against it.
    pub fn check_asked(&self, questions: &[TaskDocuments]) -> Result<()> {
        for name in self.floors.keys() {
            ensure!(
                is_asked(name, questions),
                "{}: [floors] {name}: none of its documents are asked; leave this floor out, or ask them (--tasks, --limit)",
                self.place
            );
        }
        Ok(())
    }
}

/// Whether `name` is a task of `questions`, or a subject that some document has.
fn is_asked(name: &str, questions: &[TaskDocuments]) -> bool {
    let of_task = |asked: &TaskDocuments| {
        let Some(rest) = name.strip_prefix(asked.task.name()) else { return false };
        let subject = rest.strip_prefix('/');
        rest.is_empty() || asked.documents.iter().any(|document| subject == Some(document.subtask.as_str()))
    };
    questions.iter().any(of_task)
}

/// The built-in tasks, and their subjects as `mmlu/astronomy`.
fn known_names() -> Result<Vec<String>> {
    let mut names = task::known_tasks();
    for name in task::known_tasks() {
        let task = Task::load(&name, None)?;
        let subjects = task.groups().flat_map(|(_, members)| members);
        names.extend(subjects.map(|subject| format!("{name}/{subject}")));
    }
    Ok(names)
}

impl Wire {
    fn checked(self, place: &str) -> Result<Rules> {
        ensure!(self.schema == SCHEMA, "schema = {}: this fireval reads {SCHEMA}", self.schema);
        let WireAverage { margin, confidence } = self.average;
        ensure!(
            confidence > 0.5 && confidence < 1.0,
            "[average] confidence = {confidence}: one-sided, between 0.5 and 1, as 0.975"
        );
        let task_loss = self.tasks.map(WireTasks::checked).transpose()?;
        let floors =
            self.floors.into_iter().map(|(task, floor)| Ok((points(&format!("[floors] {task}"), floor, 0.0)?, task)));
        let floors: Result<BTreeMap<String, f64>> =
            floors.map(|floor| floor.map(|(floor, task)| (task, floor))).collect();
        let gain =
            |key: &str, gain: Option<f64>| gain.map(|gain| above_zero(&format!("[suspect] {key}"), gain)).transpose();
        if let Some(alike) = self.suspect.alike {
            ensure!(
                alike > 0.5 && alike <= 1.0,
                "[suspect] alike = {alike}: a share of documents above 0.5, at most 1"
            );
        }
        Ok(Rules {
            place: place.to_owned(),
            margin: above_zero("[average] margin", margin)?,
            confidence,
            task_loss,
            floors: floors?,
            average_gain: gain("average_gain", self.suspect.average_gain)?,
            task_gain: gain("task_gain", self.suspect.task_gain)?,
            alike: self.suspect.alike,
        })
    }
}

impl WireTasks {
    fn checked(self) -> Result<TaskLoss> {
        let WireTasks { significance, ignore_noise } = self;
        ensure!(
            significance > 0.0 && significance < 0.5,
            "[tasks] significance = {significance}: a probability between 0 and 0.5, as 0.005"
        );
        Ok(TaskLoss { significance, ignore_noise })
    }
}

/// Points as a fraction; the error of a fraction that was meant as points is the commonest there is.
fn above_zero(key: &str, value: f64) -> Result<f64> {
    ensure!(value > 0.0, "{key} = {value}: points above 0 (of a hundred), as 1.0");
    points(key, value, f64::MIN_POSITIVE)
}

fn points(key: &str, value: f64, least: f64) -> Result<f64> {
    ensure!(value >= least && value <= 100.0, "{key} = {value}: points of a hundred, 0 to 100");
    Ok(value / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_in_order() {
        let rules = Rules::open(None).unwrap();
        assert!((rules.margin - 0.01).abs() < 1e-12 && rules.confidence == 0.975);
        assert_eq!(rules.floors.len(), 5);
        rules.check_tasks(&[]).unwrap();
        assert!(rules.alike.is_some() && rules.task_loss.is_some_and(|loss| loss.ignore_noise));
    }

    #[test]
    fn a_floor_of_what_is_not_asked_is_refused() {
        let task = Task::load("arc_challenge", None).unwrap();
        let source = task::DataSource::Bundled;
        let documents = task.documents(crate::protocol::Protocol::LeaderboardV1, &source, Some(2), None).unwrap();
        let subject = documents[0].subtask.clone();
        let questions = [TaskDocuments { task, documents }];
        let check = |floor: &str| {
            let text = format!("schema = 1\n[average]\nmargin = 2\nconfidence = 0.9\n[floors]\n\"{floor}\" = 9");
            Rules::read(&text, "my.toml").unwrap().check_asked(&questions)
        };
        assert!(check("arc_challenge").is_ok() && check(&format!("arc_challenge/{subject}")).is_ok());
        for floor in ["mmlu", "arc_challenge/other", "arc"] {
            let error = check(floor).unwrap_err().to_string();
            assert!(error.contains(&format!("my.toml: [floors] {floor}: none of its documents")), "{error}");
        }
    }

    #[test]
    fn a_rule_that_is_left_out_is_none() {
        let rules = Rules::read("schema = 1\n[average]\nmargin = 2\nconfidence = 0.9", "x").unwrap();
        assert_eq!((rules.task_loss, rules.average_gain, rules.task_gain, rules.alike), (None, None, None, None));
        assert!(rules.floors.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let head = "schema = 1\n[average]\nmargin = 1\nconfidence = 0.975\n";
        let error = |text: &str| format!("{:#}", Rules::read(text, "my.toml").unwrap_err());
        let with = |more: &str| error(&format!("{head}{more}"));
        assert!(error("schema = 2\n[average]\nmargin = 1\nconfidence = 0.9").contains("my.toml: schema = 2"));
        assert!(error("schema = 1\n[average]\nmarign = 1").contains("line 3") && with("x = 1").contains("`x`"));
        assert!(error("schema = 1\n[average]\nmarign = 1").contains("did you mean `margin`?"));
        assert!(error(&head.replace("margin = 1", "margin = 0")).contains("[average] margin = 0"));
        assert!(error(&head.replace("0.975", "95")).contains("between 0.5 and 1"));
        assert!(with("[tasks]\nsignificance = 5").contains("[tasks] significance = 5"));
        assert!(with("[floors]\nmmlu = 250").contains("[floors] mmlu = 250"));
        assert!(with("[suspect]\ntask_gain = -3").contains("[suspect] task_gain = -3"));
        assert!(with("[suspect]\nalike = 98").contains("[suspect] alike = 98"));
        let rules = Rules::read(&format!("{head}[floors]\nhellaswg = 3"), "my.toml").unwrap();
        let error = rules.check_tasks(&["own"]).unwrap_err().to_string();
        assert!(error.contains("no task `hellaswg` (did you mean `hellaswag`?)"), "{error}");
        let of = |floor: &str| Rules::read(&format!("{head}[floors]\n{floor}"), "my.toml").unwrap();
        assert!(of("own = 3").check_tasks(&["own"]).is_ok() && of("\"mmlu/astronomy\" = 3").check_tasks(&[]).is_ok());
        let error = of("\"mmlu/astronmy\" = 3").check_tasks(&[]).unwrap_err().to_string();
        assert!(error.contains("no task `mmlu/astronmy` (did you mean `mmlu/astronomy`?)"), "{error}");
    }
}
