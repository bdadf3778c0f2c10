//! A table as GitHub's Markdown.

use super::{Figure, Table};

pub fn print(table: &Table) -> String {
    let published = table.has_published();
    let mut head = vec!["Model".to_owned()];
    head.extend(published.then(|| "Source".to_owned()));
    head.extend(table.heads.iter().map(|head| format!("{} ({})", head.title, head.metric)));
    head.push("Average".to_owned());
    head.extend(table.has_differences().then(|| "Difference".to_owned()));
    let mut lines = vec![head];
    for row in &table.rows {
        let mut cells = vec![row.model.clone()];
        cells.extend(published.then(|| format!("{}, {}", row.source, row.held)));
        cells.extend(row.figures.iter().map(one_line));
        cells.push(row.average.score_text());
        cells.extend(table.has_differences().then(|| row.average.delta_text().unwrap_or_default()));
        lines.push(cells);
    }
    let mut text = grid(&lines, 1 + usize::from(published));
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

fn one_line(figure: &Figure) -> String {
    match figure.delta_text() {
        Some(delta) => format!("{} ({delta})", figure.score_text()),
        None => figure.score_text(),
    }
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

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| escape(cell)).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// What would end a cell or begin a tag.
pub fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
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
    fn text_can_t_leave_its_cell() {
        assert_eq!(escape("a|b<script>\n\\"), "a\\|b&lt;script> \\\\");
    }
}
