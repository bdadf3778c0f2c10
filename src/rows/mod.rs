//! Rows of data files: JSON Lines as they are, Parquet and CSV through polars.
//!
//! A file is cut into lines at once and each line parsed only when its row is asked for: of HellaSwag's 40,000 training
//! rows an evaluation draws a few. Parquet and CSV are turned into the same lines.

mod columns;
mod stream;

use std::borrow::Cow;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use polars::prelude::{
    CsvReadOptions, CsvReader, DataFrame, JsonFormat, JsonWriter, ParquetReader, SerReader, SerWriter,
};
use serde_json::{Map, Value};

pub use stream::{RowStream, StreamedRow};

/// One row, by field name.
pub type Row = Map<String, Value>;

/// The rows of one file.
pub struct Rows {
    /// For errors: the file's path or its name in the bundle.
    place: String,
    bytes: Cow<'static, [u8]>,
    lines: Vec<Line>,
    /// Where only some rows of a file are at hand: how many it has, and the number of each line's row, ascending.
    slice: Option<(usize, Vec<usize>)>,
}

/// Where a row's line lies in the bytes, and its number in the file, from 1.
struct Line {
    start: usize,
    end: usize,
    number: usize,
}

impl Rows {
    /// Opens `path` by its ending: `.jsonl`, `.json` (an array or lines), `.parquet` or `.csv`.
    pub fn open(path: &Path) -> Result<Rows> {
        let place = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("can't read {place}"))?;
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        match ending.as_str() {
            "jsonl" | "json" => Ok(Rows::lines(place, Cow::Owned(bytes))),
            "parquet" => {
                let broken = || format!("{place} is not a readable Parquet file");
                let mut reader = ParquetReader::new(Cursor::new(bytes));
                let schema = reader.schema().with_context(broken)?;
                columns::chosen(&schema, None).with_context(|| place.clone())?;
                Rows::frame(&place, reader.finish().with_context(broken)?)
            }
            "csv" => Rows::texts(place, &bytes),
            _ => bail!("{place}: rows are read from .jsonl, .parquet or .csv files"),
        }
    }

    /// Opens the first of `stem.jsonl`, `stem.parquet` and `stem.csv` that exists.
    pub fn find(stem: &Path) -> Result<Rows> {
        let candidates: Vec<PathBuf> = ["jsonl", "parquet", "csv"]
            .iter()
            .map(|ending| PathBuf::from(format!("{}.{ending}", stem.display())))
            .collect();
        match candidates.iter().find(|path| path.exists()) {
            Some(path) => Rows::open(path),
            None => bail!("there is no {} (nor .parquet or .csv in its place)", candidates[0].display()),
        }
    }

    /// JSON Lines in memory; blank lines are no rows.
    pub fn lines(place: String, bytes: Cow<'static, [u8]>) -> Rows {
        let mut lines = Vec::new();
        let mut start = 0;
        for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let end = start + line.len();
            if !line.trim_ascii().is_empty() {
                lines.push(Line { start, end, number: index + 1 });
            }
            start = end + 1;
        }
        Rows { place, bytes, lines, slice: None }
    }

    /// These rows as part of a file of `total`, whose rows `kept` they are.
    pub fn as_slice_of(mut self, total: usize, kept: Vec<usize>) -> Result<Rows> {
        let ascending = kept.is_sorted_by(|a, b| a < b) && kept.last().is_none_or(|&last| last < total);
        ensure!(ascending && kept.len() == self.lines.len(), "{}: its list of kept rows is wrong", self.place);
        self.slice = Some((total, kept));
        Ok(self)
    }

    /// CSV with a header line; column types as polars infers them from all rows.
    pub fn csv(place: String, bytes: &[u8]) -> Result<Rows> {
        let frame = CsvReader::new(Cursor::new(bytes)).finish();
        Rows::frame(&place, frame.with_context(|| format!("{place} is not a readable CSV file"))?)
    }

    /// CSV with a header line, every value as it is written: `1.50` in a question is not 1.5.
    fn texts(place: String, bytes: &[u8]) -> Result<Rows> {
        let all_texts = CsvReadOptions::default().with_infer_schema_length(Some(0));
        let frame = all_texts.into_reader_with_file_handle(Cursor::new(bytes)).finish();
        Rows::frame(&place, frame.with_context(|| format!("{place} is not a readable CSV file"))?)
    }

    fn frame(place: &str, frame: DataFrame) -> Result<Rows> {
        Ok(Rows::lines(place.to_owned(), Cow::Owned(json_lines(place, frame)?)))
    }

    /// Rows of the file, at hand or not.
    pub fn len(&self) -> usize {
        self.slice.as_ref().map_or(self.lines.len(), |(total, _)| *total)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where row `index` stands, for errors.
    pub fn place(&self, index: usize) -> String {
        match self.line(index) {
            Some(line) => format!("{}, line {}", self.place, line.number),
            None => format!("{}, row {index}", self.place),
        }
    }

    /// Row `index`, from 0.
    pub fn get(&self, index: usize) -> Result<Row> {
        let Some(line) = self.line(index) else {
            bail!("{}: not among the rows at hand; give the whole data with --data DIR", self.place(index));
        };
        parse(&self.bytes[line.start..line.end]).map_err(|error| anyhow!("{}: {error:#}", self.place(index)))
    }

    /// Numbers of the rows at hand, ascending.
    pub fn at_hand(&self) -> Vec<usize> {
        self.slice.as_ref().map_or_else(|| (0..self.lines.len()).collect(), |(_, kept)| kept.clone())
    }

    fn line(&self, index: usize) -> Option<&Line> {
        match &self.slice {
            None => self.lines.get(index),
            Some((_, kept)) => kept.binary_search(&index).ok().map(|at| &self.lines[at]),
        }
    }
}

