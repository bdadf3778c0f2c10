//! A gate's verdict where GitHub's runner reads it: workflow commands and the job's summary.
//!
//! The runner takes a line that begins with `::` for a command, from standard output and standard error alike; its
//! characters are escaped as the toolkit's `core/src/command.ts` does.

use super::markdown;
use super::verdict::{Line, Page, word};
use crate::gate::{Finding, Outcome};

/// A line for each rule that does not hold, and for low power: `::error` for what fails the gate, `::warning` for what is
/// open.
pub fn commands(page: &Page) -> String {
    let mut text = String::new();
    let open = page.lines.iter().filter(|line| line.finding != Finding::Holds);
    text.extend(open.map(|line| {
        let level = match line.finding {
            Finding::Regression | Finding::Suspect => "error",
            Finding::Open | Finding::Holds => "warning",
        };
        let title = format!("fireval gate: {}, {} ({})", word(line.finding), line.about, line.rule);
        command(level, &title, &line.text)
    }));
    text.extend(page.low_power.iter().map(|low| command("warning", "fireval gate: low power", low)));
    text
}

fn command(level: &str, title: &str, message: &str) -> String {
    let data = message.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let title = title.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let title = title.replace(':', "%3A").replace(',', "%2C");
    format!("::{level} title={title}::{data}\n")
}

/// Markdown for the job's page.
pub fn summary(page: &Page) -> String {
    let mark = match page.outcome {
        Outcome::Pass => "✅",
        Outcome::Regression => "❌",
        Outcome::Suspect => "⚠️",
        Outcome::NotEnough => "❔",
    };
    let head = ["About", "Rule", "Finding", ""].map(str::to_owned).to_vec();
    let row = |line: &Line| {
        let finding = word(line.finding);
        // A cell's stars would be escaped with the rest of its text.
        let finding = if line.finding == Finding::Holds { finding.to_owned() } else { finding.to_uppercase() };
        vec![line.about.clone(), line.rule.to_owned(), finding, line.text.clone()]
    };
    let table: Vec<Vec<String>> = [head].into_iter().chain(page.lines.iter().map(row)).collect();
    let mut text =
        format!("### {mark} fireval gate: {}\n\n{}\n\n", page.outcome.name(), markdown::escape(&page.conclusion));
    text.push_str(&format!("{}\n\n", markdown::escape(&page.sight)));
    text.extend(page.low_power.iter().map(|low| format!("**{}**\n\n", markdown::escape(low))));
    text.push_str(&format!("{}\n\n{}\n", markdown::escape(&page.title), markdown::grid(&table, table[0].len())));
    text.extend(page.notes.iter().map(|note| format!("- {}\n", markdown::escape(note))));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::verdict::tests::verdict;

    #[test]
    fn a_line_for_what_does_not_hold() {
        let mut page = Page::of(&verdict());
        page.low_power = Some("50 %\r\nof it".to_owned());
        page.lines[1].about = "my: task, 100 %".to_owned();
        let text = commands(&page);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "five rules and the power: {text}");
        assert!(lines.iter().all(|line| line.starts_with("::error title=") || line.starts_with("::warning title=")));
        assert!(
            lines[0].starts_with("::warning title=fireval gate%3A open%2C average (non-inferior)::68.42 to"),
            "{}",
            lines[0]
        );
        assert!(lines[0].ends_with("one-sided at 97.5 %25"), "{}", lines[0]);
        assert!(
            lines[1].contains("my%3A task%2C 100 %25 (no loss)::-4.00, p"),
            "commas stay in the message: {}",
            lines[1]
        );
        assert_eq!(lines[5], "::warning title=fireval gate%3A low power::50 %25%0D%0Aof it");
    }

    #[test]
    fn the_summary_is_a_table_that_names_can_t_break() {
        let text = summary(&Page::of(&verdict()));
        assert!(text.starts_with("### ⚠️ fireval gate: suspect\n"), "{text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(rows.len(), 2 + 6, "{text}");
        assert!(rows[3].contains("| gsm8k | no loss | REGRESSION |"), "{}", rows[3]);
        assert!(text.contains("ft &lt;\"&'>\\|") && !text.contains("ft <"), "{text}");
    }
}
