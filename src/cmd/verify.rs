//! `fireval tasks verify`: every document's prompts against the hashes of a reference.
//!
//! A reference is a folder `<protocol>/<task>.tsv`, a line a document in evaluation order: subtask, row in the official
//! split, number of requests, sha256 over the requests (context, 0x1e, continuation, 0x1f). The bundled slice has its own
//! built in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::measure::{SourceFlags, count, load_task};
use super::{Exit, Workplace, output};
use crate::protocol::Protocol;
use crate::task::{DataSource, Document, bundled_hashes, known_tasks};

/// Compare the hash of every document's prompts with a reference's (exit code 1 if one differs).
#[derive(clap::Args)]
pub struct Args {
    /// The folder of the reference, PROTOCOL/TASK.tsv [default: reference/prompts beside the data folder; for the
    /// bundled slice its own, built in].
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
    /// Compare only the first documents of each task and MMLU subject.
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<usize>,
}

/// A line of a reference file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expected {
    subtask: String,
    row: usize,
    requests: usize,
    sha256: String,
}

/// Where expected hashes are read.
enum Reference {
    Folder(PathBuf),
    /// Of the bundled slice.
    BuiltIn,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let data = args.source.data(place);
    let reference = Reference::of(args.reference.clone(), &data)?;
    let protocols = match args.source.protocol {
        Some(protocol) => vec![protocol],
        None => vec![Protocol::LeaderboardV1, Protocol::LmEvalLatest],
    };
    let mut all_equal = true;
    for protocol in protocols {
        let (mut equal, mut different) = (0, 0);
        for name in known_tasks() {
            let (same, wrong) = verify(place, &name, protocol, &data, &reference, args.limit)?;
            equal += same;
            different += wrong;
        }
        output::print(&format!("{}: {equal} documents equal, {different} different\n", protocol.name()))?;
        all_equal &= different == 0;
    }
    Ok(if all_equal { Exit::Done } else { Exit::Differs })
}

/// How many of a task's documents are equal and how many are not; prints a line on it, and the first that differ.
fn verify(
    place: &Workplace,
    name: &str,
    protocol: Protocol,
    data: &DataSource,
    reference: &Reference,
    limit: Option<usize>,
) -> Result<(usize, usize)> {
    let documents = load_task(place, name)?.documents(protocol, data, limit, None)?;
    let mut expected = reference.lines(protocol, name)?;
    if let Some(limit) = limit {
        expected = first_of_each(expected, limit);
    }
    let wrong = differences(&documents, &expected);
    let verdict = if wrong.is_empty() { "equal" } else { "DIFFERENT" };
    output::print(&format!(
        "{name:<14} {:>6} documents, {} in the reference: {verdict}\n",
        documents.len(),
        expected.len()
    ))?;
    for line in wrong.iter().take(5) {
        output::print(&format!("  {line}\n"))?;
    }
    Ok((documents.len().saturating_sub(wrong.len()), wrong.len()))
}

impl Reference {
    fn of(asked: Option<PathBuf>, data: &DataSource) -> Result<Reference> {
        match (asked, data) {
            (Some(folder), _) => Ok(Reference::Folder(folder)),
            (None, DataSource::Bundled) => Ok(Reference::BuiltIn),
            (None, DataSource::Folder(data)) => {
                let beside = data.join("..").join("reference").join("prompts");
                ensure!(beside.is_dir(), "there is no {}: name the reference with --reference DIR", beside.display());
                Ok(Reference::Folder(beside))
            }
            (None, DataSource::Hub) => {
                bail!("name the reference that the hub's data are held against: --reference DIR")
            }
        }
    }

    fn lines(&self, protocol: Protocol, task: &str) -> Result<Vec<Expected>> {
        let file = format!("{}/{}.tsv", protocol.name(), reference_name(protocol, task));
        match self {
            Reference::Folder(folder) => {
                let path = folder.join(&file);
                let text = std::fs::read_to_string(&path);
                parse(&text.with_context(|| format!("can't read the reference {}", path.display()))?, &path)
            }
            Reference::BuiltIn => match bundled_hashes(&file) {
                Some(text) => parse(text, Path::new(&file)),
                None => bail!("no hashes of {file} are built in: name a reference with --reference DIR"),
            },
        }
    }
}

