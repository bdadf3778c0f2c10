//! A table as GitHub's Markdown.

use super::{Table, one_line};

pub fn print(table: &Table) -> String {
    let mut text = grid(&table.scores(), table.text_columns());
    text.push_str(&format!("\n{}; scores in percent ± standard error.\n\n", table.protocol));
    text.push_str(&grid(&table.intervals(), 2));
    text.push_str(&format!("\n{}.\n", escape(&table.legend())));
    text.extend(table.notes.iter().map(|note| format!("- {}\n", escape(note))));
    text
}

/// Lines of cells, the first the head; the first columns are text, the others figures.
pub fn grid(lines: &[Vec<String>], text_columns: usize) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let rule: Vec<&str> = (0..columns).map(|column| if column < text_columns { "---" } else { "---:" }).collect();
    let printed = lines.iter().enumerate().map(|(index, cells)| match index {
        0 => line(cells) + &format!("| {} |\n", rule.join(" | ")),
        _ => line(cells),
    });
    printed.collect()
}

/// Cells of text whose lines are kept, the first line of cells the head.
pub fn grid_of_lines(lines: &[Vec<String>]) -> String {
    let broken = |cell: &String| cell.lines().map(escape).collect::<Vec<String>>().join("<br>");
    let row = |cells: &Vec<String>| format!("| {} |\n", cells.iter().map(broken).collect::<Vec<String>>().join(" | "));
    let rule = |cells: &Vec<String>| format!("|{}\n", " --- |".repeat(cells.len()));
    let printed =
        lines.iter().enumerate().map(|(index, cells)| if index == 0 { row(cells) + &rule(cells) } else { row(cells) });
    printed.collect()
}

/// `text`, which ends its last line, as it is: no run of backticks in it is as long as those around it.
pub fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}\n{text}{fence}\n")
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// Text that reads as itself in a cell or a paragraph: what would end the cell, begin a tag, a character's name, code, a
/// formula or a link, or set letters apart gets a backslash. Underscores inside a word mean nothing and stay as they are.
pub fn escape(text: &str) -> String {
    let text: Vec<char> = one_line(text).chars().collect();
    let mut escaped = String::new();
    for (index, &c) in text.iter().enumerate() {
        let before = index.checked_sub(1).map(|index| text[index]);
        let after = text.get(index + 1).copied();
        let is = |side: Option<char>, test: fn(char) -> bool| side.is_some_and(test);
        let special = match c {
            '\\' | '|' | '`' | '*' | '$' => true,
            '_' => !(is(before, char::is_alphanumeric) && is(after, char::is_alphanumeric)),
            '~' => is(before, |c| c != ' ') || is(after, |c| c != ' '),
            '&' => is(after, |c| c.is_alphanumeric() || c == '#'),
            ']' => is(after, |c| "([:".contains(c)),
            _ => false,
        };
        match c {
            '<' => escaped.push_str("&lt;"),
            c if special => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn lines_have_as_many_cells_as_the_head() {
        let text = print(&Table::of(&comparison()));
        let lines: Vec<&str> = text.lines().take_while(|line| line.starts_with('|')).collect();
        let bars = |line: &str| line.replace("\\|", "").matches('|').count();
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| bars(line) == bars(lines[0])), "{text}");
        assert!(lines[3].contains("| 57.52 ±1.45 (+1.42 ±0.91) |"), "{text}");
        assert!(lines[4].contains("a,\"b\"\\|c"), "{text}");
    }

    #[test]
    fn text_can_t_leave_its_fence() {
        assert_eq!(fenced("# a\n"), "```\n# a\n```\n");
        assert_eq!(fenced("```\n<b>`````\n"), "``````\n```\n<b>`````\n``````\n");
    }

    #[test]
    fn text_can_t_leave_its_cell() {
        assert_eq!(escape("a|b<script>\n\\"), r"a\|b&lt;script> \\");
        assert_eq!(escape("acc_norm _x_ `y` [z](w) $1$"), r"acc_norm \_x\_ \`y\` [z\](w) \$1\$");
        assert_eq!(escape("A&B &amp; ~~c~~ ~ d"), r"A\&B \&amp; \~\~c\~\~ ~ d");
    }
}
