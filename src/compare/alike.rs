//! Which runs answer the same questions. Unlike ones are refused with the reason: protocol, task file, chat template,
//! documents, and, by the digest of the requests, rows and few-shot draws.

use anyhow::{Result, bail, ensure};

use super::{Column, Contender, Outcome};
use crate::eval::Run;
use crate::protocol::Protocol;
use crate::score::DocScore;
use crate::task::{Task, known_tasks};

/// Whose questions a task's file asks. Published rows answered those of the built-in files, and the noise of 16-bit types is
/// known of these alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFile {
    BuiltIn,
    /// Another file under the name of a built-in task.
    Changed,
    /// Of a task of one's own.
    Own,
}

impl TaskFile {
    pub fn of(task: &Task) -> TaskFile {
        let name = task.name().split('/').next().unwrap_or_default();
        if !known_tasks().iter().any(|known| known == name) {
            return TaskFile::Own;
        }
        let is_built_in = Task::load(name, None).is_ok_and(|built_in| built_in.digest() == task.digest());
        if is_built_in { TaskFile::BuiltIn } else { TaskFile::Changed }
    }
}

/// Refuses what can't be compared, with the reason. `columns` are the runs' tasks.
pub fn check(protocol: Protocol, columns: &[Column], contenders: &[Contender]) -> Result<()> {
    let measured: Vec<(&str, &[Run])> = contenders
        .iter()
        .filter_map(|contender| match &contender.outcome {
            Outcome::Measured(runs) => Some((contender.model.as_str(), &runs[..])),
            Outcome::Published(_) => None,
        })
        .collect();
    for (model, runs) in &measured {
        for (run, column) in runs.iter().zip(columns) {
            let (manifest, name) = (&run.manifest, &run.manifest.task);
            ensure!(manifest.protocol == protocol, "{model}, {name}: measured by {}", manifest.protocol.name());
            let published = measured.len() < contenders.len();
            ensure!(
                !published || (protocol == Protocol::LeaderboardV1 && !manifest.chat_template),
                "{model} was measured by {}{}, published rows by {} without one: these are not the same questions",
                protocol.name(),
                if manifest.chat_template { " with a chat template" } else { "" },
                Protocol::LeaderboardV1.name(),
            );
            ensure!(
                !published || column.file != TaskFile::Changed,
                "{model}, {name}: its task file is not the built-in one, whose questions published rows answered; leave the task \
                 out with --tasks, or give it another `name`"
            );
        }
    }
    if let Some(((first, runs), others)) = measured.split_first() {
        for (other, other_runs) in others {
            runs.iter().zip(*other_runs).try_for_each(|(a, b)| check_pair((first, a), (other, b)))?;
        }
    }
    Ok(())
}

/// Refuses two runs, with their models' names, that did not answer the same questions.
pub fn check_pair((first, a): (&str, &Run), (other, b): (&str, &Run)) -> Result<()> {
    match unlike(a, b) {
        Some(reason) => bail!("{first} and {other} can't be compared on {}: {reason}", a.manifest.task),
        None => Ok(()),
    }
}

/// Why two runs do not answer the same questions.
fn unlike(a: &Run, b: &Run) -> Option<String> {
    let (left, right) = (&a.manifest, &b.manifest);
    if left.task != right.task {
        return Some(format!("the other run is of {}", right.task));
    }
    if left.protocol != right.protocol {
        return Some(format!("asked by {} and by {}", left.protocol.name(), right.protocol.name()));
    }
    if left.definition != right.definition {
        return Some("the task's file changed between the runs".to_owned());
    }
    if left.chat_template != right.chat_template {
        return Some("one run used a chat template".to_owned());
    }
    if a.scores.len() != b.scores.len() {
        return Some(format!("{} documents against {}", a.scores.len(), b.scores.len()));
    }
    // Under a chat template each model sees the same document in its own words.
    let same = |(a, b): (&DocScore, &DocScore)| {
        a.subtask == b.subtask && a.doc == b.doc && (left.chat_template || a.digest == b.digest)
    };
    let differs = a.scores.iter().zip(&b.scores).find(|pair| !same(*pair));
    differs.map(|(a, _)| format!("{} document {} was not asked alike (other rows or other examples)", a.subtask, a.doc))
}
