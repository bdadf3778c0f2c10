//! A table of published rows: CSV with a head, whose columns may stand in any order among others. What is wrong in it is
//! said with its line [csv-core].

use anyhow::{Context, Result, bail, ensure};
use csv_core::{ReadRecordResult, Reader};

use super::{COLUMNS, PRECISIONS, Precision, Published};
use crate::settings;

/// More columns than a table of scores has.
const MOST_COLUMNS: usize = 1024;

/// Places of the columns in a line.
struct Columns {
    model: usize,
    precision: usize,
    average: usize,
    scores: [usize; 6],
    /// Not every table says it.
    billions: Option<usize>,
}

/// The cells of a line, or of several where a cell holds line ends; `line` is the first.
struct Record {
    line: u64,
    cells: Vec<String>,
}

/// The rows of `text`; `place` is what errors call it.
pub fn read(text: &[u8], place: &str) -> Result<Vec<Published>> {
    let mut records = records(text).with_context(|| place.to_owned())?.into_iter();
    let head = records.next().with_context(|| format!("{place} is empty"))?;
    let columns = columns(&head.cells).with_context(|| format!("{place}, line {}", head.line))?;
    let mut rows = Vec::new();
    for record in records {
        let (line, len) = (record.line, record.cells.len());
        ensure!(len == head.cells.len(), "{place}, line {line}: {len} cells, but the head has {}", head.cells.len());
        rows.push(row(&columns, &record).with_context(|| format!("{place}, line {line}"))?);
    }
    ensure!(!rows.is_empty(), "{place} has a head and no rows");
    Ok(rows)
}

/// Every record; blank lines are none.
fn records(text: &[u8]) -> Result<Vec<Record>> {
    let mut reader = Reader::new();
    let mut records = Vec::new();
    let (mut cells, mut ends) = (vec![0; text.len()], [0; MOST_COLUMNS]);
    let (mut at, mut filled, mut ended, mut start, mut line) = (0, 0, 0, 0, 1);
    loop {
        if filled == 0 && ended == 0 {
            let before = start;
            start = at + text[at..].iter().take_while(|byte| b"\r\n".contains(byte)).count();
            line += text[before..start].iter().filter(|&&byte| byte == b'\n').count() as u64;
        }
        let (result, read, wrote, fields) = reader.read_record(&text[at..], &mut cells[filled..], &mut ends[ended..]);
        (at, filled, ended) = (at + read, filled + wrote, ended + fields);
        match result {
            // Asked once more without input, the reader ends what it holds.
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                bail!("line {line}: more than {MOST_COLUMNS} columns")
            }
            ReadRecordResult::Record => {
                let starts = [0].into_iter().chain(ends[..ended].iter().copied());
                let cell = |(from, to): (usize, &usize)| Ok(std::str::from_utf8(&cells[from..*to])?.to_owned());
                let read: Result<Vec<String>> = starts.zip(&ends[..ended]).map(cell).collect();
                records.push(Record { line, cells: read.with_context(|| format!("line {line} is not UTF-8"))? });
                (filled, ended) = (0, 0);
            }
            ReadRecordResult::End => return Ok(records),
        }
    }
}

fn columns(head: &[String]) -> Result<Columns> {
    let place = |column: &str| {
        head.iter().position(|title| title == column).with_context(|| {
            let near = settings::closest(column, head.iter().map(String::as_str));
            let hint = near.map(|near| format!("; is it `{near}`?")).unwrap_or_default();
            format!("there is no column `{column}`{hint}")
        })
    };
    let mut scores = [0; 6];
    for (score, (_, column)) in scores.iter_mut().zip(COLUMNS) {
        *score = place(column)?;
    }
    let billions = head.iter().position(|title| title == "params_b");
    Ok(Columns { billions, model: place("model")?, precision: place("precision")?, average: place("average")?, scores })
}

