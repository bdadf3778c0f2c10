//! How what a page shows was made: identities, runs, and how adapters were trained.

use anyhow::Result;
use serde::Serialize;

use super::charts::Chart;
use crate::model_id::ModelId;
use crate::store::Manifest;
use crate::train::card::curve;
use crate::train::log::Entry;

/// A model as it was scored, or the row that was published of it.
pub enum Made {
    Measured {
        model: String,
        /// One for each task; with the date and the time it took where the store knows these.
        runs: Vec<Recorded>,
    },
    Published {
        model: String,
        precision: &'static str,
    },
}

/// A run, counted from stored documents.
pub struct Recorded {
    pub manifest: Manifest,
    /// Whether date, seconds and tokens are those of the run that was stored.
    pub is_dated: bool,
}

/// How an adapter was trained.
pub struct Training {
    pub model: String,
    pub log: Vec<Entry>,
}

#[derive(Serialize)]
pub struct View<'a> {
    model: &'a str,
    /// "bfloat16" of a published row.
    precision: Option<&'static str>,
    identity: Vec<(&'static str, &'a str)>,
    runs: Vec<RunView<'a>>,
}

#[derive(Serialize)]
struct RunView<'a> {
    task: &'a str,
    protocol: &'static str,
    metric: &'a str,
    documents: usize,
    data: String,
    definition: &'a str,
    date: Option<&'a str>,
    tokens: Option<String>,
    seconds: Option<String>,
    fireval: &'a str,
}

pub fn view(made: &Made) -> View<'_> {
    match made {
        Made::Published { model, precision } => {
            View { model, precision: Some(*precision), identity: Vec::new(), runs: Vec::new() }
        }
        Made::Measured { model, runs } => {
            let identity = runs.first().map(|run| identity(&run.manifest.id)).unwrap_or_default();
            View { model, precision: None, identity, runs: runs.iter().map(RunView::of).collect() }
        }
    }
}

fn identity(id: &ModelId) -> Vec<(&'static str, &str)> {
    let ModelId { weights, adapter, tokenizer, dtype, quantization, engine } = id;
    let optional = [("adapter", adapter.as_deref()), ("held in", quantization.as_deref())];
    let [adapter, quantization] = optional.map(|(name, value)| value.map(|value| (name, value)));
    let known = [Some(("weights", weights.as_str())), adapter, Some(("tokenizer", tokenizer.as_str()))];
    let rest = [Some(("dtype", dtype.as_str())), quantization, Some(("engine", engine.as_str()))];
    known.into_iter().chain(rest).flatten().collect()
}

impl RunView<'_> {
    fn of(run: &Recorded) -> RunView<'_> {
        let Recorded { manifest, is_dated } = run;
        let limit = manifest.limit.map(|limit| format!(", limit {limit}")).unwrap_or_default();
        let chat = if manifest.chat_template { ", chat template" } else { "" };
        let was_computed = *is_dated && manifest.tokens > 0;
        RunView {
            task: &manifest.task,
            protocol: manifest.protocol.name(),
            metric: &manifest.metric,
            documents: manifest.documents,
            data: format!("{}{limit}{chat}", manifest.data),
            definition: &manifest.definition,
            date: is_dated.then_some(manifest.date.as_str()),
            tokens: was_computed.then(|| manifest.tokens.to_string()),
            seconds: was_computed.then(|| format!("{:.1}", manifest.seconds)),
            fireval: &manifest.fireval,
        }
    }
}

/// Tokens a second over the runs that were computed at one go and are dated.
pub fn speed(runs: &[Recorded]) -> Option<f64> {
    let computed = || runs.iter().filter(|run| run.is_dated && run.manifest.tokens > 0).map(|run| &run.manifest);
    let (tokens, seconds) =
        (computed().map(|run| run.tokens).sum::<u64>(), computed().map(|run| run.seconds).sum::<f64>());
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[derive(Serialize)]
pub struct TrainingView<'a> {
    model: &'a str,
    chart: Chart,
    steps: usize,
    tokens: usize,
    first: String,
    last: String,
    held_out: Option<(String, String)>,
}

/// The loss of each adapter whose log has a line to draw.
pub fn training(trainings: &[Training]) -> Result<Vec<TrainingView<'_>>> {
    trainings.iter().filter_map(|training| training_view(training).transpose()).collect()
}

fn training_view(training: &Training) -> Result<Option<TrainingView<'_>>> {
    let Training { model, log } = training;
    let steps = curve::steps(log);
    let (Some((_, first)), Some((_, last)), Some(_)) = (steps.first(), steps.last(), curve::curve(log, curve::WIDTH)?)
    else {
        return Ok(None);
    };
    let tokens = log.iter().map(|entry| match entry {
        Entry::Step(step) => step.tokens,
        Entry::HeldOut(_) => 0,
    });
    let held_out = curve::held_out(log);
    let loss = |loss: &f64| format!("{loss:.4}");
    Ok(Some(TrainingView {
        model,
        chart: Chart::of(|width| Ok(curve::curve(log, width)?.unwrap_or_default()))?,
        steps: steps.len(),
        tokens: tokens.sum(),
        first: loss(first),
        last: loss(last),
        held_out: held_out.first().zip(held_out.last()).map(|((_, first), (_, last))| (loss(first), loss(last))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::manifest;

    #[test]
    fn speed_is_of_what_was_computed() {
        let run =
            |tokens, seconds, is_dated| Recorded { manifest: Manifest { tokens, seconds, ..manifest() }, is_dated };
        assert_eq!(
            speed(&[run(100, 2.0, true), run(300, 2.0, true), run(9, 9.0, false), run(0, 0.5, true)]),
            Some(100.0)
        );
        assert_eq!(speed(&[run(0, 0.0, true)]), None);
    }

    #[test]
    fn what_the_store_does_not_know_is_left_out() {
        let made =
            Made::Measured { model: "m".to_owned(), runs: vec![Recorded { manifest: manifest(), is_dated: false }] };
        let shown = view(&made);
        assert_eq!((shown.runs[0].date, &shown.runs[0].tokens), (None, &None));
        let names: Vec<&str> = shown.identity.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["weights", "tokenizer", "dtype", "engine"]);
    }
}
