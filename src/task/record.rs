//! A document as lm-evaluation-harness' samples show it: its row, and the text that its task calls the target.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde_json::Value;

use super::definition::{Clean, Definition, Prompt};
use super::document::parts;
use super::prompt::Item;
use super::source::DataSource;
use super::{Document, Task};
use crate::rows::Row;

/// What a sample says of its document, beside its requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The row, with what the harness's task adds to it.
    pub row: Row,
    /// `str(doc_to_target(doc))`: the number of the right choice, or a text.
    pub target: String,
}

impl Task {
    /// A record of each of `documents`, which came from `data`.
    pub fn records(&self, data: &DataSource, documents: &[Document]) -> Result<Vec<Record>> {
        let file = data.evaluation(&self.definition)?;
        let parts = parts(&self.definition, &file)?;
        let rows: HashMap<&str, &[usize]> = parts.iter().map(|part| (part.subtask.as_str(), &part.rows[..])).collect();
        let record = |document: &Document| {
            let rows = rows.get(document.subtask.as_str()).with_context(|| format!("no {}", document.subtask))?;
            let row = file.rows.get(*rows.get(document.row).with_context(|| format!("no row {}", document.row))?)?;
            document.item.record(&self.definition, row)
        };
        documents.iter().map(record).collect::<Result<_>>().with_context(|| format!("task {}", self.name))
    }

    /// How many documents the split has: of the task, or of each subtask.
    pub fn sizes(&self, data: &DataSource) -> Result<BTreeMap<String, usize>> {
        let file = data.evaluation(&self.definition)?;
        let parts = parts(&self.definition, &file)?;
        Ok(parts.into_iter().map(|part| (part.subtask, part.rows.len())).collect())
    }

    /// What each filter of a generating task finds in `text`: its name, and the answer or `[invalid]`.
    pub fn filtered(&self, text: &str) -> Vec<(String, String)> {
        match &self.definition.prompt {
            Prompt::Generation { generation, .. } => {
                generation.filters.iter().map(|filter| (filter.name.clone(), filter.answer_or_invalid(text))).collect()
            }
            Prompt::MultipleChoice { .. } | Prompt::MultipleTrue { .. } | Prompt::PartialContext { .. } => Vec::new(),
        }
    }

    /// Groups of subtasks that lm-eval averages too: name and members.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.definition.groups.iter().map(|group| (group.name.as_str(), &group.subtasks[..]))
    }
}

impl Item {
    fn record(&self, task: &Definition, mut row: Row) -> Result<Record> {
        let target = match self {
            Item::Choice { question, choices, gold } => {
                if let Prompt::MultipleChoice { clean: Some(Clean::Hellaswag), .. } = &task.prompt {
                    // `process_docs` of the harness's hellaswag task.
                    row.insert("query".to_owned(), Value::from(question.as_str()));
                    row.insert("choices".to_owned(), Value::from(choices.clone()));
                    row.insert("gold".to_owned(), Value::from(*gold));
                }
                gold.to_string()
            }
            // The first choice is a true one.
            Item::True { .. } => "0".to_owned(),
            Item::Partial { .. } | Item::Text { .. } => self.target()?.to_owned(),
        };
        Ok(Record { row, target })
    }
}
