//! The old leaderboard's own rows for the models that a Mixtral fine-tune is compared with (`results/published/`, built
//! in): scores without documents, in percent, as it published them.

pub mod averages;
mod file;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::rows::Rows;
use crate::settings;
use crate::stats::proportion;

const ROWS: &str = include_str!("../../results/published/open_llm_leaderboard_v1.csv");
const PLACE: &str = "results/published/open_llm_leaderboard_v1.csv";
const NOISE: &str = include_str!("../../results/published/noise_floor.csv");
const NOISE_PLACE: &str = "results/published/noise_floor.csv";

/// The tasks it scored, by the names they have here, with their columns.
pub const COLUMNS: [(&str, &str); 6] = [
    ("arc_challenge", "arc"),
    ("hellaswag", "hellaswag"),
    ("mmlu", "mmlu"),
    ("truthfulqa", "truthfulqa"),
    ("winogrande", "winogrande"),
    ("gsm8k", "gsm8k"),
];

/// Whether `tasks` are all of [`COLUMNS`], in their order: then an average is the leaderboard's.
pub fn are_the_six<'a>(tasks: impl Iterator<Item = &'a str>) -> bool {
    tasks.eq(COLUMNS.iter().map(|(task, _)| *task))
}

/// What rounding to two decimals leaves open, in percent.
pub const HALF: f64 = 0.005;

/// How the leaderboard held the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// The first is the default where a model has several.
    Bfloat16,
    Float16,
    EightBit,
    FourBit,
    Gptq,
}

const PRECISIONS: [Precision; 5] =
    [Precision::Bfloat16, Precision::Float16, Precision::EightBit, Precision::FourBit, Precision::Gptq];

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bfloat16 => "bfloat16",
            Precision::Float16 => "float16",
            Precision::EightBit => "8bit",
            Precision::FourBit => "4bit",
            Precision::Gptq => "GPTQ",
        }
    }

    fn parse(name: &str) -> Option<Precision> {
        PRECISIONS.into_iter().find(|precision| precision.name() == name)
    }
}

/// One row of the leaderboard.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Where it stands in its file, from 1.
    pub line: u64,
    pub model: String,
    pub precision: Precision,
    /// In percent, as published: the mean of unrounded scores.
    pub average: f64,
    /// In percent, rounded to two decimals by the leaderboard, in the order of [`COLUMNS`].
    pub scores: [f64; 6],
    /// Weights in billions as the leaderboard counted them, in whole billions; none where it did not know.
    pub billions: Option<f64>,
}

/// Weights in billions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Billions {
    pub all: f64,
    /// Those that a token goes through.
    pub active: f64,
}

/// What Mixtral-8x7B's config counts; the leaderboard has 46 for it and knows no active ones.
const MIXTRAL: Billions = Billions { all: 46.7, active: 12.9 };

impl Published {
    /// The score of a task of [`COLUMNS`], in percent.
    pub fn score(&self, task: &str) -> Option<f64> {
        COLUMNS.iter().position(|(known, _)| *known == task).map(|index| self.scores[index])
    }

    /// As the leaderboard counted them (in whole billions), of the Mixtrals as their config has them.
    pub fn weights(&self) -> Option<Billions> {
        match self.model.to_lowercase().contains("mixtral-8x7b") {
            true => Some(MIXTRAL),
            false => self.billions.map(|all| Billions { all, active: all }),
        }
    }
}

impl fmt::Display for Published {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "published:{}@{}", self.model, self.precision.name())
    }
}

/// The row of `ORG/NAME` or `ORG/NAME@PRECISION`. Without a precision: bfloat16 where it was run so, else float16.
pub fn find(name: &str) -> Result<Published> {
    let (model, precision) = match name.split_once('@') {
        Some((model, precision)) => (model, Some(precision)),
        None => (name, None),
    };
    let mut rows: Vec<Published> = all()?;
    let known: Vec<String> = rows.iter().map(|row| row.model.clone()).collect();
    rows.retain(|row| row.model == model);
    rows.sort_by_key(|row| row.precision);
    if rows.is_empty() {
        let near = settings::closest(model, known.iter().map(String::as_str));
        let hint = near.map(|near| format!(" (did you mean `published:{near}`?)")).unwrap_or_default();
        bail!("there is no published row of `{model}`{hint}; {PLACE} has {} models", distinct(&known));
    }
    let Some(precision) = precision else { return Ok(rows.swap_remove(0)) };
    let has: Vec<&str> = rows.iter().map(|row| row.precision.name()).collect();
    let has = has.join(", ");
    let wanted = Precision::parse(precision);
    rows.into_iter()
        .find(|row| Some(row.precision) == wanted)
        .with_context(|| format!("`{model}` was not published in `{precision}`, but in {has}"))
}

