//! Whole cards.

use super::*;

fn report(markdown: &str) -> Report {
    verify(markdown, &published::all().unwrap())
}

/// The findings, each with its line and model.
fn findings(markdown: &str) -> Vec<String> {
    report(markdown)
        .findings()
        .map(|Located { line, model, finding }| format!("{line} {}: {finding}", model.as_deref().unwrap_or("-")))
        .collect()
}

const HEAD: &str =
    "| Model | Average | ARC | HellaSwag | MMLU | TruthfulQA | Winogrande | GSM8K |\n|-|-|-|-|-|-|-|-|\n";

fn table(rows: &[&str]) -> String {
    format!("{HEAD}{}\n", rows.join("\n"))
}

const BASE: &str = "| [Mixtral-8x7B-v0.1](x) | **68.42** | 66.04 | 86.49 | 71.82 | 46.78 | 81.93 | 57.47 |";

#[test]
fn a_table_as_published_holds() {
    let text = table(&[BASE, "| firefly-mixtral-8x7b | 70.34 | 68.09 | 85.76 | 71.49 | 55.31 | 82.08 | 59.29 |"]);
    let report = report(&text);
    assert_eq!(report.findings().count(), 0, "{report:?}");
    let table = &report.tables[0];
    assert_eq!((table.claims, table.confirmed, table.averages.as_slice()), (2, 2, &[(Basis::Six, 2)][..]));
}

#[test]
fn the_model_that_never_was_is_found() {
    let rows = [
        "Qwen-72B|73.6",
        "**firefly-mixtral-8x7b**|70.34",
        "Yi-34B|69.42",
        "Llama2-65B-Chat|67.87",
        "Vicuna-33B-v1.3|58.54",
    ];
    let text = format!("| Model | Open LLM Leaderboard |\n|---|---|\n|{}|\n", rows.join("|\n|"));
    let found = findings(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("6 Llama2-65B-Chat: no row of this name was published"), "{found:?}");
    assert!(found[0].contains("meta-llama/Llama-2-70b-hf (float16)"), "{found:?}");
    assert_eq!(report(&text).tables[0].unknown, ["Qwen-72B"]);
}

#[test]
fn averages_that_do_not_fit() {
    let own =
        |average: &str| table(&[BASE, &format!("| own | {average} | 60.07 | 80.00 | 60.00 | 50.00 | 70.01 | 40.03 |")]);
    // (60.07 + 80 + 60 + 50 + 70.01 + 40.03) / 6 = 60.018...; of the first four 62.5175.
    assert_eq!(findings(&own("60.02")), Vec::<String>::new());
    assert_eq!(findings(&own("60.5")), ["4 own: average 60.5 is not the mean of the 6 scores beside it, 60.02"]);
    let four = findings(&own("62.52"));
    assert!(four.len() == 1 && four[0].contains("of ARC, HellaSwag, MMLU and TruthfulQA alone"), "{four:?}");
    assert!(four[0].ends_with("that of the six scores beside it is 60.02"), "{four:?}");
}

