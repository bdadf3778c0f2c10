//! A task as its TOML file states it, checked once. `tasks/README.md` documents the format for those who write one.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;

use super::template::{Field, Template};
use crate::protocol::Protocol;
use crate::settings;

/// The file, key by key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    name: String,
    title: Option<String>,
    version: u32,
    metric: String,
    metric_latest: Option<String>,
    shots: usize,
    #[serde(default)]
    description: String,
    subtask: Option<String>,
    #[serde(default)]
    groups: Vec<Group>,
    data: WireData,
    prompt: WirePrompt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireData {
    folder: String,
    evaluation: Split,
    evaluation_file: Option<String>,
    shots_file: Option<String>,
    #[serde(default)]
    shots_choice: ShotsChoice,
    hub: Option<Hub>,
}

/// Where the rows lie on the hub.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    pub repository: String,
    /// A commit, so that the rows stay what they are.
    pub revision: String,
    /// Files in the repository.
    pub evaluation: String,
    pub shots: Option<String>,
}

/// Subtasks that lm-eval also averages under a name; it asks subtasks in the order of its groups.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: String,
    pub subtasks: Vec<String>,
}

/// Which split is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Test,
    /// The task's test labels are not public.
    Validation,
}

/// How a document's examples are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShotsChoice {
    /// Drawn for each document by the protocol's generator.
    #[default]
    Drawn,
    /// The first rows (of the document's subtask), the same for all.
    First,
}

#[derive(Deserialize)]
#[serde(tag = "shape", rename_all = "kebab-case", deny_unknown_fields)]
enum WirePrompt {
    MultipleChoice {
        text: String,
        clean: Option<Clean>,
        choices: Option<Vec<String>>,
        choices_field: Option<String>,
        gold: WireGold,
    },
    MultipleTrue {
        text: String,
        single: WireTruths,
        several: WireTruths,
    },
    PartialContext {
        sentence: String,
        options: Vec<String>,
        gold: WireGold,
    },
    Generation {
        text: String,
        target: String,
        max_tokens: usize,
        stop: Vec<String>,
        stop_latest: Option<Vec<String>>,
        filters: Vec<WireFilter>,
        #[serde(default)]
        ignore: Vec<String>,
    },
}