/// TruthfulQA goes by the harness's names; the group `openllm` has no files of its own and is not verified.
fn reference_name(protocol: Protocol, task: &str) -> &str {
    match (task, protocol) {
        ("truthfulqa", Protocol::LeaderboardV1) => "truthfulqa_mc",
        ("truthfulqa", Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) => "truthfulqa_mc2",
        (other, _) => other,
    }
}

fn parse(text: &str, path: &Path) -> Result<Vec<Expected>> {
    let lines = text.lines().enumerate().map(|(index, line)| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [subtask, row, requests, sha256] = fields[..] else {
            bail!("{}, line {}: four fields with tabs between", path.display(), index + 1);
        };
        let number = |text: &str| {
            text.parse().with_context(|| format!("{}, line {}: {text:?} is no number", path.display(), index + 1))
        };
        let subtask = subtask.trim_start_matches("hendrycksTest-").trim_start_matches("mmlu_");
        Ok(Expected {
            subtask: subtask.to_owned(),
            row: number(row)?,
            requests: number(requests)?,
            sha256: sha256.to_owned(),
        })
    });
    lines.collect()
}

fn first_of_each(expected: Vec<Expected>, limit: usize) -> Vec<Expected> {
    let mut counts = std::collections::HashMap::new();
    let mut keep = |line: &Expected| {
        let count: &mut usize = counts.entry(line.subtask.clone()).or_default();
        *count += 1;
        *count <= limit
    };
    expected.into_iter().filter(|line| keep(line)).collect()
}

/// What differs, in words; documents are compared place by place. Where a task has one part its name does not count, since
/// harness and fireval call it differently.
fn differences(documents: &[Document], expected: &[Expected]) -> Vec<String> {
    let parts: std::collections::BTreeSet<&str> = expected.iter().map(|line| line.subtask.as_str()).collect();
    let mut wrong = Vec::new();
    for index in 0..documents.len().max(expected.len()) {
        match (documents.get(index), expected.get(index)) {
            (Some(document), Some(line)) => {
                let alike = document.row == line.row
                    && document.requests.len() == line.requests
                    && document.digest == line.sha256
                    && (parts.len() == 1 || document.subtask == line.subtask);
                if !alike {
                    let (subtask, row) = (&line.subtask, line.row);
                    wrong.push(format!(
                        "place {index}: {subtask} document {row} expected, {} {} asked otherwise",
                        document.subtask, document.row
                    ));
                }
            }
            (Some(document), None) => {
                wrong.push(format!("{} document {} is not in the reference", document.subtask, document.row))
            }
            (None, Some(line)) => wrong.push(format!("{} document {} is missing", line.subtask, line.row)),
            (None, None) => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_and_its_faults_are_named() {
        let read = |text: &str| parse(text, Path::new("mmlu.tsv"));
        let lines = read("hendrycksTest-astronomy\t3\t4\tab\nhendrycksTest-astronomy\t5\t4\tcd\n").unwrap();
        assert_eq!(
            lines[0],
            Expected { subtask: "astronomy".to_owned(), row: 3, requests: 4, sha256: "ab".to_owned() }
        );
        assert_eq!(first_of_each(lines, 1).len(), 1);
        assert!(read("x\t3\n").unwrap_err().to_string().contains("mmlu.tsv, line 1"));
        assert!(read("x\ty\t4\tab\n").unwrap_err().to_string().contains("\"y\""));
        let nowhere = DataSource::Folder(PathBuf::from("no/such/data"));
        assert!(Reference::of(None, &nowhere).err().unwrap().to_string().contains("--reference"));
        assert!(Reference::BuiltIn.lines(Protocol::LmEvalLatest, "truthfulqa").unwrap().len() == 40);
    }
}
