//! A table for a terminal [comfy-table]: a row a model, or, where that is too wide, a row a task.

use comfy_table::{CellAlignment, ContentArrangement, presets};

use super::{Figure, Table, one_line};

/// `width`: columns of the terminal; without one nothing is wrapped.
pub fn print(table: &Table, width: Option<usize>) -> String {
    let wide = models_as_rows(table);
    let text = if wide.fits(width) { wide.render(None) } else { tasks_as_rows(table).render_within(width) };
    let (intervals, legend) = (intervals(table, width), table.legend());
    let notes: String = table.notes.iter().map(|note| format!("  {}\n", one_line(note))).collect();
    format!("{text}\n{} · scores in percent ± standard error\n{intervals}\n{legend}\n{notes}", table.protocol)
}

/// The second table, or, where that is too wide, one a model under its name.
fn intervals(table: &Table, width: Option<usize>) -> String {
    let lines = table.intervals().iter().map(|line| line.iter().map(|cell| one_line(cell)).collect()).collect();
    let all = Grid { lines, text_columns: 2 };
    if all.fits(width) {
        return all.render(None);
    }
    let (head, lines) = all.lines.split_first().expect("a grid has a head");
    let of_model = |lines: &[Vec<String>]| {
        let used =
            if lines.iter().flat_map(|line| &line[SCORES..]).all(String::is_empty) { SCORES } else { head.len() };
        let narrow = |line: &Vec<String>| line[1..used].iter().map(|cell| cell.replace(" [", "\n[")).collect();
        let lines = [head].into_iter().chain(lines).map(narrow).collect();
        Grid { lines, text_columns: 1 }.render_within(width)
    };
    let models = lines.chunk_by(|one, other| one[0] == other[0]);
    models.map(|lines| format!("{}\n{}", lines[0][0], of_model(lines))).collect::<Vec<_>>().join("\n")
}

/// Columns of the second table that a model without differences fills.
const SCORES: usize = 3;

/// Lines of cells, the first the head; the first columns are text, the others figures.
pub fn grid(lines: Vec<Vec<String>>, text_columns: usize, width: Option<usize>) -> String {
    Grid { lines, text_columns }.render(width)
}

/// Cells in lines; the first line is the head, the first columns are text.
struct Grid {
    lines: Vec<Vec<String>>,
    text_columns: usize,
}

impl Grid {
    fn fits(&self, width: Option<usize>) -> bool {
        width.is_none_or(|width| self.render(None).lines().all(|line| line.chars().count() <= width))
    }

    /// Wrapped only where it has to be.
    fn render_within(&self, width: Option<usize>) -> String {
        self.render(if self.fits(width) { None } else { width })
    }

    fn render(&self, width: Option<usize>) -> String {
        let mut grid = comfy_table::Table::new();
        grid.load_preset(presets::UTF8_FULL_CONDENSED);
        match width {
            Some(width) => {
                grid.set_content_arrangement(ContentArrangement::Dynamic);
                grid.set_width(u16::try_from(width).unwrap_or(u16::MAX));
            }
            None => {
                grid.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        let (head, lines) = self.lines.split_first().expect("a grid has a head");
        grid.set_header(head);
        lines.iter().for_each(|line| {
            grid.add_row(line);
        });
        grid.column_iter_mut()
            .skip(self.text_columns)
            .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        grid.to_string()
    }
}

fn models_as_rows(table: &Table) -> Grid {
    let published = table.has_published();
    let mut head = vec!["Model".to_owned()];
    head.extend(published.then(|| "Source".to_owned()));
    head.extend(table.heads.iter().map(|head| format!("{}\n{}", head.title, head.metric)));
    head.push("Average".to_owned());
    head.extend(table.has_differences().then(|| "Difference".to_owned()));
    let mut lines = vec![head];
    for row in &table.rows {
        let mut line = vec![one_line(&row.model)];
        line.extend(published.then(|| format!("{}\n{}", row.source, row.held)));
        line.extend(row.figures.iter().map(two_lines));
        line.push(row.average.score_text());
        line.extend(table.has_differences().then(|| row.average.delta_text().unwrap_or_default()));
        lines.push(line);
    }
    Grid { lines, text_columns: 1 + usize::from(published) }
}

fn tasks_as_rows(table: &Table) -> Grid {
    let mut head = vec![String::new()];
    head.extend(table.rows.iter().map(|row| match row.source {
        "published" => format!("{}\n{}, {}", one_line(&row.model), row.source, row.held),
        _ => one_line(&row.model),
    }));
    let mut lines = vec![head];
    for (index, head) in table.heads.iter().enumerate() {
        let mut line = vec![format!("{} {}", head.title, head.metric)];
        line.extend(table.rows.iter().map(|row| two_lines(&row.figures[index])));
        lines.push(line);
    }
    let mut average = vec!["Average".to_owned()];
    average.extend(table.rows.iter().map(|row| two_lines(&row.average)));
    lines.push(average);
    Grid { lines, text_columns: 1 }
}

/// The score and, below it, its difference.
fn two_lines(figure: &Figure) -> String {
    match figure.delta_text() {
        Some(delta) => format!("{}\n{delta}", figure.score_text()),
        None => figure.score_text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn a_wide_terminal_has_a_row_a_model() {
        let text = print(&Table::of(&comparison()), None);
        let base = text.lines().find(|line| line.contains("base")).unwrap();
        assert!(base.contains("56.10 ±1.45") && base.contains("50.00 ±1.45"), "{text}");
        assert!(text.contains("+1.42 ±0.91") && text.contains("published") && text.contains("a \"note\""), "{text}");
    }

    #[test]
    fn a_narrow_terminal_has_a_row_a_task_and_is_never_overrun() {
        let table = Table::of(&comparison());
        let text = print(&table, Some(70));
        assert!(
            text.lines().any(|line| line.contains("ARC") && line.contains("56.10") && line.contains("57.52")),
            "{text}"
        );
        for width in [40, 70, 100] {
            let text = print(&table, Some(width));
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(['│', '┆', '─'])).collect();
            assert!(!lines.is_empty() && lines.iter().all(|line| line.chars().count() <= width), "{text}");
        }
    }

    #[test]
    fn a_narrow_terminal_has_a_table_of_intervals_a_model_and_breaks_no_name_or_interval() {
        let mut table = Table::of(&comparison());
        table.rows[1].model = "YeungNLP/firefly-mixtral-8x7b-v0.1".to_owned();
        let text = print(&table, Some(80));
        let lines: Vec<&str> = text.lines().collect();
        let name = lines.iter().position(|line| *line == table.rows[1].model);
        let name = name.unwrap_or_else(|| panic!("no line is the name: {text}"));
        assert!(lines[name + 1..].iter().any(|line| line.contains("Difference")), "{text}");
        assert!(text.lines().all(|line| line.matches('[').count() == line.matches(']').count()), "{text}");
    }
}