/// The documents behind a published score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub documents: usize,
    /// How many independent right or wrong answers would vary as much, or more.
    pub effective: f64,
    /// Whether the score is a plain count of right answers.
    pub counted: bool,
}

/// The size of a task of [`COLUMNS`]. MMLU's score is the mean of 57 subjects alike: `57^2 / sum(1 / n)` of its 14,042
/// documents. Shares in 0..1, as mc2, vary at most as right and wrong answers with their mean do.
pub fn size(task: &str) -> Option<Size> {
    let counted = |documents: usize| Some(Size { documents, effective: documents as f64, counted: true });
    match task {
        "arc_challenge" => counted(1_172),
        "hellaswag" => counted(10_042),
        "mmlu" => Some(Size { documents: 14_042, effective: 9_528.2, counted: false }),
        "truthfulqa" => Some(Size { documents: 817, effective: 817.0, counted: false }),
        "winogrande" => counted(1_267),
        "gsm8k" => counted(1_319),
        _ => None,
    }
}

/// MMLU's 57 subjects with their documents, fewest first.
pub const MMLU_SUBJECTS: [(&str, usize); 57] = [
    ("abstract_algebra", 100),
    ("business_ethics", 100),
    ("college_chemistry", 100),
    ("college_computer_science", 100),
    ("college_mathematics", 100),
    ("computer_security", 100),
    ("global_facts", 100),
    ("high_school_computer_science", 100),
    ("medical_genetics", 100),
    ("us_foreign_policy", 100),
    ("college_physics", 102),
    ("management", 103),
    ("jurisprudence", 108),
    ("public_relations", 110),
    ("machine_learning", 112),
    ("econometrics", 114),
    ("international_law", 121),
    ("formal_logic", 126),
    ("human_sexuality", 131),
    ("anatomy", 135),
    ("college_biology", 144),
    ("electrical_engineering", 145),
    ("high_school_physics", 151),
    ("astronomy", 152),
    ("logical_fallacies", 163),
    ("high_school_european_history", 165),
    ("virology", 166),
    ("world_religions", 171),
    ("college_medicine", 173),
    ("high_school_government_and_politics", 193),
    ("high_school_geography", 198),
    ("sociology", 201),
    ("high_school_chemistry", 203),
    ("high_school_us_history", 204),
    ("high_school_statistics", 216),
    ("human_aging", 223),
    ("marketing", 234),
    ("conceptual_physics", 235),
    ("high_school_world_history", 237),
    ("high_school_microeconomics", 238),
    ("security_studies", 245),
    ("clinical_knowledge", 265),
    ("high_school_mathematics", 270),
    ("professional_medicine", 272),
    ("professional_accounting", 282),
    ("nutrition", 306),
    ("high_school_biology", 310),
    ("philosophy", 311),
    ("prehistory", 324),
    ("moral_disputes", 346),
    ("elementary_mathematics", 378),
    ("high_school_macroeconomics", 390),
    ("high_school_psychology", 545),
    ("professional_psychology", 612),
    ("miscellaneous", 783),
    ("moral_scenarios", 895),
    ("professional_law", 1534),
];

/// Documents of a task of [`COLUMNS`], or of a subject of MMLU (`mmlu/astronomy`).
pub fn documents(task: &str) -> Option<usize> {
    match task.strip_prefix("mmlu/") {
        Some(subject) => MMLU_SUBJECTS.iter().find(|(name, _)| *name == subject).map(|(_, documents)| *documents),
        None => size(task).map(|size| size.documents),
    }
}

/// Whether some count of right answers gives `percent` up to `half`, half of its last printed digit. True of tasks whose
/// scores are no counts.
pub fn is_possible(task: &str, percent: f64, half: f64) -> bool {
    let counted = size(task).filter(|size| size.counted);
    counted.is_none_or(|size| proportion::recovered_count(percent, half, size.documents).is_some())
}

/// Whether `difference`, a fraction, is no larger than nine in ten of those between float16 and bfloat16 rows of the same
/// weights (`noise_floor.csv`, whole benchmark) of `task`, or of the "average"; false for other tasks.
pub fn is_noise(task: &str, difference: f64) -> Result<bool> {
    Ok(noise_floor(task)?.is_some_and(|floor| difference.abs() <= floor + 1e-11))
}

