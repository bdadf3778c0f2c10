//! Answers side by side as text.

use comfy_table::{ContentArrangement, presets};

use super::markdown;
use crate::samples::{Answer, Answered, Sheet};

/// For a terminal of `width` columns; 100 where it has none.
pub fn terminal(sheet: &Sheet, width: Option<usize>) -> String {
    let mut text = format!("{}\n", sheet.describe());
    for (index, prompt) in sheet.prompts.iter().enumerate() {
        text.push_str(&format!("\n{}. {}\n", index + 1, question(prompt)));
        let mut grid = comfy_table::Table::new();
        grid.load_preset(presets::UTF8_FULL_CONDENSED);
        grid.set_content_arrangement(ContentArrangement::Dynamic);
        grid.set_width(u16::try_from(width.unwrap_or(100)).unwrap_or(u16::MAX));
        grid.set_header(sheet.models.iter().map(|model| model.model.as_str()));
        grid.add_row(prompt.answers.iter().map(|answer| plain(&told(answer))));
        text.push_str(&format!("{grid}\n"));
    }
    text
}

/// GitHub's Markdown: a table for each prompt.
pub fn markdown(sheet: &Sheet) -> String {
    let mut text = format!("{}\n", sheet.describe());
    let models: Vec<String> = sheet.models.iter().map(|model| model.model.clone()).collect();
    for (index, prompt) in sheet.prompts.iter().enumerate() {
        text.push_str(&format!("\n### {}. {}\n\n", index + 1, markdown::escape(&question(prompt))));
        let answers: Vec<String> = prompt.answers.iter().map(told).collect();
        text.push_str(&markdown::grid_of_lines(&[models.clone(), answers]));
    }
    text
}

/// A prompt of one turn as it is, others with who speaks.
pub fn question(prompt: &Answered) -> String {
    match &prompt.messages[..] {
        [only] => only.content.clone(),
        turns => {
            let lines = turns.iter().map(|turn| format!("{}: {}", turn.role, turn.content));
            lines.collect::<Vec<String>>().join("\n")
        }
    }
}

/// An answer, and whether it was cut.
fn told(answer: &Answer) -> String {
    let text = answer.text.trim();
    if answer.is_cut { format!("{text} […]") } else { text.to_owned() }
}

/// Without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::samples::{Answering, Settings, Turn, sheet};
    use crate::store::manifest::tests::manifest;

    /// Two models, a prompt of one turn and one of two, for tests.
    pub fn answers() -> Sheet {
        let turn = |role: &str, content: &str| Turn { role: role.to_owned(), content: content.to_owned() };
        let prompts = vec![vec![turn("user", "Why|so?")], vec![turn("system", "Be brief."), turn("user", "<b>")]];
        let answer = |text: &str, is_cut| Answer { text: text.to_owned(), tokens: 3, is_cut };
        let columns = [
            vec![answer(" One\ntwo", false), answer("\u{1b}[2J", false)],
            vec![answer("a|b", true), answer("<script>", false)],
        ];
        let model = |name: &str| Answering::new(name, manifest().id, "t");
        sheet(Settings { sampling: None, max_tokens: 3 }, vec![model("base"), model("ft")], prompts, &columns)
    }

    #[test]
    fn answers_stand_side_by_side() {
        let text = terminal(&answers(), Some(60));
        assert!(text.starts_with("greedy, at most 3 tokens\n\n1. Why|so?\n"), "{text}");
        assert!(text.lines().any(|line| line.contains("base") && line.contains("ft")), "{text}");
        assert!(text.lines().any(|line| line.contains("One") && line.contains("a|b […]")), "{text}");
        assert!(text.contains("2. system: Be brief.\nuser: <b>") && !text.contains('\u{1b}'), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
    }

    #[test]
    fn in_markdown_lines_stay_lines_of_a_cell() {
        let text = markdown(&answers());
        assert!(text.contains("| base | ft |\n| --- | --- |\n| One<br>two | a\\|b […] |\n"), "{text}");
        assert!(text.contains("### 1. Why\\|so?\n") && text.contains("&lt;script>"), "{text}");
    }
}
