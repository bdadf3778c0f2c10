//! The tables of a Markdown file as plain text, each with its lines [pulldown-cmark].

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A table as it is written; cells without their markup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Of the head, from 1.
    pub line: usize,
    pub head: Vec<String>,
    pub rows: Vec<WrittenRow>,
    /// The model whose results a link before the table promises: the leaderboard's own results in a card are linked so.
    pub linked: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenRow {
    pub line: usize,
    pub cells: Vec<String>,
}

/// Every table of `text`, in order.
pub fn tables(text: &str) -> Vec<Written> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut reader = Reader { starts: line_starts(text), ..Reader::default() };
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        reader.take(event, range.start);
    }
    reader.tables
}

#[derive(Default)]
struct Reader {
    tables: Vec<Written>,
    /// The cells of the line that is being read.
    cells: Vec<String>,
    in_table: bool,
    linked: Option<String>,
    starts: Vec<usize>,
}

impl Reader {
    fn take(&mut self, event: Event, offset: usize) {
        match event {
            Event::Start(Tag::Table(_)) => {
                self.in_table = true;
                let line = self.line(offset);
                self.tables.push(Written { line, linked: self.linked.take(), ..Written::default() });
            }
            Event::End(TagEnd::Table) => self.in_table = false,
            Event::Start(Tag::TableCell) => self.cells.push(String::new()),
            Event::End(TagEnd::TableHead) => {
                let head = std::mem::take(&mut self.cells);
                if let Some(table) = self.tables.last_mut() {
                    table.head = head.iter().map(|cell| cell.trim().to_owned()).collect();
                }
            }
            Event::Start(Tag::TableRow) => {
                let line = self.line(offset);
                if let Some(table) = self.tables.last_mut() {
                    table.rows.push(WrittenRow { line, cells: Vec::new() });
                }
            }
            Event::End(TagEnd::TableRow) => {
                let cells = std::mem::take(&mut self.cells);
                if let Some(row) = self.tables.last_mut().and_then(|table| table.rows.last_mut()) {
                    row.cells = cells.iter().map(|cell| cell.trim().to_owned()).collect();
                }
            }
            Event::Start(Tag::Link { dest_url, .. }) if !self.in_table => {
                self.linked = details_of(&dest_url).or(self.linked.take());
            }
            Event::Text(text) | Event::Code(text) => self.push(&text),
            Event::SoftBreak | Event::HardBreak => self.push(" "),
            Event::InlineHtml(tag) if tag.to_lowercase().starts_with("<br") => self.push(" "),
            _ => {}
        }
    }

    fn push(&mut self, text: &str) {
        if let Some(cell) = self.cells.last_mut().filter(|_| self.in_table) {
            cell.push_str(text);
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    [0].into_iter().chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect()
}

/// `ORG/NAME` from a link to the leaderboard's details, `…/details_ORG__NAME`.
fn details_of(url: &str) -> Option<String> {
    let name = url.split_once("/details_")?.1.split(['/', '?', '#']).next()?;
    let (organisation, model) = name.split_once("__")?;
    Some(format!("{organisation}/{model}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_text_and_lines_are_known() {
        let text = "---\ntitle: x\n---\n# Card\n\n| Model | **Average** |\n|---|--:|\n| [`a`_b](https://x.org) <br> c\\|d | <b>70.34</b> |\n| e | *1* |\n";
        let found = tables(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].head.as_slice()), (6, &["Model".to_owned(), "Average".to_owned()][..]));
        assert_eq!(found[0].rows[0], WrittenRow { line: 8, cells: vec!["a_b   c|d".to_owned(), "70.34".to_owned()] });
        assert_eq!((found[0].rows[1].line, found[0].linked.as_deref()), (9, None));
    }

    #[test]
    fn a_link_to_details_names_the_model_of_the_next_table() {
        let text = "Results [here](https://x.org/datasets/lb/details_YeungNLP__firefly-7b?a=b), [paper](https://y.org)\n\n|M|V|\n|-|-|\n|a|1|\n\n|M|V|\n|-|-|\n";
        let linked: Vec<Option<String>> = tables(text).into_iter().map(|table| table.linked).collect();
        assert_eq!(linked, [Some("YeungNLP/firefly-7b".to_owned()), None]);
    }
}
