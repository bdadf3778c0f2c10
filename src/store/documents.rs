//! The scored documents of one model and task: a line each, appended as they finish.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Shelf;
use crate::disk::{self, AppendLog};
use crate::request::{Request, Response};
use crate::score::{DocScore, RequestScore};

/// How many digits of a task definition's digest a line carries.
const DEFINITION_DIGITS: usize = 16;

/// A line of the log: a [`DocScore`] and the definition it was scored under.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    task: String,
    definition: String,
    subtask: String,
    doc: usize,
    digest: String,
    requests: Vec<RequestScore>,
    output: Option<String>,
    metrics: BTreeMap<String, f64>,
}

/// What a stored document is known by, within its shelf.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DocumentKey {
    /// Digest of the task's definition.
    pub definition: String,
    pub subtask: String,
    pub row: usize,
    /// Digest of the document's requests.
    pub digest: String,
}

/// A shelf's documents, read once; opened for writing when the first is added.
pub struct Documents {
    shelf: Shelf,
    known: HashMap<DocumentKey, DocScore>,
    log: Option<AppendLog>,
}

impl DocumentKey {
    pub fn new(definition: &str, subtask: &str, row: usize, digest: &str) -> DocumentKey {
        let definition = definition.chars().take(DEFINITION_DIGITS).collect();
        DocumentKey { definition, subtask: subtask.to_owned(), row, digest: digest.to_owned() }
    }
}

impl Documents {
    /// Reads what the shelf holds, without locking it.
    pub fn open(shelf: &Shelf) -> Result<Documents> {
        let mut documents = Documents { shelf: shelf.clone(), known: HashMap::new(), log: None };
        documents.read(&disk::read_log(&shelf.log_path())?)?;
        Ok(documents)
    }

    /// Locks the shelf for writing and reads what came since. To be called before work that ends in `add`, so that two
    /// processes do not do the same work.
    pub fn lock(&mut self) -> Result<()> {
        if self.log.is_none() {
            let (log, lines) = AppendLog::open(&self.shelf.log_path())?;
            self.read(&lines)?;
            self.log = Some(log);
        }
        Ok(())
    }

    fn read(&mut self, lines: &[String]) -> Result<()> {
        for (index, text) in lines.iter().enumerate() {
            let line: Line = serde_json::from_str(text).with_context(|| {
                let place = self.shelf.log_path();
                format!("{}, document {}: written by another version of fireval?", place.display(), index + 1)
            })?;
            let (key, score) = line.parts();
            self.known.insert(key, score);
        }
        Ok(())
    }

    pub fn get(&self, key: &DocumentKey) -> Option<&DocScore> {
        self.known.get(key)
    }

    /// Appends a document; it is on its way to the disk when this returns.
    pub fn add(&mut self, definition: &str, score: DocScore) -> Result<()> {
        self.lock()?;
        let line = Line::of(definition, score);
        let text = serde_json::to_string(&line).context("a score that JSON can't hold")?;
        self.log.as_mut().expect("locking opened the log").append(&text)?;
        let (key, score) = line.parts();
        self.known.insert(key, score);
        Ok(())
    }

    /// Returns once everything is on the disk, and lets others write.
    pub fn close(&mut self) -> Result<()> {
        match self.log.take() {
            Some(mut log) => log.sync(),
            None => Ok(()),
        }
    }
}

impl Line {
    fn of(definition: &str, score: DocScore) -> Line {
        let DocScore { task, subtask, doc, digest, requests, output, metrics } = score;
        let definition = definition.chars().take(DEFINITION_DIGITS).collect();
        Line { task, definition, subtask, doc, digest, requests, output, metrics }
    }

    pub(super) fn parts(self) -> (DocumentKey, DocScore) {
        let Line { task, definition, subtask, doc, digest, requests, output, metrics } = self;
        let key = DocumentKey { definition, subtask: subtask.clone(), row: doc, digest: digest.clone() };
        (key, DocScore { task, subtask, doc, digest, requests, output, metrics })
    }
}

/// The responses that a stored document holds, as an engine would give them; `None` if they do not fit `requests`.
/// (Of generated text only what was kept: the cut text, not its tokens.)
pub fn responses(score: &DocScore, requests: &[Request]) -> Option<Vec<Response>> {
    if let [Request::Generate { .. }] = requests {
        let text = score.output.clone()?;
        return Some(vec![Response::Generate { text, tokens: Vec::new() }]);
    }
    (score.requests.len() == requests.len()).then(|| {
        let response = |request: &RequestScore| Response::LogLikelihood {
            sum: request.ll,
            tokens: request.cont_ids.clone(),
            is_greedy: request.is_greedy,
        };
        score.requests.iter().map(response).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shelf(folder: &Path) -> Shelf {
        Shelf { folder: folder.to_owned(), task: "arc".to_owned() }
    }

    fn score(doc: usize, digest: &str) -> DocScore {
        DocScore {
            task: "arc".to_owned(),
            subtask: "arc".to_owned(),
            doc,
            digest: digest.to_owned(),
            requests: vec![RequestScore { ll: -1.0 / 3.0, is_greedy: true, cont_ids: vec![7, 8] }],
            output: None,
            metrics: BTreeMap::from([("acc".to_owned(), 1.0)]),
        }
    }

    #[test]
    fn documents_are_found_by_their_whole_key() {
        let folder = tempfile::tempdir().unwrap();
        let mut documents = Documents::open(&shelf(folder.path())).unwrap();
        documents.add("d1", score(0, "x")).unwrap();
        documents.close().unwrap();
        let again = Documents::open(&shelf(folder.path())).unwrap();
        assert_eq!(again.get(&DocumentKey::new("d1", "arc", 0, "x")), Some(&score(0, "x")));
        for other in [
            DocumentKey::new("d2", "arc", 0, "x"),
            DocumentKey::new("d1", "other", 0, "x"),
            DocumentKey::new("d1", "arc", 1, "x"),
            DocumentKey::new("d1", "arc", 0, "y"),
        ] {
            assert_eq!(again.get(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_second_writer_is_refused_and_a_reader_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Documents::open(&shelf(folder.path())).unwrap();
        first.add("d", score(0, "x")).unwrap();
        let mut second = Documents::open(&shelf(folder.path())).unwrap();
        assert!(second.get(&DocumentKey::new("d", "arc", 0, "x")).is_some());
        assert!(second.add("d", score(1, "y")).is_err());
    }

    #[test]
    fn a_line_of_another_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = shelf(folder.path()).log_path();
        AppendLog::open(&path).unwrap().0.append("{\"task\":\"arc\"}").unwrap();
        let error = format!("{:#}", Documents::open(&shelf(folder.path())).err().unwrap());
        assert!(error.contains("arc.jsonl, document 1") && error.contains("version"), "{error}");
    }

    #[test]
    fn stored_answers_are_answers_again() {
        let ask = Request::LogLikelihood { context: "a".into(), continuation: " b".to_owned() };
        let expected = Response::LogLikelihood { sum: -1.0 / 3.0, tokens: vec![7, 8], is_greedy: true };
        assert_eq!(responses(&score(0, "x"), std::slice::from_ref(&ask)), Some(vec![expected]));
        assert_eq!(responses(&score(0, "x"), &[ask.clone(), ask]), None);
        let generate = Request::Generate { context: "a".into(), stop: Vec::new(), max_tokens: 1 };
        assert_eq!(responses(&score(0, "x"), &[generate]), None);
    }
}
