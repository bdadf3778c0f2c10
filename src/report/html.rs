//! A table as HTML, well-formed as XML too, so that any reader of either reads it.

use super::Table;

/// What a page of its own needs to be read on any screen, by day and by night.
const STYLE: &str = "\
:root { color-scheme: light dark; font-family: sans-serif }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: 0.3em 0.7em; text-align: left }
.figure { text-align: right; white-space: nowrap }
";

/// A page that holds the table alone.
pub fn print(table: &Table) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n<title>fireval: {}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        escape(&table.rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>().join(", ")),
        section(table)
    )
}

/// The table as a part of a page: scores, then intervals and tests, then the notes. Cells of figures have the class
/// `figure`.
pub fn section(table: &Table) -> String {
    let notes: String = table.notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    let notes = if notes.is_empty() { notes } else { format!("<ul>\n{notes}</ul>\n") };
    format!(
        "<section>\n{}<p>{}; scores in percent ± standard error.</p>\n{}<p>{}.</p>\n{notes}</section>\n",
        grid(&table.scores(), table.text_columns()),
        escape(table.protocol),
        grid(&table.intervals(), 2),
        escape(&table.legend())
    )
}

/// Lines of cells, the first the head; the first columns are text, the others figures. A line's first cell is its head.
pub fn grid(lines: &[Vec<String>], text_columns: usize) -> String {
    let class = |column: usize| if column < text_columns { "" } else { " class=\"figure\"" };
    let line = |cells: &[String], cell: &dyn Fn(usize, &str) -> String| {
        let cells: String = cells.iter().enumerate().map(|(column, text)| cell(column, text)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let in_head = |column: usize, text: &str| format!("<th scope=\"col\"{}>{}</th>", class(column), escape(text));
    let in_body = |column: usize, text: &str| match column {
        0 => format!("<th scope=\"row\">{}</th>", escape(text)),
        _ => format!("<td{}>{}</td>", class(column), escape(text)),
    };
    let (head, body) = lines.split_first().expect("a table has a head");
    let body: String = body.iter().map(|cells| line(cells, &in_body)).collect();
    format!(
        "<div class=\"table\">\n<table>\n<thead>\n{}</thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n",
        line(head, &in_head)
    )
}

/// Text that stays text inside an element and inside a quoted attribute, of HTML and of XML. Characters that XML can't hold
/// are U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c if c.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
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
    fn a_row_a_model_and_its_name_is_text() {
        let mut comparison = comparison();
        comparison.rows[1].model = "<script>alert('&')</script>".to_owned();
        let text = print(&Table::of(&comparison));
        assert!(!text.contains("<script"), "{text}");
        assert!(text.contains("<th scope=\"row\">&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;</th>"), "{text}");
        assert!(text.contains("<td class=\"figure\">57.52 ±1.45 (+1.42 ±0.91)</td>"), "{text}");
        assert!(text.contains("<td>published, f32</td>") && text.contains("<li>a &quot;note&quot;</li>"), "{text}");
        assert_eq!(text.matches("<tr>").count(), 1 + 3 + 1 + 7);
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("a\n\"b\"\u{0}\u{ffff}"), "a\n&quot;b&quot;\u{fffd}\u{fffd}");
    }
}
