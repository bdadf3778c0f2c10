//! `fireval tasks verify`: every document's prompts against the hashes of a reference.
//!
//! A reference is a folder `<protocol>/<task>.tsv`, a line a document in evaluation order: subtask, row in the official
//! split, number of requests, sha256 over the requests (context, 0x1e, continuation, 0x1f).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::measure::{SourceFlags, count, load_task};
use super::{Verdict, Workplace, output};
use crate::protocol::Protocol;
use crate::task::{Document, known_tasks};

/// Compare the hash of every document's prompts with a reference's (exit code 1 if one differs).
#[derive(clap::Args)]
pub struct Args {
    /// The folder of the reference: PROTOCOL/TASK.tsv.
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
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

pub fn run(place: &Workplace, args: Args) -> Result<Verdict> {
    let protocol = args.source.protocol(place);
    let (mut equal, mut different) = (0, 0);
    for name in known_tasks() {
        let task = load_task(place, &name)?;
        let documents = task.documents(protocol, &args.source.data(place), args.limit, None)?;
        let mut expected = read(&reference_file(&args.reference, protocol, &name))?;
        if let Some(limit) = args.limit {
            expected = first_of_each(expected, limit);
        }
        let wrong = differences(&documents, &expected);
        equal += documents.len().saturating_sub(wrong.len());
        different += wrong.len();
        let verdict = if wrong.is_empty() { "equal" } else { "DIFFERENT" };
        output::print(&format!(
            "{name:<14} {:>6} documents, {} in the reference: {verdict}\n",
            documents.len(),
            expected.len()
        ))?;
        for line in wrong.iter().take(5) {
            output::print(&format!("  {line}\n"))?;
        }
    }
    output::print(&format!("{}: {equal} documents equal, {different} different\n", protocol.name()))?;
    Ok(if different == 0 { Verdict::Done } else { Verdict::Differs })
}

/// TruthfulQA goes by the harness's names; the group `openllm` has no files of its own and is not verified.
fn reference_file(folder: &Path, protocol: Protocol, task: &str) -> PathBuf {
    let name = match (task, protocol) {
        ("truthfulqa", Protocol::LeaderboardV1) => "truthfulqa_mc",
        ("truthfulqa", Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) => "truthfulqa_mc2",
        (other, _) => other,
    };
    folder.join(protocol.name()).join(format!("{name}.tsv"))
}

fn read(path: &Path) -> Result<Vec<Expected>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read the reference {}", path.display()))?;
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.tsv");
        std::fs::write(&path, "hendrycksTest-astronomy\t3\t4\tab\nhendrycksTest-astronomy\t5\t4\tcd\n").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(
            lines[0],
            Expected { subtask: "astronomy".to_owned(), row: 3, requests: 4, sha256: "ab".to_owned() }
        );
        assert_eq!(first_of_each(lines, 1).len(), 1);
        std::fs::write(&path, "x\t3\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("mmlu.tsv, line 1"));
        std::fs::write(&path, "x\ty\t4\tab\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("\"y\""));
        assert!(read(&folder.path().join("none.tsv")).unwrap_err().to_string().contains("none.tsv"));
    }
}
