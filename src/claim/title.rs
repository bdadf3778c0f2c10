//! What a column or a row is called: the tasks of the old leaderboard and their average, in the spellings that cards use.

use crate::published::COLUMNS;

/// What a title names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Title {
    /// An index into `published::COLUMNS`.
    Task(usize),
    /// The seventh task, which the leaderboard had for some weeks of November 2023.
    Drop,
    Average,
    /// A task of other boards, or another metric of one of these: whoever averages it averages something else.
    Foreign,
    Other,
}

/// Spellings without spaces, signs, shots and metric.
const TASKS: [&[&str]; 6] = [
    &[
        "arc",
        "arcc",
        "arcch",
        "arcchallenge",
        "ai2arc",
        "ai2arcc",
        "ai2arcchallenge",
        "ai2reasoningchallenge",
        "arcaichallenge",
    ],
    &["hellaswag", "hellas", "hswag"],
    &["mmlu", "mmluaverage", "mmluavg", "hendrycksmmlu", "hendryckstest", "massivemultitasklanguageunderstanding"],
    &["truthfulqa", "truthful", "truthfulqamc", "truthfulqamc2", "tqa", "tqamc2", "truthqa"],
    &["winogrande", "winograndexl", "wino", "winog"],
    &["gsm8k", "gsm", "gsm8kmain", "gradeschoolmath8k"],
];

const AVERAGES: [&str; 16] = [
    "average",
    "avg",
    "ave",
    "mean",
    "overall",
    "averagescore",
    "avgscore",
    "meanscore",
    "openllmleaderboard",
    "openllmleaderboardaverage",
    "openllmleaderboardavg",
    "openllmleaderboardscore",
    "leaderboardaverage",
    "leaderboardscore",
    "平均",
    "平均分",
];

const FOREIGN: [&str; 30] = [
    "ifeval",
    "bbh",
    "bigbenchhard",
    "math",
    "mathlvl",
    "gpqa",
    "musr",
    "mmlupro",
    "humaneval",
    "mbpp",
    "agieval",
    "gpt4all",
    "bigbench",
    "truthfulqamc1",
    "mc1",
    "arce",
    "arceasy",
    "piqa",
    "boolq",
    "openbookqa",
    "obqa",
    "siqa",
    "triviaqa",
    "naturalquestions",
    "nq",
    "ceval",
    "cmmlu",
    "mtbench",
    "alpacaeval",
    "copa",
];

pub fn title(text: &str) -> Title {
    let (name, aside) = parts(text);
    let is = |spellings: &[&str]| spellings.contains(&name.as_str());
    match TASKS.iter().position(|spellings| is(spellings)) {
        Some(task) if is_aside(task, &name, &aside) => Title::Task(task),
        // `GSM8K (maj@8)` is not what the leaderboard published.
        Some(_) => Title::Foreign,
        None if name == "drop" => Title::Drop,
        None if is(&AVERAGES) => Title::Average,
        None if is(&FOREIGN) => Title::Foreign,
        None => Title::Other,
    }
}

/// The task's own name for people.
pub fn task_name(task: usize) -> &'static str {
    ["ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K"][task]
}

/// The task's size and name elsewhere in the program.
pub fn task_key(task: usize) -> &'static str {
    COLUMNS[task].0
}

/// Letters and digits of `text` in lower case, without shots and metrics: outside of brackets, and in them.
fn parts(text: &str) -> (String, String) {
    let mut depth = 0;
    let (mut outside, mut inside) = (String::new(), String::new());
    for c in text.to_lowercase().chars() {
        match c {
            '(' | '[' | '（' => {
                depth += 1;
                inside.push(' ');
            }
            ')' | ']' | '）' => depth -= 1,
            _ if depth <= 0 => outside.push(c),
            _ => inside.push(c),
        }
    }
    (without_shots(&without_settings(&outside)), without_settings(&inside))
}

