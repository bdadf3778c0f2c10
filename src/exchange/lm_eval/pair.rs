//! Recorded answers beside the documents that our own tasks ask: the same rows, asked in the same words, counted alike, or
//! an error that names the line.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::answers::Answered;
use super::read::{Recorded, RecordedLeaf};
use crate::eval::{Conditions, TaskDocuments};
use crate::request::{Request, Response};
use crate::task::{DataSource, Document, Task};

/// How far the harness's metrics and ours may lie apart by rounding.
const ROUNDING: f64 = 1e-9;

/// A task's documents with their recorded answers.
pub struct Paired<'a> {
    pub questions: TaskDocuments,
    pub conditions: Conditions,
    leaves: Vec<&'a RecordedLeaf>,
}

impl Recorded {
    /// The recorded tasks with the documents of `data` that they hold answers to; each answer is checked. Of the bundled
    /// slice these are fewer than were recorded.
    pub fn pair(&self, data: &DataSource) -> Result<Vec<Paired<'_>>> {
        let mut tasks: BTreeMap<&str, Vec<&RecordedLeaf>> = BTreeMap::new();
        for leaf in &self.leaves {
            tasks.entry(leaf.known.task).or_default().push(leaf);
        }
        let mut paired = Vec::new();
        for (name, leaves) in tasks {
            let subtasks = Task::load(name, None)?.sizes(data)?;
            let is_whole = subtasks.keys().all(|subtask| leaves.iter().any(|leaf| leaf.subtask == *subtask));
            if is_whole {
                paired.push(self.paired(name, leaves, data)?);
            } else {
                for leaf in leaves.into_iter().filter(|leaf| subtasks.contains_key(&leaf.subtask)) {
                    paired.push(self.paired(&format!("{name}/{}", leaf.subtask), vec![leaf], data)?);
                }
            }
        }
        ensure!(!paired.is_empty(), "the data at hand ({}) have none of the recorded documents", data.describe());
        Ok(paired)
    }

    fn paired<'a>(&self, task: &str, leaves: Vec<&'a RecordedLeaf>, data: &DataSource) -> Result<Paired<'a>> {
        let task = Task::load(task, None)?;
        let limit = limit(&leaves)?;
        let conditions = Conditions { protocol: self.protocol, data: data.clone(), limit, chat_template: false };
        let documents = task.documents(self.protocol, data, limit, None)?;
        let paired = Paired { questions: TaskDocuments { task, documents }, conditions, leaves };
        paired.questions.documents.iter().try_for_each(|document| paired.check(document))?;
        Ok(paired)
    }
}

/// The limit that asks as many documents of each task as were asked; none for all.
fn limit(leaves: &[&RecordedLeaf]) -> Result<Option<usize>> {
    if leaves.iter().all(|leaf| leaf.effective == leaf.original) {
        return Ok(None);
    }
    let limit = leaves.iter().map(|leaf| leaf.effective).max().unwrap_or_default();
    let uneven = leaves.iter().find(|leaf| leaf.effective != limit.min(leaf.original));
    match uneven {
        None => Ok(Some(limit)),
        Some(leaf) => Err(anyhow::anyhow!(
            "`n-samples.{}.effective` is {}, of another task {limit}: no one limit asks so many (a fraction given to lm_eval's \
             --limit?); run it with a whole number",
            leaf.name,
            leaf.effective
        )),
    }
}

impl Paired<'_> {
    /// What was answered to `document`, one of the questions.
    pub fn responses(&self, document: &Document) -> Result<Vec<Response>> {
        Ok(self.answered(document)?.1.responses.clone())
    }

    fn answered(&self, document: &Document) -> Result<(&RecordedLeaf, &Answered)> {
        let leaf = self.leaves.iter().find(|leaf| leaf.subtask == document.subtask);
        let leaf = leaf.with_context(|| format!("no samples of {}", document.subtask))?;
        let answered = leaf.answers.of(document.row);
        let path = &leaf.answers.path;
        let answered = answered.with_context(|| {
            format!("{}: no document {}, which the data at hand have: other rows?", path.display(), document.row)
        })?;
        Ok((leaf, answered))
    }

    /// Refuses another question, and an answer that counts otherwise here than in the file.
    fn check(&self, document: &Document) -> Result<()> {
        let (leaf, answered) = self.answered(document)?;
        let place = || leaf.answers.place(answered.line);
        ensure!(
            answered.digest == document.digest,
            "{}: `arguments` are not what {} asks of row {} of {}: other examples (other seeds? lm_eval's group openllm, or not: \
             see --protocol), other rows than those at hand, or another prompt",
            place(),
            self.conditions.protocol.name(),
            document.row,
            leaf.name
        );
        if let [Request::Generate { stop, max_tokens, .. }] = &document.requests[..] {
            ensure!(
                answered.ending == Some((stop.clone(), *max_tokens)),
                "{}: `arguments.gen_args_0.arg_1`: other stop strings or another length than {}'s; run lm_eval without \
                 --gen_kwargs",
                place(),
                self.conditions.protocol.name()
            );
        }
        let task = &self.questions.task;
        let counted = task.score(self.conditions.protocol, document, &answered.responses).with_context(place)?;
        for metric in leaf.known.metrics {
            let (ours, theirs) = (counted.metrics.get(*metric), answered.metrics.get(*metric));
            let (ours, theirs) = ours.zip(theirs).with_context(|| format!("{}: no `{metric}`", place()))?;
            ensure!(
                (ours - theirs).abs() <= ROUNDING,
                "{}: `{metric}` is {theirs}, and its answers count {ours}: a changed file, or another version of the task",
                place()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::known::KNOWN;
    use crate::exchange::lm_eval::answers::Answers;

    fn leaf(original: usize, effective: usize) -> RecordedLeaf {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("none.jsonl"), "").unwrap();
        let answers = Answers::read(&folder.path().join("none.jsonl")).unwrap();
        let (name, subtask) = ("mmlu_x".to_owned(), "x".to_owned());
        RecordedLeaf { name, known: &KNOWN[2], subtask, original, effective, answers }
    }

    #[test]
    fn one_limit_asks_what_was_asked() {
        let of = |counts: &[(usize, usize)]| {
            let leaves: Vec<RecordedLeaf> =
                counts.iter().map(|&(original, effective)| leaf(original, effective)).collect();
            limit(&leaves.iter().collect::<Vec<_>>())
        };
        assert_eq!(of(&[(100, 100), (270, 270)]).unwrap(), None);
        assert_eq!(of(&[(100, 100), (270, 150)]).unwrap(), Some(150), "150 are more than the first has");
        assert_eq!(of(&[(100, 2), (270, 2)]).unwrap(), Some(2));
        // A tenth of each.
        let error = of(&[(100, 10), (270, 27)]).unwrap_err().to_string();
        assert!(error.contains("n-samples.mmlu_x.effective` is 10") && error.contains("whole number"), "{error}");
    }
}