/// A row from its line; the first of a file may begin with the mark of UTF-8.
fn parse(line: &[u8]) -> Result<Row> {
    let line = line.strip_prefix(stream::UTF8_MARK).unwrap_or(line);
    let row: serde_json::Result<Value> = serde_json::from_slice(line);
    match row.context("not JSON")? {
        Value::Object(row) => Ok(row),
        _ => bail!("a row is a JSON object"),
    }
}

fn json_lines(place: &str, mut frame: DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = JsonWriter::new(&mut bytes).with_json_format(JsonFormat::JsonLines).finish(&mut frame);
    written.with_context(|| format!("{place} holds values that rows can't"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use polars::prelude::ParquetWriter;

    use super::*;

    fn lines(text: &'static str) -> Rows {
        Rows::lines("some.jsonl".to_owned(), Cow::Borrowed(text.as_bytes()))
    }

    #[test]
    fn lines_are_rows_and_errors_name_them() {
        assert_eq!(lines("\u{feff}{\"a\": 1}\n").get(0).unwrap()["a"], 1);
        let rows = lines("{\"a\": 1}\n\n{\"a\": [\"x\", \"y\"]}\r\n[1]\n{");
        assert_eq!(rows.len(), 4);
        assert_eq!(rows.get(1).unwrap()["a"][1], "y");
        assert!(rows.get(2).unwrap_err().to_string().starts_with("some.jsonl, line 4:"));
        assert!(rows.get(3).unwrap_err().to_string().starts_with("some.jsonl, line 5:"));
    }

    #[test]
    fn parquet_with_nested_fields_gives_the_same_rows() {
        let text = "{\"choices\":{\"text\":[\"x\",\"y\"],\"label\":[\"A\",\"B\"]},\"answer\":1,\"q\":\"é\\n\"}\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.parquet");
        let reader = polars::prelude::JsonReader::new(Cursor::new(text)).with_json_format(JsonFormat::JsonLines);
        let mut frame = reader.finish().unwrap();
        ParquetWriter::new(std::fs::File::create(&path).unwrap()).finish(&mut frame).unwrap();
        let rows = Rows::find(&folder.path().join("test")).unwrap();
        assert_eq!(rows.get(0).unwrap(), lines(text).get(0).unwrap());
    }

    #[test]
    fn a_slice_keeps_the_numbers_of_the_whole() {
        let rows = lines("{\"a\": 1}\n{\"a\": 2}\n").as_slice_of(10, vec![3, 7]).unwrap();
        assert_eq!((rows.len(), &rows.get(7).unwrap()["a"]), (10, &Value::from(2)));
        assert!(rows.get(4).unwrap_err().to_string().contains("row 4: not among the rows at hand"));
        assert!(lines("{}\n").as_slice_of(10, vec![10]).is_err() && lines("{}\n").as_slice_of(10, vec![]).is_err());
    }

    #[test]
    fn csv_columns_have_types() {
        let rows = Rows::csv("t.csv".to_owned(), b"model,average\nx/y,70.34\n\"a,b\",1\n").unwrap();
        assert_eq!(rows.get(0).unwrap()["average"], 70.34);
        assert_eq!(rows.get(1).unwrap()["model"], "a,b");
    }

    #[test]
    fn a_csv_file_is_read_as_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("test.csv"), "question,answer\n1.50,007\n\"a,b\",true\n").unwrap();
        let rows = Rows::find(&folder.path().join("test")).unwrap();
        let row = |index| ["question", "answer"].map(|field| rows.get(index).unwrap()[field].clone());
        assert_eq!((row(0), row(1)), (["1.50", "007"].map(Value::from), ["a,b", "true"].map(Value::from)));
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: PathBuf| Rows::open(&path).err().unwrap().to_string();
        let broken = folder.path().join("broken.parquet");
        std::fs::write(&broken, b"PAR1 no").unwrap();
        assert!(error(broken).contains("broken.parquet"));
        assert!(error(folder.path().join("none.jsonl")).contains("none.jsonl"));
        assert!(Rows::find(&folder.path().join("test")).err().unwrap().to_string().contains("test.jsonl"));
    }
}
