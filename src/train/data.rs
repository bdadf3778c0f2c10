//! What a run learns from: dialogues as tokens, some of them held out, and counts of all that was left out.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::dialogue::{Dialogue, Dialogues};
use super::format::{Example, Formatter};
use super::order::shuffled;
use super::recipe::Recipe;
use crate::digest::sha256_hex;
use crate::tokenizer::Tokenizer;

/// Dialogues as tokens, in the files' order.
#[derive(Default)]
pub struct TrainingData {
    pub train: Vec<Example>,
    pub held_out: Vec<Example>,
    pub counts: Counts,
}

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub rows: usize,
    /// Rows without any answer.
    pub without_answer: usize,
    /// Dialogues whose turns behind the last answer were dropped.
    pub cut_tails: usize,
    /// Dialogues cut at the token limit.
    pub cut_at_limit: usize,
    /// Dialogues dropped because none of their tokens within the limit is learnt.
    pub nothing_learnt: usize,
    /// Tokens of the dialogues kept, and how many of them are predicted.
    pub tokens: usize,
    pub learnt: usize,
}

impl TrainingData {
    /// Reads, formats and splits what the recipe names.
    pub fn prepare(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<TrainingData> {
        let read = Dialogues::read(&recipe.data)?;
        // One token more than the limit, to see which dialogues are cut.
        let formatter = Formatter::new(recipe.format, tokenizer, recipe.max_tokens + 1)?;
        let formatted: Result<Vec<Example>> =
            read.dialogues.par_iter().map(|dialogue: &Dialogue| formatter.example(dialogue)).collect();
        let mut counts = Counts {
            rows: read.dialogues.len() + read.without_answer,
            without_answer: read.without_answer,
            cut_tails: read.cut_tails,
            ..Counts::default()
        };
        let examples = within_limit(formatted?, recipe.max_tokens, &mut counts);
        let (train, held_out) = split(examples, recipe)?;
        Ok(TrainingData { train, held_out, counts })
    }

    /// sha256 over all tokens and masks: the data as the model sees them.
    pub fn digest(&self) -> String {
        let mut bytes = Vec::new();
        for examples in [&self.train, &self.held_out] {
            bytes.extend((examples.len() as u64).to_le_bytes());
            for example in examples {
                bytes.extend((example.ids.len() as u64).to_le_bytes());
                bytes.extend(example.ids.iter().flat_map(|id| id.to_le_bytes()));
                bytes.extend(example.learnt.iter().map(|&learnt| u8::from(learnt)));
            }
        }
        sha256_hex(&bytes)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = self.rows - self.without_answer - self.nothing_learnt;
        let share = 100.0 * self.learnt as f64 / self.tokens.max(1) as f64;
        write!(
            formatter,
            "{kept} dialogues of {} rows, {} tokens, {share:.1} % of them learnt",
            self.rows, self.tokens
        )?;
        for (count, what) in [
            (self.cut_at_limit, "cut at the token limit"),
            (self.cut_tails, "without the turns behind their last answer"),
            (self.without_answer, "dropped: no answer"),
            (self.nothing_learnt, "dropped: nothing is learnt within the token limit"),
        ] {
            if count > 0 {
                write!(formatter, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

fn within_limit(examples: Vec<Example>, max_tokens: usize, counts: &mut Counts) -> Vec<Example> {
    let mut kept = Vec::with_capacity(examples.len());
    for mut example in examples {
        let cut = example.ids.len() > max_tokens;
        example.ids.truncate(max_tokens);
        example.learnt.truncate(max_tokens);
        if example.target_count() == 0 {
            counts.nothing_learnt += 1;
            continue;
        }
        counts.cut_at_limit += usize::from(cut);
        counts.tokens += example.ids.len();
        counts.learnt += example.target_count();
        kept.push(example);
    }
    kept
}

/// The held-out dialogues are drawn by the recipe's seed; both parts keep the files' order.
fn split(examples: Vec<Example>, recipe: &Recipe) -> Result<(Vec<Example>, Vec<Example>)> {
    let all = examples.len();
    ensure!(all > 0, "no dialogue has anything to learn within {} tokens", recipe.max_tokens);
    let count = recipe.held_out.map_or(0, |held_out| held_out.count(all));
    ensure!(count < all, "`[held_out] dialogues` takes {count} of the {all} dialogues and leaves none to learn from");
    let mut held = vec![false; all];
    shuffled(recipe.seed, all, "held out")[..count].iter().for_each(|&index| held[index] = true);
    let (held_out, train): (Vec<_>, Vec<_>) = examples.into_iter().zip(held).partition(|(_, held)| *held);
    let examples = |part: Vec<(Example, bool)>| part.into_iter().map(|(example, _)| example).collect();
    Ok((examples(train), examples(held_out)))
}

/// The tokenizer beside the model, and the recipe's data in its tokens.
pub fn load(recipe: &Recipe, model: &std::path::Path) -> Result<TrainingData> {
    let tokenizer = Tokenizer::open(model)?;
    TrainingData::prepare(recipe, &tokenizer).context("the training data")
}