#[test]
fn averages_of_four_tasks_hold_among_their_like() {
    let head = "| Model | Average | ARC | HellaSwag | MMLU | TruthfulQA |\n|-|-|-|-|-|-|\n";
    let four = "| firefly-mixtral-8x7b | 70.16 | 68.09 | 85.76 | 71.49 | 55.31 |\n| Yi-34B-Chat | 69.97 | 65.44 | 84.16 | 74.9 | 55.37 |\n";
    let report = report(&format!("{head}{four}"));
    assert_eq!((report.findings().count(), report.tables[0].averages.as_slice()), (0, &[(Basis::Four, 2)][..]));
    // Its published average, of six tasks.
    let found = findings(&format!("{head}{four}| Mixtral-8x7B-v0.1 | 68.42 | 66.04 | 86.49 | 71.82 | 46.78 |\n"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("5 Mixtral-8x7B-v0.1: average 68.42 is of the six tasks and stands among"),
        "{found:?}"
    );
    let found = findings(&format!("{head}| own | 68.42 | 66.04 | 86.49 | 71.82 | 46.70 |\n"));
    assert!(found[0].contains("not the mean of the 4 scores beside it, 67.76"), "{found:?}");
}

#[test]
fn a_score_of_another_row_shows_in_the_average() {
    // In Firefly's README; published with ARC 57.08, whose mean of four is the 61.63 that stands there.
    let head = "| Model | Average | ARC | HellaSwag | MMLU | TruthfulQA |\n|-|-|-|-|-|-|\n";
    let found = findings(&format!("{head}| vicuna-13b-v1.5 | 61.63 | 56.57 | 81.24 | 56.67 | 51.51 |\n"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].ends_with("average 61.63 is not the mean of the 4 scores beside it, 61.50"), "{found:?}");
    assert!(
        found[1].contains("vicuna-13b-v1.5: ARC 56.57 was published as 57.08; published is lmsys/vicuna-13b-v1.5"),
        "{found:?}"
    );
}

#[test]
fn scores_that_no_count_gives() {
    let found = findings(&table(&["| own | 60.02 | 60.08 | 80.00 | 60.00 | 50.00 | 70.01 | 40.03 |"]));
    assert_eq!(found, ["3 own: ARC 60.08 is no count of 1172 documents: 704 are 60.07 %, 705 are 60.15 %"]);
    let found = findings(&table(&["| own | 60.0 | 60.1 | 80.0 | 60.0 | 50.0 | 70.0 | 40.0 |"]));
    assert_eq!(found, Vec::<String>::new(), "one decimal leaves a count open");
}

#[test]
fn figures_that_were_published_otherwise() {
    let found = findings(&table(&[&BASE.replace("57.47", "57.62")]));
    // 57.62 is float16's; with bfloat16's others the average is off by 0.025.
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[1].contains("GSM8K 57.62 was published as 57.47; published is mistralai/Mixtral-8x7B-v0.1 (bfloat16)"),
        "{found:?}"
    );
}

#[test]
fn models_as_columns_and_fractions() {
    let text = "| | Mixtral-8x7B-v0.1 | Llama2-65B |\n|-|-|-|\n| ARC-c | 0.6604 | 0.6732 |\n| HellaSwag | 0.8649 | 0.8733 |\n| MMLU | 0.7182 | 0.6983 |\n| TruthfulQA (mc2) | 0.4678 | 0.4492 |\n| WinoGrande | 0.8193 | 0.8374 |\n| GSM-8K | 0.5747 | 0.5406 |\n| Avg. | 0.6842 | 0.6787 |\n";
    let found = findings(text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("1 Llama2-65B: no row of this name"), "{found:?}");
}

#[test]
fn the_leaderboard_s_own_table_in_a_card() {
    let text = "Detailed results [here](https://x.org/datasets/open-llm-leaderboard/details_YeungNLP__firefly-mixtral-8x7b-v0.1)\n\n|Metric|Value|\n|-|-:|\n|Avg.|70.34|\n|AI2 Reasoning Challenge (25-Shot)|68.09|\n|HellaSwag (10-Shot)|85.76|\n|MMLU (5-Shot)|71.49|\n|TruthfulQA (0-shot)|55.31|\n|Winogrande (5-shot)|82.08|\n|GSM8k (5-shot)|59.29|\n";
    assert_eq!((findings(text).len(), report(text).tables[0].confirmed), (0, 1));
    let found = findings(&text.replace("70.34", "71.34"));
    assert!(found[0].starts_with("3 YeungNLP/firefly-mixtral-8x7b-v0.1: average 71.34 is not the mean"), "{found:?}");
}

#[test]
fn what_is_left_out_is_said() {
    let text =
        format!("| Base | Steps |\n|-|-|\n| a | 3 |\n\n{}", table(&["| own | - | 50/60 | 80.0 | 60.0 | 50.0 | | |"]));
    let report = report(&text);
    assert_eq!((report.ignored.len(), report.ignored[0].0), (1, 1));
    assert_eq!(report.tables[0].notes, ["line 7: `50/60` is not one score, and was left out"]);
    assert_eq!(verify("no table", &[]).tables.len(), 0);
}
