//! What a run learns from: dialogues as tokens, some of them held out, and counts of all that was left out.

use anyhow::{Context, Result, ensure};

use super::format::{Example, packings};
use super::order::shuffled;
use super::recipe::Recipe;
use crate::dialogue::check::{Check, Finding, Found, Reading, check, lines, listed};
use crate::dialogue::format::Formatter;
use crate::digest::sha256_hex;
use crate::tokenizer::Tokenizer;

/// Dialogues as tokens, in the files' order.
#[derive(Default)]
pub struct TrainingData {
    /// One epoch: a file's dialogues as often as its weight says.
    pub train: Vec<Example>,
    /// What counts as one dialogue of a micro-batch, as indices of `train`: each by itself, or as many as a recipe that packs
    /// puts together.
    pub rows: Vec<Vec<usize>>,
    pub held_out: Vec<Example>,
    pub counts: Counts,
    /// The recipe's files, and for each of `train` which of them it is from, and which line.
    pub files: Vec<String>,
    pub places: Vec<(u32, u32)>,
}

/// Lines that are named of a step.
const NAMED: usize = 64;

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub rows: usize,
    /// Dialogues that are learnt from, or held out.
    pub dialogues: usize,
    /// Rows that are no dialogue, or have an empty turn, or no place in the format; as many as the limits allow.
    pub unusable: usize,
    /// Rows without any answer.
    pub without_answer: usize,
    /// Dialogues with the words of an earlier one; they are learnt from.
    pub duplicates: usize,
    /// Dialogues whose turns behind the last answer were dropped.
    pub cut_tails: usize,
    /// Dialogues cut at the token limit.
    pub cut_at_limit: usize,
    /// Dialogues that became several examples.
    pub split: usize,
    /// Dialogues dropped because none of their tokens within the limit is learnt.
    pub nothing_learnt: usize,
    /// Tokens of the dialogues kept, and how many of them are predicted.
    pub tokens: usize,
    pub learnt: usize,
    /// Where a recipe packs.
    pub packed: Option<Packed>,
}

/// What became of an epoch's examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    pub examples: usize,
    pub rows: usize,
    /// Of all rows.
    pub tokens: usize,
    /// That a row has at most.
    pub limit: usize,
}

/// One dialogue's examples.
struct Learnable {
    /// Which of the recipe's files, and its line there.
    file: usize,
    line: usize,
    examples: Vec<Example>,
}