fn row(columns: &Columns, Record { line, cells }: &Record) -> Result<Published> {
    let number = |place: usize, column: &str| percent(&cells[place]).with_context(|| format!("`{column}`"));
    let mut scores = [0.0; 6];
    for ((score, place), (_, column)) in scores.iter_mut().zip(columns.scores).zip(COLUMNS) {
        *score = number(place, column)?;
    }
    let (model, precision) = (cells[columns.model].clone(), cells[columns.precision].as_str());
    ensure!(!model.is_empty(), "`model` is empty");
    let precision = Precision::parse(precision).with_context(|| {
        format!("unknown `precision` {precision:?} (known are {})", PRECISIONS.map(Precision::name).join(", "))
    })?;
    // Zero, or nothing, is what the leaderboard wrote where it did not know.
    let billions =
        columns.billions.and_then(|place| cells[place].parse().ok()).filter(|&billions: &f64| billions > 0.0);
    Ok(Published { billions, line: *line, model, precision, average: number(columns.average, "average")?, scores })
}

/// A percentage as the leaderboard published it.
fn percent(text: &str) -> Result<f64> {
    let decimals = text.split_once('.').map_or("", |(_, decimals)| decimals);
    let plain = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number = text.parse::<f64>().ok().filter(|number| plain && (0.0..=100.0).contains(number));
    let number = number.with_context(|| format!("{text:?} is not a percentage from 0 to 100"))?;
    ensure!(decimals.len() <= 2, "{text} has more than the two decimals of a published score");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "date,model,average,arc,hellaswag,mmlu,truthfulqa,winogrande,gsm8k,precision\n";

    fn error(text: &str) -> String {
        format!("{:#}", read(text.as_bytes(), "rows.csv").unwrap_err())
    }

    #[test]
    fn columns_stand_in_any_order() {
        let rows = read(
            format!("\u{feff}{HEAD}2024,\"a,\nb\",68.42,66.04,86.49,71.82,46.78,81.93,57.47,4bit\n").as_bytes(),
            "x",
        );
        let row = &rows.unwrap()[0];
        assert_eq!((row.model.as_str(), row.precision, row.average), ("a,\nb", Precision::FourBit, 68.42));
        assert_eq!((row.line, row.score("gsm8k"), row.score("arc_challenge")), (2, Some(57.47), Some(66.04)));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let line = |cells: &str| error(&format!("{HEAD}d,\"a\nb\",1,1,1,1,1,1,1,4bit\n{cells}\n"));
        assert_eq!(line("d,m,1,1,1"), "rows.csv, line 4: 5 cells, but the head has 10");
        assert_eq!(line("d,m,1,x,1,1,1,1,1,4bit"), "rows.csv, line 4: `arc`: \"x\" is not a percentage from 0 to 100");
        assert!(line("d,m,1,1,1,1,1,1,101,4bit").contains("`gsm8k`: \"101\" is not a percentage"));
        assert!(line("d,m,1,1,1,1,1,1,1e1,4bit").contains("\"1e1\" is not a percentage"));
        assert!(line("d,m,1,,1,1,1,1,1,4bit").contains("`arc`: \"\" is not a percentage"));
        assert!(line("d,m,66.041,1,1,1,1,1,1,4bit").contains("`average`: 66.041 has more than the two decimals"));
        assert!(line("d,m,1,1,1,1,1,1,1,int3").contains("unknown `precision` \"int3\" (known are bfloat16, "));
        assert!(line("d,,1,1,1,1,1,1,1,4bit").contains("`model` is empty"));
        assert_eq!(error(&HEAD.replace("arc", "ark")), "rows.csv, line 1: there is no column `arc`; is it `ark`?");
        assert_eq!(error(HEAD), "rows.csv has a head and no rows");
        assert_eq!(error("\n"), "rows.csv is empty");
        let latin = [HEAD.as_bytes(), b"d,\xe9,1,1,1,1,1,1,1,4bit\n"].concat();
        assert_eq!(
            format!("{:#}", read(&latin, "rows.csv").unwrap_err()),
            "rows.csv: line 2 is not UTF-8: incomplete utf-8 byte sequence from index 0"
        );
        assert!(error(&",".repeat(2000)).contains("line 1: more than 1024 columns"));
    }
}
