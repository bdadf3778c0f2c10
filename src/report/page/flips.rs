//! Documents that two models scored differently, side by side.

use serde::Serialize;

use super::super::percent;
use super::super::why::FlipText;
use super::text::{Cut, beginning, end};

/// The flips of a task between two models.
pub struct FlipSet {
    pub task: String,
    pub models: [String; 2],
    /// How many there are; the page shows the first of them.
    pub all: usize,
    pub shown: Vec<PageFlip>,
}

pub struct PageFlip {
    pub text: FlipText,
    /// What each model was asked, examples and all.
    pub prompts: [String; 2],
}

/// Characters shown of a question, of an option or an answer, and of a prompt.
const QUESTION: usize = 3_000;
const OPTION: usize = 1_000;
const PROMPT: usize = 4_000;
/// Options that are shown.
const OPTIONS: usize = 20;

#[derive(Serialize)]
pub struct View<'a> {
    /// What can be chosen to be shown.
    tasks: Vec<&'a str>,
    models: Vec<&'a str>,
    /// Sets of which not all are shown.
    partly: Vec<SetView<'a>>,
    flips: Vec<FlipView<'a>>,
}

#[derive(Serialize)]
struct SetView<'a> {
    task: &'a str,
    models: &'a [String; 2],
    all: usize,
    shown: usize,
}

#[derive(Serialize)]
struct FlipView<'a> {
    task: &'a str,
    models: &'a [String; 2],
    place: &'a str,
    /// "gained", "lost".
    way: &'static str,
    scores: [String; 2],
    question: Cut,
    options: Vec<Cut>,
    options_left_out: usize,
    right: Cut,
    picks: [Pick; 2],
    prompt: Cut,
    /// The other model's, where it is another.
    other_prompt: Option<Cut>,
}

#[derive(Serialize)]
struct Pick {
    text: Cut,
    /// Scored above the other's.
    is_better: bool,
}

/// `None` where no two models' documents are compared.
pub fn view(sets: &[FlipSet]) -> Option<View<'_>> {
    (!sets.is_empty()).then(|| View {
        tasks: distinct(sets.iter().map(|set| set.task.as_str())),
        models: distinct(sets.iter().map(|set| set.models[1].as_str())),
        partly: sets.iter().filter(|set| set.shown.len() < set.all).map(SetView::of).collect(),
        flips: sets.iter().flat_map(|set| set.shown.iter().map(|flip| FlipView::of(set, flip))).collect(),
    })
}

impl SetView<'_> {
    fn of(set: &FlipSet) -> SetView<'_> {
        SetView { task: &set.task, models: &set.models, all: set.all, shown: set.shown.len() }
    }
}

impl FlipView<'_> {
    fn of<'a>(set: &'a FlipSet, flip: &'a PageFlip) -> FlipView<'a> {
        let PageFlip { text: FlipText { place, scores, shown, picks }, prompts } = flip;
        let [before, now] = *scores;
        let pick = |text: &str, is_better: bool| Pick { text: beginning(text, OPTION), is_better };
        FlipView {
            task: &set.task,
            models: &set.models,
            place,
            way: if now > before { "gained" } else { "lost" },
            scores: scores.map(percent),
            question: beginning(&shown.question, QUESTION),
            options: shown.options.iter().take(OPTIONS).map(|option| beginning(option, OPTION)).collect(),
            options_left_out: shown.options.len().saturating_sub(OPTIONS),
            right: beginning(&shown.right, OPTION),
            picks: [pick(&picks[0], before > now), pick(&picks[1], now > before)],
            prompt: end(&prompts[0], PROMPT),
            other_prompt: (prompts[0] != prompts[1]).then(|| end(&prompts[1], PROMPT)),
        }
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}
