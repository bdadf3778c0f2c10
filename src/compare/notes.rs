//! What a reader has to know to read a comparison's numbers.

use super::{Contender, Outcome, held};

/// How rows and runs name weights of 4 bits.
const FOUR_BITS: [&str; 3] = ["nf4", "4bit", "GPTQ"];

/// 68.42 less 65.81, in points: the two rows of one model in `results/published/`.
const FOUR_BIT_COST: f64 = 2.61;

/// In the order of importance to whoever reads only the first.
pub fn notes(contenders: &[Contender]) -> Vec<String> {
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