impl TrainingData {
    /// Reads, checks, formats and splits what the recipe names. Data beyond the recipe's limits are an error.
    pub fn prepare(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<TrainingData> {
        let formatter = Formatter::new(recipe.format, tokenizer, recipe.max_tokens)?;
        let data = &recipe.data;
        let reading = Reading { formatter: Some(&formatter), long: data.long, language: data.limits.language };
        let mut dialogues = Vec::new();
        let check = check(&data.paths(), &reading, |checked| {
            let examples = checked.pieces.map(|pieces| pieces.examples).unwrap_or_default();
            dialogues.push(Learnable { file: checked.file, line: checked.line, examples });
        })?;
        check.enforce(&data.limits)?;
        ensure!(!dialogues.is_empty(), "there is nothing to learn from in {}", listed(&data.paths()));
        let (train, held_out) = split(dialogues, recipe)?;
        let (places, train): (Vec<_>, Vec<_>) = epoch(train, recipe).into_iter().unzip();
        ensure!(!train.is_empty(), "the weights of `[data] files` leave no dialogue to learn from");
        let held_out = held_out.into_iter().flat_map(|dialogue| dialogue.examples).collect();
        let rows = match data.pack {
            true => packings(&train, recipe.max_tokens),
            false => (0..train.len()).map(|index| vec![index]).collect(),
        };
        let tokens = train.iter().map(|example| example.ids.len()).sum();
        let packed = Packed { examples: train.len(), rows: rows.len(), tokens, limit: recipe.max_tokens };
        let counts = Counts { packed: data.pack.then_some(packed), ..Counts::of(&check) };
        Ok(TrainingData { train, rows, held_out, counts, files: check.files, places })
    }

    /// The examples of a row.
    pub fn row(&self, index: usize) -> impl Iterator<Item = &Example> {
        self.rows[index].iter().map(|&example| &self.train[example])
    }

    /// Where the dialogues of some rows stand: `some.jsonl, lines 3, 9`.
    pub fn places(&self, rows: &[usize]) -> String {
        let examples = rows.iter().flat_map(|&row| &self.rows[row]);
        let mut places: Vec<(u32, u32)> = examples.map(|&example| self.places[example]).collect();
        places.sort_unstable();
        places.dedup();
        let found = |(file, line): (u32, u32)| Found { file: file as usize, line: line as usize, detail: None };
        lines(&self.files, &places.into_iter().map(found).collect::<Vec<_>>(), NAMED)
    }

    /// Tokens of a row.
    pub fn row_tokens(&self, index: usize) -> usize {
        self.row(index).map(|example| example.ids.len()).sum()
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

impl Counts {
    fn of(check: &Check) -> Counts {
        let tokens = check.tokens.clone().unwrap_or_default();
        let unusable = [Finding::Malformed, Finding::EmptyTurns, Finding::OutOfFormat];
        Counts {
            rows: check.rows,
            dialogues: check.dialogues,
            unusable: unusable.map(|finding| check.found(finding)).iter().sum(),
            without_answer: check.found(Finding::WithoutAnswer),
            duplicates: check.found(Finding::Duplicates),
            cut_tails: check.found(Finding::CutTails),
            cut_at_limit: check.found(Finding::CutAtLimit),
            split: tokens.split,
            nothing_learnt: check.found(Finding::NothingLearnt),
            tokens: tokens.tokens,
            learnt: tokens.learnt,
            packed: None,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = 100.0 * self.learnt as f64 / self.tokens.max(1) as f64;
        write!(
            formatter,
            "{} dialogues of {} rows, {} tokens, {share:.1} % of them learnt",
            self.dialogues, self.rows, self.tokens
        )?;
        for (count, what) in [
            (self.split, "split at the token limit"),
            (self.cut_at_limit, "cut at the token limit"),
            (self.cut_tails, "without the turns behind their last answer"),
            (self.duplicates, "with the words of an earlier one"),
            (self.unusable, "dropped: no dialogue"),
            (self.without_answer, "dropped: no answer"),
            (self.nothing_learnt, "dropped: nothing is learnt within the token limit"),
        ] {
            if count > 0 {
                write!(formatter, "; {count} {what}")?;
            }
        }
        if let Some(Packed { examples, rows, tokens, limit }) = self.packed {
            let full = 100.0 * tokens as f64 / (rows * limit) as f64;
            write!(formatter, "; {examples} packed into {rows} sequences of at most {limit} tokens, {full:.1} % full")?;
        }
        Ok(())
    }
}

/// The held-out dialogues are drawn by the recipe's seed, whatever their file's weight; both parts keep the files' order.
fn split(dialogues: Vec<Learnable>, recipe: &Recipe) -> Result<(Vec<Learnable>, Vec<Learnable>)> {
    let all = dialogues.len();
    let count = recipe.held_out.map_or(0, |held_out| held_out.count(all));
    ensure!(count < all, "`[held_out] dialogues` takes {count} of the {all} dialogues and leaves none to learn from");
    let mut held = vec![false; all];
    shuffled(recipe.seed, all, "held out")[..count].iter().for_each(|&index| held[index] = true);
    let (held_out, train): (Vec<_>, Vec<_>) = dialogues.into_iter().zip(held).partition(|(_, held)| *held);
    let dialogues = |part: Vec<(Learnable, bool)>| part.into_iter().map(|(dialogue, _)| dialogue).collect();
    Ok((dialogues(train), dialogues(held_out)))
}

/// The dialogues' examples with their places, as often as their file's weight says: its whole part for all of them, its
/// fraction for as many as the seed draws (once: every epoch has the same).
fn epoch(dialogues: Vec<Learnable>, recipe: &Recipe) -> Vec<((u32, u32), Example)> {
    let files = &recipe.data.files;
    let mut times: Vec<usize> = dialogues.iter().map(|dialogue| files[dialogue.file].weight as usize).collect();
    for (file, weighted) in files.iter().enumerate() {
        let of_file: Vec<usize> = (0..dialogues.len()).filter(|&index| dialogues[index].file == file).collect();
        let more = (weighted.weight.fract() * of_file.len() as f64).round() as usize;
        let drawn = shuffled(recipe.seed, of_file.len(), &format!("weight of file {file}"));
        drawn[..more].iter().for_each(|&place| times[of_file[place]] += 1);
    }
    let repeated = dialogues.into_iter().zip(times).flat_map(|(Learnable { file, line, examples }, times)| {
        let placed: Vec<_> = examples.into_iter().map(|example| ((file as u32, line as u32), example)).collect();
        vec![placed; times]
    });
    repeated.flatten().collect()
}

/// The tokenizer beside the model, and the recipe's data in its tokens.
pub fn load(recipe: &Recipe, model: &std::path::Path) -> Result<TrainingData> {
    let tokenizer = Tokenizer::open(model)?;
    TrainingData::prepare(recipe, &tokenizer).context("the training data")
}
