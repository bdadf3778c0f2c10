//! A table as LaTeX: plain `tabular`s that need no package, in UTF-8. Names in other scripts than Latin need an engine that
//! sets them (LuaLaTeX, XeLaTeX).

use super::{Table, one_line};

pub fn print(table: &Table) -> String {
    let note = |note: &String| format!("\n{}\\\\\n", escape(note));
    format!(
        "% fireval: {}\n{}\n{}; scores in percent $\\pm$ standard error.\\\\\n\n{}\n{}.\\\\\n{}",
        one_line(table.protocol),
        tabular(&table.scores(), table.text_columns()),
        escape(table.protocol),
        tabular(&table.intervals(), 2),
        figure(&table.legend()),
        table.notes.iter().map(note).collect::<String>()
    )
}

/// Lines of cells, the first the head; the first columns are text, the others figures.
fn tabular(lines: &[Vec<String>], text_columns: usize) -> String {
    let columns: String =
        (0..lines.first().map_or(0, Vec::len)).map(|i| if i < text_columns { 'l' } else { 'r' }).collect();
    let line = |cells: &Vec<String>| {
        let set = |(column, cell): (usize, &String)| if column < text_columns { escape(cell) } else { figure(cell) };
        cells.iter().enumerate().map(set).collect::<Vec<_>>().join(" & ") + " \\\\\n"
    };
    let (head, body) = lines.split_first().expect("a table has a head");
    let head = head.iter().map(|cell| escape(cell)).collect::<Vec<_>>().join(" & ");
    let body: String = body.iter().map(line).collect();
    format!("\\begin{{tabular}}{{{columns}}}\n\\hline\n{head} \\\\\n\\hline\n{body}\\hline\n\\end{{tabular}}\n")
}

/// Figures: their signs are minus and plus, not hyphens.
fn figure(text: &str) -> String {
    let mut set = String::new();
    for c in text.chars() {
        match c {
            '+' | '-' => set.extend(['$', c, '$']),
            '±' => set.push_str("$\\pm$"),
            '·' => set.push_str("$\\cdot$"),
            c => push(&mut set, c),
        }
    }
    set
}

/// Text that LaTeX sets as it is written. Brackets and stars are in braces since at the start of a line they would be an
/// argument of the line break before; so are hyphens after hyphens, which would join to a dash.
pub fn escape(text: &str) -> String {
    let mut set = String::new();
    for c in one_line(text).chars() {
        push(&mut set, c);
    }
    set
}

fn push(set: &mut String, c: char) {
    match c {
        '&' | '%' | '$' | '#' | '_' | '{' | '}' => set.extend(['\\', c]),
        '\\' => set.push_str("\\textbackslash{}"),
        '~' => set.push_str("\\textasciitilde{}"),
        '^' => set.push_str("\\textasciicircum{}"),
        '<' => set.push_str("\\textless{}"),
        '>' => set.push_str("\\textgreater{}"),
        '|' => set.push_str("\\textbar{}"),
        '`' => set.push_str("\\textasciigrave{}"),
        '\'' => set.push_str("\\textquotesingle{}"),
        '"' => set.push_str("\\char34{}"),
        '[' | ']' | '*' => set.extend(['{', c, '}']),
        '-' if set.ends_with('-') => set.push_str("{-}"),
        c => set.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn lines_have_as_many_cells_as_columns() {
        let text = print(&Table::of(&comparison()));
        assert!(text.contains("\\begin{tabular}{llrrrr}\n") && text.contains("\\begin{tabular}{llrrrrr}\n"), "{text}");
        assert!(text.contains("& 57.52 $\\pm$1.45 ($+$1.42 $\\pm$0.91) &"), "{text}");
        assert!(text.contains("\na,\\char34{}b\\char34{}\\textbar{}c & published, f32 & "), "{text}");
        assert!(text.contains("2.0e$-$7"), "{text}");
        let bars = |line: &str| line.replace("\\&", "").matches('&').count();
        for line in text.lines().filter(|line| line.ends_with(" \\\\")) {
            assert!([5, 6].contains(&bars(line)), "{line}");
        }
    }

    #[test]
    fn text_is_set_as_written() {
        assert_eq!(escape("50% & #1_{a}$"), "50\\% \\& \\#1\\_\\{a\\}\\$");
        assert_eq!(
            escape("a\\b^~<|>\n\u{1b}"),
            "a\\textbackslash{}b\\textasciicircum{}\\textasciitilde{}\\textless{}\\textbar{}\\textgreater{} \u{fffd}"
        );
        assert_eq!(escape("[x]* --- `'\""), "{[}x{]}{*} -{-}- \\textasciigrave{}\\textquotesingle{}\\char34{}");
    }
}