fn without_settings(text: &str) -> String {
    let words = text.split([' ', '\t', ',', ';', '/', ':']).filter(|word| !is_setting(word) && !is_shots(word));
    words.flat_map(str::chars).filter(|c| c.is_alphanumeric()).collect()
}

/// Whether what stands in brackets beside a task's name leaves it this task: nothing but settings, or more of its name, as
/// `ARC (Challenge)` or `TruthfulQA (mc2)`.
fn is_aside(task: usize, name: &str, aside: &str) -> bool {
    let is = |spelling: &str| TASKS[task].contains(&spelling);
    is_setting(aside) || is(aside) || is(&format!("{name}{aside}"))
}

/// `25-shot`, `5shot`, `zero-shot`.
fn is_shots(word: &str) -> bool {
    let word = word.trim_end_matches(|c: char| !c.is_alphanumeric());
    let Some(stem) = word.strip_suffix("shot").or(word.strip_suffix("shots")) else { return false };
    let number = stem.trim_end_matches(['-', '_']);
    matches!(number, "zero" | "few") || number.chars().all(|c| c.is_ascii_digit())
}

/// Words beside a task's name that say how it was asked or scored.
fn is_setting(word: &str) -> bool {
    matches!(
        word,
        "acc"
            | "acc_norm"
            | "accnorm"
            | "acc-norm"
            | "accuracy"
            | "em"
            | "exactmatch"
            | "exact_match"
            | "shot"
            | "shots"
            | "score"
            | "test"
            | "val"
    ) || word.chars().all(|c| c.is_ascii_digit())
}

/// `arcchallenge25shot` is `arcchallenge`.
fn without_shots(name: &str) -> String {
    let Some(stem) = name.strip_suffix("shot").or(name.strip_suffix("shots")) else { return name.to_owned() };
    stem.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_spell_tasks_in_many_ways() {
        let tasks = [
            ("ARC-c", 0),
            ("arc_challenge", 0),
            ("AI2 Reasoning Challenge (25-Shot)", 0),
            ("ARC (acc_norm)", 0),
            ("ARC-Challenge 25-shot", 0),
            ("HellaSwag (10-shot)", 1),
            ("Hellaswag", 1),
            ("MMLU 5-shot", 2),
            ("mmlu", 2),
            ("TruthfulQA", 3),
            ("TruthfulQA-MC2 (0-shot)", 3),
            ("truthfulqa_mc", 3),
            ("Winogrande", 4),
            ("WinoGrande (5-shot)", 4),
            ("GSM8k", 5),
            ("GSM-8K (5-shot)", 5),
            ("gsm8k, 5 shot", 5),
            ("GSM8K-5-shot", 5),
            ("GSM8K (exact match, 5-shot)", 5),
            ("ARC (Challenge) [25-shot]", 0),
            ("TruthfulQA (%) (MC2)", 3),
        ];
        for (text, task) in tasks {
            assert_eq!(title(text), Title::Task(task), "{text}");
        }
        for text in ["Average", "Avg.", "Avg", "**Average** ⬆️", "Open LLM Leaderboard", "平均分", "Average score (%)"]
        {
            assert_eq!(title(text), Title::Average, "{text}");
        }
        for text in ["GSM8K (maj@8)", "GSM8K (8-shot CoT)", "ARC (easy)", "TruthfulQA (mc1)"] {
            assert_eq!(title(text), Title::Foreign, "{text}: another metric");
        }
        for text in ["ARC-e", "TruthfulQA-MC1", "MMLU-Pro", "IFEval (0-Shot)", "MATH Lvl 5 (4-Shot)"] {
            assert_eq!(title(text), Title::Foreign, "{text}");
        }
        assert_eq!(title("DROP (3-shot)"), Title::Drop);
        for text in ["Model", "Params (B)", "", "Train step", "Arch"] {
            assert_eq!(title(text), Title::Other, "{text}");
        }
        assert_eq!((task_name(5), task_key(5)), ("GSM8K", "gsm8k"));
    }
}