/// What nine in ten of the differences of `is_noise` do not exceed, a fraction; none for other tasks.
pub fn noise_floor(task: &str) -> Result<Option<f64>> {
    let rows = Rows::csv(NOISE_PLACE.to_owned(), NOISE.as_bytes())?;
    for index in 0..rows.len() {
        let row = rows.get(index)?;
        if row.get("task").and_then(|name| name.as_str()) == Some(task) {
            let floor = row.get("p90").and_then(|value| value.as_f64()).with_context(|| rows.place(index))?;
            return Ok(Some(floor / 100.0));
        }
    }
    Ok(None)
}

/// Every row that is built in.
pub fn all() -> Result<Vec<Published>> {
    file::read(ROWS.as_bytes(), PLACE)
}

/// The rows of `file`, a CSV file with the columns `model`, `precision`, `average` and those of [`COLUMNS`]; without a file
/// every row that is built in. Also what the rows' place is called.
pub fn rows_of(file: Option<&Path>) -> Result<(String, Vec<Published>)> {
    let Some(file) = file else { return Ok((PLACE.to_owned(), all()?)) };
    let place = file.display().to_string();
    let bytes = std::fs::read(file).with_context(|| format!("can't read {place}"))?;
    let rows = file::read(&bytes, &place)?;
    Ok((place, rows))
}

fn distinct(names: &[String]) -> usize {
    names.iter().collect::<std::collections::BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_post_s_rows_are_the_default() {
        let average = |name: &str| find(name).unwrap().average;
        assert_eq!(average("mistralai/Mixtral-8x7B-v0.1"), 68.42);
        assert_eq!(average("YeungNLP/firefly-mixtral-8x7b-v0.1"), 70.34);
        assert_eq!(average("mistralai/Mixtral-8x7B-Instruct-v0.1"), 72.62);
        assert_eq!(average("mistralai/Mixtral-8x7B-v0.1@float16"), 68.47);
        assert_eq!(average("mistralai/Mixtral-8x7B-v0.1@4bit"), 65.81);
        assert_eq!(average("meta-llama/Llama-2-70b-hf"), 67.87, "what the post calls Llama2-65B");
        assert_eq!(find("YeungNLP/firefly-mixtral-8x7b-v0.1").unwrap().score("truthfulqa"), Some(55.31));
    }

    #[test]
    fn counts_are_known_from_other_numbers() {
        assert!(is_possible("arc_challenge", 66.04, 0.005), "774 of 1,172");
        assert!(!is_possible("arc_challenge", 66.08, 0.005) && is_possible("arc_challenge", 66.1, 0.05));
        assert!(is_possible("mmlu", 66.08, 0.005), "a mean of 57 means");
    }

    #[test]
    fn weights_are_those_a_token_goes_through() {
        let active = |name: &str| find(name).unwrap().weights().map(|weights| weights.active);
        assert_eq!(active("mistralai/Mixtral-8x7B-v0.1@4bit"), Some(12.9), "which the leaderboard counted as 0");
        assert_eq!(active("YeungNLP/firefly-mixtral-8x7b-v0.1"), Some(12.9));
        assert_eq!(active("mistralai/Mistral-7B-v0.1"), Some(7.0));
        assert_eq!(active("meta-llama/Llama-2-70b-hf"), Some(68.0));
    }

    #[test]
    fn small_differences_are_noise() {
        assert!(is_noise("gsm8k", -0.0121).unwrap() && !is_noise("gsm8k", 0.0122).unwrap());
        assert!(is_noise("average", 0.0024).unwrap() && !is_noise("average", 0.0025).unwrap());
        assert!(!is_noise("own", 0.0).unwrap());
        for (task, _) in COLUMNS {
            assert!(is_noise(task, 0.0).unwrap() && size(task).is_some(), "{task}");
        }
    }

    #[test]
    fn mmlu_s_subjects_are_its_documents() {
        let size = size("mmlu").unwrap();
        assert_eq!(MMLU_SUBJECTS.iter().map(|(_, n)| n).sum::<usize>(), size.documents);
        let effective = 57.0 * 57.0 / MMLU_SUBJECTS.iter().map(|&(_, n)| 1.0 / n as f64).sum::<f64>();
        assert!((effective - size.effective).abs() < 0.05, "{effective}");
    }

    #[test]
    fn what_was_not_published_is_said() {
        let error = |name: &str| find(name).unwrap_err().to_string();
        assert!(error("mistralai/Mixtral-8x7B-v0.2").contains("did you mean `published:mistralai/Mixtral-8x7B-v0.1`"));
        assert!(error("mistralai/Mixtral-8x7B-v0.1@8bit").contains("bfloat16, float16, 4bit"));
        assert!(error("mistralai/Mixtral-8x7B-v0.1@int3").contains("int3"));
    }
}