/// Named preprocessing of question and choices.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clean {
    /// HellaSwag's markers of WikiHow: see `prompt::clean_hellaswag`.
    Hellaswag,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireGold {
    index: Option<String>,
    number: Option<String>,
    label: Option<String>,
    among: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTruths {
    choices: String,
    labels: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFilter {
    name: String,
    regex: String,
    take: Take,
}

/// Which match of a filter's expression is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Take {
    First,
    Last,
}

/// A checked task.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: String,
    pub title: String,
    pub version: u32,
    pub metric: String,
    pub metric_latest: String,
    pub shots: usize,
    pub description: Template,
    /// The field that parts documents into subtasks.
    pub subtask: Option<Field>,
    pub groups: Vec<Group>,
    pub data: Data,
    pub prompt: Prompt,
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub struct Data {
    pub folder: String,
    pub split: Split,
    /// File names without ending.
    pub evaluation: String,
    pub shots: Option<String>,
    pub choice: ShotsChoice,
    pub hub: Option<Hub>,
}

/// How a row becomes text, by shape.
#[derive(Clone, Debug)]
pub enum Prompt {
    MultipleChoice { text: Template, clean: Option<Clean>, choices: ChoiceList, gold: Gold },
    MultipleTrue { text: Template, single: Truths, several: Truths },
    PartialContext { sentence: Field, options: Vec<Field>, gold: Gold },
    Generation { text: Template, target: Template, generation: Generation },
}

#[derive(Clone, Debug)]
pub enum ChoiceList {
    /// The same for every document: `A`, `B`, `C`, `D`.
    Fixed(Vec<String>),
    Field(Field),
}

/// How a row names the right choice.
#[derive(Clone, Debug)]
pub enum Gold {
    /// Counted from 0.
    Index(Field),
    /// Counted from 1.
    Number(Field),
    /// A label and the list it is found in.
    Label { label: Field, among: Field },
}

/// A list of choices with a 1 for each that is true.
#[derive(Clone, Debug)]
pub struct Truths {
    pub choices: Field,
    pub labels: Field,
}

/// Generated answers.
#[derive(Clone, Debug)]
pub struct Generation {
    pub max_tokens: usize,
    pub stop: Vec<String>,
    pub stop_latest: Vec<String>,
    pub filters: Vec<Filter>,
    /// Deleted from both sides before they are compared (lm-eval-latest).
    pub ignore: Vec<Regex>,
}

/// Takes an answer from a text.
#[derive(Clone, Debug)]
pub struct Filter {
    pub name: String,
    pub regex: Regex,
    pub take: Take,
}

impl Definition {
    /// Reads a task file; `place` is its path, for errors.
    pub fn parse(text: &str, place: &str) -> Result<Definition> {
        Definition::check(settings::parse(text, place)?).with_context(|| place.to_owned())
    }

    fn check(wire: Wire) -> Result<Definition> {
        let prompt = wire.prompt.check().context("`[prompt]`")?;
        ensure!(wire.shots == 0 || wire.data.shots_file.is_some(), "`shots = {}` needs `data.shots_file`", wire.shots);
        let fits = !wire.name.is_empty() && wire.name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        ensure!(fits, "`name`: letters, digits, `_`, `-` and `.` only, since files are named after it");
        ensure!(wire.groups.is_empty() || wire.subtask.is_some(), "`groups` needs `subtask`");
        let split_name = match wire.data.evaluation {
            Split::Test => "test",
            Split::Validation => "validation",
        };
        Ok(Definition {
            title: wire.title.unwrap_or_else(|| wire.name.clone()),
            name: wire.name,
            version: wire.version,
            metric_latest: wire.metric_latest.unwrap_or_else(|| wire.metric.clone()),
            metric: wire.metric,
            shots: wire.shots,
            description: Template::parse(&wire.description).context("`description`")?,
            subtask: wire.subtask.map(|field| Field::parse(&field)).transpose().context("`subtask`")?,
            groups: wire.groups,
            data: Data {
                folder: wire.data.folder,
                split: wire.data.evaluation,
                evaluation: wire.data.evaluation_file.unwrap_or_else(|| split_name.to_owned()),
                shots: wire.data.shots_file,
                choice: wire.data.shots_choice,
                hub: wire.data.hub,
            },
            prompt,
        })
    }

    /// The metric that a protocol reports.
    pub fn metric(&self, protocol: Protocol) -> &str {
        match protocol {
            Protocol::LeaderboardV1 => &self.metric,
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => &self.metric_latest,
        }
    }
}

impl WirePrompt {
    fn check(self) -> Result<Prompt> {
        Ok(match self {
            WirePrompt::MultipleChoice { text, clean, choices, choices_field, gold } => Prompt::MultipleChoice {
                text: Template::parse(&text).context("`text`")?,
                clean,
                choices: match (choices, choices_field) {
                    (Some(fixed), None) if fixed.len() > 1 => ChoiceList::Fixed(fixed),
                    (None, Some(field)) => ChoiceList::Field(Field::parse(&field)?),
                    _ => bail!("give either `choices`, a list of at least two, or `choices_field`"),
                },
                gold: gold.check()?,
            },
            WirePrompt::MultipleTrue { text, single, several } => Prompt::MultipleTrue {
                text: Template::parse(&text).context("`text`")?,
                single: single.check()?,
                several: several.check()?,
            },
            WirePrompt::PartialContext { sentence, options, gold } => {
                ensure!(options.len() > 1, "`options` names at least two fields");
                Prompt::PartialContext {
                    sentence: Field::parse(&sentence)?,
                    options: options.iter().map(|field| Field::parse(field)).collect::<Result<_>>()?,
                    gold: gold.check()?,
                }
            }
            WirePrompt::Generation { text, target, max_tokens, stop, stop_latest, filters, ignore } => {
                ensure!(max_tokens > 0 && !filters.is_empty(), "`max_tokens` above 0 and at least one of `filters`");
                let mut stops = stop.iter().chain(stop_latest.iter().flatten());
                ensure!(!stops.any(String::is_empty), "`stop` has an empty text, which would end every output at once");
                let generation = Generation {
                    max_tokens,
                    stop_latest: stop_latest.unwrap_or_else(|| stop.clone()),
                    stop,
                    filters: filters.into_iter().map(WireFilter::check).collect::<Result<_>>()?,
                    ignore: ignore.iter().map(|text| expression(text)).collect::<Result<_>>()?,
                };
                Prompt::Generation {
                    text: Template::parse(&text).context("`text`")?,
                    target: Template::parse(&target).context("`target`")?,
                    generation,
                }
            }
        })
    }
}

impl WireGold {
    fn check(self) -> Result<Gold> {
        Ok(match self {
            WireGold { index: Some(field), number: None, label: None, among: None } => {
                Gold::Index(Field::parse(&field)?)
            }
            WireGold { index: None, number: Some(field), label: None, among: None } => {
                Gold::Number(Field::parse(&field)?)
            }
            WireGold { index: None, number: None, label: Some(label), among: Some(among) } => {
                Gold::Label { label: Field::parse(&label)?, among: Field::parse(&among)? }
            }
            _ => bail!(
                "`gold` is one of {{ index = \"field\" }}, {{ number = \"field\" }}, {{ label = \"field\", among = \"field\" }}"
            ),
        })
    }
}

impl WireTruths {
    fn check(self) -> Result<Truths> {
        Ok(Truths { choices: Field::parse(&self.choices)?, labels: Field::parse(&self.labels)? })
    }
}

impl WireFilter {
    fn check(self) -> Result<Filter> {
        Ok(Filter { regex: expression(&self.regex)?, name: self.name, take: self.take })
    }
}

fn expression(text: &str) -> Result<Regex> {
    Regex::new(text).with_context(|| format!("the expression {text:?}"))
}
