//! Rows one after another, for files larger than memory: JSON Lines by the line, Parquet by the row group [polars].
//!
//! What is held is a batch of lines, and of a Parquet file one row group. A `.json` file that is one array is read whole.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{ParquetReader, SerReader};
use serde_json::Value;

use super::{Row, columns, json_lines, parse};

/// A row's text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedRow {
    /// The line of a file of lines, the row of any other; from 1.
    pub number: usize,
    /// One JSON object, without a line end.
    pub text: Vec<u8>,
}

/// The rows of one file that are still to come.
pub struct RowStream {
    place: String,
    source: Source,
}

enum Source {
    Lines { reader: BufReader<File>, number: usize },
    Rows { waiting: VecDeque<Vec<u8>>, number: usize, groups: Groups },
}

/// Row groups of a Parquet file that are not read yet; none of any other file.
#[derive(Default)]
struct Groups {
    path: PathBuf,
    /// Places of the columns that are read.
    columns: Vec<usize>,
    left: VecDeque<Range<usize>>,
}

impl RowStream {
    /// Opens `path` by its ending: `.jsonl`, `.json` (lines, or one array) or `.parquet`.
    pub fn open(path: &Path) -> Result<RowStream> {
        RowStream::of(path, None)
    }

    /// As `open`, but of a Parquet file no other columns than `wanted`, whatever they hold.
    pub fn open_columns(path: &Path, wanted: &[&str]) -> Result<RowStream> {
        RowStream::of(path, Some(wanted))
    }

    fn of(path: &Path, wanted: Option<&[&str]>) -> Result<RowStream> {
        let place = path.display().to_string();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        let source = match ending.as_str() {
            "jsonl" | "json" => lines_or_array(path)?,
            "parquet" => Source::Rows { waiting: VecDeque::new(), number: 0, groups: Groups::of(path, wanted)? },
            _ => bail!("{place}: dialogues are read from .jsonl, .json or .parquet files"),
        };
        Ok(RowStream { place, source })
    }

    /// The file, for errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The next rows, about `bytes` of them; none at the end.
    pub fn batch(&mut self, bytes: usize) -> Result<Vec<StreamedRow>> {
        let mut batch = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let Some(row) = self.next().with_context(|| format!("can't read {}", self.place))? else { break };
            left = left.saturating_sub(row.text.len().max(1));
            batch.push(row);
        }
        Ok(batch)
    }

    fn next(&mut self) -> Result<Option<StreamedRow>> {
        match &mut self.source {
            Source::Lines { reader, number } => next_line(reader, number),
            Source::Rows { waiting, number, groups } => {
                while waiting.is_empty() {
                    match groups.next()? {
                        Some(rows) => waiting.extend(rows),
                        None => return Ok(None),
                    }
                }
                *number += 1;
                Ok(waiting.pop_front().map(|text| StreamedRow { number: *number, text }))
            }
        }
    }
}

impl StreamedRow {
    /// The row. Its place is not in errors.
    pub fn read(&self) -> Result<Row> {
        parse(&self.text)
    }
}

/// The next line that is not blank.
fn next_line(reader: &mut BufReader<File>, number: &mut usize) -> Result<Option<StreamedRow>> {
    loop {
        let mut text = Vec::new();
        if reader.read_until(b'\n', &mut text)? == 0 {
            return Ok(None);
        }
        *number += 1;
        text.truncate(text.trim_ascii_end().len());
        if !text.trim_ascii_start().is_empty() {
            return Ok(Some(StreamedRow { number: *number, text }));
        }
    }
}

/// What editors on Windows put before a text.
pub(super) const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

fn lines_or_array(path: &Path) -> Result<Source> {
    let place = || format!("can't read {}", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(place)?);
    let start = reader.fill_buf().with_context(place)?;
    let is_utf16 = UTF16_MARKS.iter().any(|mark| start.starts_with(mark));
    ensure!(!is_utf16, "{} is in UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)", path.display());
    let mark = if start.starts_with(UTF8_MARK) { UTF8_MARK.len() } else { 0 };
    let is_array = start[mark..].trim_ascii_start().starts_with(b"[");
    reader.consume(mark);
    if !is_array {
        return Ok(Source::Lines { reader, number: 0 });
    }
    let items: Vec<Value> =
        serde_json::from_reader(reader).with_context(|| format!("{} is not an array of rows", path.display()))?;
    let waiting = items.iter().map(|item| item.to_string().into_bytes()).collect();
    Ok(Source::Rows { waiting, number: 0, groups: Groups::default() })
}

impl Groups {
    fn of(path: &Path, wanted: Option<&[&str]>) -> Result<Groups> {
        let broken = || format!("{} is not a readable Parquet file", path.display());
        let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let mut reader = ParquetReader::new(file);
        let schema = reader.schema().with_context(broken)?;
        let columns = columns::chosen(&schema, wanted).with_context(|| path.display().to_string())?;
        let metadata = reader.get_metadata().with_context(broken)?;
        let mut left = VecDeque::new();
        let mut start = 0;
        for group in &metadata.row_groups {
            left.push_back(start..start + group.num_rows());
            start += group.num_rows();
        }
        Ok(Groups { path: path.to_owned(), columns, left })
    }

    fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(rows) = self.left.pop_front() else { return Ok(None) };
        let reader = ParquetReader::new(File::open(&self.path)?)
            .with_slice(Some((rows.start, rows.len())))
            .with_projection(Some(self.columns.clone()));
        let bytes = json_lines(&self.path.display().to_string(), reader.finish()?)?;
        Ok(Some(bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use polars::prelude::{Column, DataFrame, JsonFormat, JsonReader, ParquetWriter};

    use super::*;

    fn read(path: &Path, bytes: usize) -> Vec<(usize, String)> {
        rest(RowStream::open(path).unwrap(), bytes)
    }

    fn rest(mut stream: RowStream, bytes: usize) -> Vec<(usize, String)> {
        let mut rows = Vec::new();
        loop {
            let batch = stream.batch(bytes).unwrap();
            if batch.is_empty() {
                return rows;
            }
            rows.extend(batch.into_iter().map(|row| (row.number, String::from_utf8(row.text).unwrap())));
        }
    }

    #[test]
    fn lines_keep_their_numbers_in_batches_of_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.jsonl");
        std::fs::write(&path, "{\"a\": 1}\r\n\n {\"a\": 2}\n{\"a\": 3}").unwrap();
        let expected = [(1, "{\"a\": 1}"), (3, " {\"a\": 2}"), (4, "{\"a\": 3}")];
        for bytes in [1, 10, 1000] {
            let rows = read(&path, bytes);
            assert!(rows.iter().map(|(number, text)| (*number, text.as_str())).eq(expected), "{bytes}: {rows:?}");
        }
    }

    #[test]
    fn an_array_is_rows_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.json");
        std::fs::write(&path, "\n[\n {\"a\": 1},\n {\"a\": 2}\n]\n").unwrap();
        assert_eq!(read(&path, 1), [(1, "{\"a\":1}".to_owned()), (2, "{\"a\":2}".to_owned())]);
        std::fs::write(&path, "[1,").unwrap();
        let error = RowStream::open(&path).err().unwrap();
        assert!(format!("{error:#}").contains("some.json is not an array"), "{error:#}");
    }

    #[test]
    fn parquet_comes_by_row_groups() {
        let lines: String = (0..7).map(|n| format!("{{\"messages\":[{{\"role\":\"user\",\"n\":{n}}}]}}\n")).collect();
        let reader = JsonReader::new(Cursor::new(lines.clone())).with_json_format(JsonFormat::JsonLines);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.parquet");
        let writer = ParquetWriter::new(File::create(&path).unwrap()).with_row_group_size(Some(3));
        writer.finish(&mut reader.finish().unwrap()).unwrap();
        let groups = Groups::of(&path, None).unwrap().left;
        assert!(groups.len() > 1 && groups.iter().map(Range::len).sum::<usize>() == 7, "{groups:?}");
        let expected: Vec<(usize, String)> =
            lines.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
        assert_eq!(read(&path, 50), expected);
    }

    #[test]
    fn columns_that_are_not_wanted_may_hold_anything() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.parquet");
        let raw = Column::new("raw".into(), [&b"x"[..], &b"y"[..]]);
        let text = Column::new("text".into(), ["a", "b"]);
        let mut frame = DataFrame::new_infer_height(vec![raw, text]).unwrap();
        ParquetWriter::new(File::create(&path).unwrap()).finish(&mut frame).unwrap();
        let rows = rest(RowStream::open_columns(&path, &["messages", "text"]).unwrap(), 100);
        assert_eq!(rows, [(1, "{\"text\":\"a\"}".to_owned()), (2, "{\"text\":\"b\"}".to_owned())]);
        let told = |wanted: Option<&[&str]>| format!("{:#}", RowStream::of(&path, wanted).err().unwrap());
        let error = told(None);
        assert!(error.contains("some.parquet: column `raw`") && error.contains("BinaryView"), "{error}");
        assert!(error.contains("drop the column"), "{error}");
        assert!(told(Some(&["messages", "data"])).contains("none of the columns `messages`, `data`"));
    }

    #[test]
    fn a_mark_before_the_text_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("some.jsonl", "\u{feff}{\"a\":1}\n"), ("some.json", "\u{feff}[{\"a\":1}]")] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path, 100), [(1, "{\"a\":1}".to_owned())], "{name}");
        }
        let path = folder.path().join("wide.jsonl");
        std::fs::write(&path, b"\xff\xfe{\0}\0").unwrap();
        let error = format!("{:#}", RowStream::open(&path).err().unwrap());
        assert!(error.contains("wide.jsonl is in UTF-16") && error.contains("iconv"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (name, told) in [("none.jsonl", "none.jsonl"), ("some.csv", ".jsonl, .json or .parquet")] {
            let error = format!("{:#}", RowStream::open(&folder.path().join(name)).err().unwrap());
            assert!(error.contains(told), "{error}");
        }
        let broken = folder.path().join("broken.parquet");
        std::fs::write(&broken, "PAR1 no").unwrap();
        assert!(format!("{:#}", RowStream::open(&broken).err().unwrap()).contains("broken.parquet is not"));
    }
}
