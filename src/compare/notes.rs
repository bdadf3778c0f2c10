//! What a reader has to know to read a comparison's numbers.

use super::{Column, Contender, Outcome, TaskFile, difference, held};
use crate::eval::Run;
use crate::stats::bootstrap::FEW;

/// How rows and runs name weights of 4 bits.
const FOUR_BITS: [&str; 3] = ["nf4", "4bit", "GPTQ"];

/// 68.42 less 65.81, in points: the two rows of one model in `results/published/`.
const FOUR_BIT_COST: f64 = 2.61;

/// In the order of importance to whoever reads only the first.
pub fn notes(columns: &[Column], contenders: &[Contender]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut published: Vec<String> = Vec::new();
    for Contender { model, outcome } in contenders {
        match outcome {
            Outcome::Measured(runs) => {
                for manifest in runs.iter().map(|run| &run.manifest) {
                    notes.extend(manifest.warnings.iter().map(|text| format!("{model}, {}: {text}", manifest.task)));
                }
            }
            Outcome::Published(row) => published.push(format!("{model} ({})", row.precision.name())),
        }
    }
    if !published.is_empty() {
        notes.push(format!(
            "published by the Open LLM Leaderboard, not measured here: differences to them are unpaired, errors are \
             those of right and wrong answers to as many documents: {}",
            published.join(", ")
        ));
    }
    notes.extend(partial_note(contenders));
    notes.extend(changed_note(columns, contenders));
    notes.extend(few_note(contenders));
    let measured: Vec<(String, &str)> = contenders
        .iter()
        .filter(|contender| matches!(contender.outcome, Outcome::Measured(_)))
        .map(|contender| (held(&contender.outcome), contender.model.as_str()))
        .collect();
    if measured.iter().any(|(dtype, _)| *dtype != measured[0].0) {
        let list: Vec<String> = measured.iter().map(|(dtype, model)| format!("{model} in {dtype}")).collect();
        notes.push(format!("not held alike: {}", list.join(", ")));
    }
    notes.extend(four_bit_note(contenders));
    notes
}

/// What 4 bits cost, where models in 4 bits stand beside others.
fn four_bit_note(contenders: &[Contender]) -> Option<String> {
    let in_four_bits = |contender: &Contender| FOUR_BITS.contains(&held(&contender.outcome).as_str());
    let four: Vec<&str> = contenders
        .iter()
        .filter(|contender| in_four_bits(contender))
        .map(|contender| contender.model.as_str())
        .collect();
    let beside_others = !four.is_empty() && four.len() < contenders.len();
    beside_others.then(|| {
        format!(
            "4 bits cost about {FOUR_BIT_COST:.2} points of the average (published rows of Mixtral-8x7B-v0.1, bfloat16 less \
             4bit): {} in 4 bits is not beside the others without that",
            four.join(", ")
        )
    })
}

/// Which measured tasks are a benchmark's by name alone.
fn changed_note(columns: &[Column], contenders: &[Contender]) -> Option<String> {
    let changed = columns.iter().filter(|column| column.file == TaskFile::Changed);
    let changed: Vec<&str> = changed.map(|column| column.task.as_str()).collect();
    let measured = contenders.iter().any(|contender| matches!(contender.outcome, Outcome::Measured(_)));
    (measured && !changed.is_empty())
        .then(|| format!("{}: the task file is not the built-in one: not the benchmark's scores", changed.join(", ")))
}

/// Where too few documents are bootstrapped: intervals are widened for that, but not for what few values hide of their skewness
/// (`results/README.md` says how much is left).
fn few_note(contenders: &[Contender]) -> Option<String> {
    let measured = contenders.iter().filter_map(|contender| match &contender.outcome {
        Outcome::Measured(runs) => Some(runs),
        Outcome::Published(_) => None,
    });
    let is_few = |run: &&Run| run.scores.len() < FEW && difference::is_bootstrapped(run);
    let run = measured.flatten().find(is_few)?;
    let (task, documents) = (&run.manifest.task, run.scores.len());
    Some(format!(
        "{task}: of {documents} documents the bootstrap's intervals are too narrow, and its p too small, where answers are skewed; \
         ask {FEW} or more"
    ))
}

fn partial_note(contenders: &[Contender]) -> Option<String> {
    let runs = contenders.iter().find_map(|contender| match &contender.outcome {
        Outcome::Measured(runs) => Some(runs),
        Outcome::Published(_) => None,
    })?;
    let manifest = runs.iter().map(|run| &run.manifest).find(|manifest| manifest.partial)?;
    let documents: usize = runs.iter().map(|run| run.scores.len()).sum();
    let limit = manifest.limit.map(|limit| format!(", limit {limit}")).unwrap_or_default();
    Some(format!("scores of {documents} documents ({}{limit}): not the benchmark's scores", manifest.data))
}
