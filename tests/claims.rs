//! `fireval published check` and `fireval verify-claim` through the binary: what they say and how they end.

mod binary;

use binary::Workplace;

const HEAD: &str = "model,precision,average,arc,hellaswag,mmlu,truthfulqa,winogrande,gsm8k";
const CARD: &str = "| Model | Average |\n|---|---|\n| Yi-34B | 69.42 |\n| **Llama2-65B-Chat** | 67.87 |\n";

#[test]
fn averages_are_checked_and_the_wrong_ones_listed() {
    let place = Workplace::new();
    assert!(place.run(&["published", "check"]).done().contains("     0 are neither\n"));
    place.write("rows.csv", &format!("{HEAD}\nm,4bit,68.42,66.04,86.49,71.82,46.78,81.93,57.47\nn,4bit,68.41,66.08,86.45,71.82,46.78,81.93,57.47\n"));
    let ended = place.run(&["published", "check", "rows.csv"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("line 3: n (4bit): average 68.41, the mean of its scores is 68.4217"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("line 3: n (4bit): arc_challenge 66.08 is no count of 1172 documents"),
        "{}",
        ended.stdout
    );
    place.write("rows.csv", &format!("{HEAD}\nm,4bit,x,1,1,1,1,1,1\n"));
    let error = place.run(&["published", "check", "rows.csv"]).failed();
    assert!(error.contains("rows.csv, line 2: `average`: \"x\" is not a percentage"), "{error}");
    assert!(place.run(&["published", "check", "none.csv"]).failed().contains("can't read none.csv"));
}

#[test]
fn the_whole_leaderboard_holds() {
    let Ok(data) = std::env::var("FIREVAL_DATA") else { return eprintln!("skipped: FIREVAL_DATA is not set") };
    let file = std::path::Path::new(&data).join("leaderboard/open_llm_leaderboard_v1.csv");
    if !file.exists() {
        return eprintln!("skipped: there is no {}", file.display());
    }
    let text = Workplace::new().run(&["published", "check", file.to_str().unwrap()]).done();
    for line in [
        "7169 rows of",
        "  6386 averages are the mean",
        "   783 are another hundredth",
        "     0 are neither",
        "furthest is 0.0083 ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let place = Workplace::new();
    place.write("card.md", CARD);
    let ended = place.run(&["verify-claim", "card.md", "--published", file.to_str().unwrap()]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("line 4: Llama2-65B-Chat: no row of this name"), "{}", ended.stdout);
}

#[test]
fn a_card_ends_with_its_exit_code() {
    let place = Workplace::new();
    place.write("card.md", CARD);
    let ended = place.run(&["verify-claim", "card.md"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("WRONG line 4: Llama2-65B-Chat: no row of this name was published"),
        "{}",
        ended.stdout
    );
    place.write("card.md", &CARD.replace("Llama2-65B-Chat", "Llama-2-70b-hf"));
    assert!(place.run(&["verify-claim", "card.md"]).done().ends_with(": every claim holds\n"));
    place.write("rows.csv", &format!("{HEAD}\no/other,4bit,68.42,66.04,86.49,71.82,46.78,81.93,57.47\n"));
    let text = place.run(&["verify-claim", "card.md", "--published", "rows.csv"]).done();
    assert!(text.contains("not looked up: Yi-34B, Llama-2-70b-hf"), "{text}");
    place.write("card.md", "| Model | Base |\n|-|-|\n| a | b |\n");
    assert!(
        place.run(&["verify-claim", "card.md"]).failed().contains("the one in line 1: it names none of the six tasks")
    );
    place.write("card.md", "<table><tr><td>1</td></tr></table>\n");
    assert!(place.run(&["verify-claim", "card.md"]).failed().contains("there is no Markdown table to check"));
    assert!(place.run(&["verify-claim", "none.md"]).failed().contains("can't read none.md"));
}
