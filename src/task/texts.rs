//! The texts of a task's documents by themselves, without prompt, examples or labels: what training data must not hold.

use anyhow::{Context, Result};

use super::definition::{ChoiceList, Clean, Definition, Prompt, Truths};
use super::document::parts;
use super::prompt::clean_hellaswag;
use super::source::DataSource;
use crate::python;
use crate::rows::Row;

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentText {
    /// The MMLU subject; the task's own name elsewhere.
    pub subtask: String,
    /// Row in the official split (of the subtask), from 0.
    pub row: usize,
    /// What is asked, field by field.
    pub questions: Vec<String>,
    /// Choices or worked answers, right and wrong ones.
    pub answers: Vec<String>,
}

/// The texts of all rows at hand; `subject` keeps one subtask.
pub fn texts(task: &Definition, subject: Option<&str>, data: &DataSource) -> Result<Vec<DocumentText>> {
    let file = data.evaluation(task)?;
    let at_hand = file.rows.at_hand();
    let mut texts = Vec::new();
    for part in parts(task, &file)?.iter().filter(|part| subject.is_none_or(|subject| part.subtask == subject)) {
        for (row, &index) in part.rows.iter().enumerate() {
            if at_hand.binary_search(&index).is_err() {
                continue;
            }
            let (questions, answers) =
                task.prompt.texts(&file.rows.get(index)?).with_context(|| file.rows.place(index))?;
            texts.push(DocumentText { subtask: part.subtask.clone(), row, questions, answers });
        }
    }
    Ok(texts)
}

impl Prompt {
    /// Questions and answers.
    fn texts(&self, row: &Row) -> Result<(Vec<String>, Vec<String>)> {
        Ok(match self {
            Prompt::MultipleChoice { text, clean, choices, gold: _ } => {
                let answers = match choices {
                    ChoiceList::Fixed(_) => Vec::new(),
                    ChoiceList::Field(field) => field.texts(row)?,
                };
                let cleaned = |texts: Vec<String>| texts.into_iter().map(|text| cleaned(text, *clean)).collect();
                (cleaned(text.places(row)?), cleaned(answers))
            }
            Prompt::MultipleTrue { text, single: Truths { choices: single, .. }, several } => {
                (text.places(row)?, [single.texts(row)?, several.choices.texts(row)?].concat())
            }
            Prompt::PartialContext { sentence, options, gold: _ } => {
                let sentence = sentence.text(row)?;
                let filled = |option: &super::template::Field| Ok(sentence.replacen('_', &option.text(row)?, 1));
                (options.iter().map(filled).collect::<Result<_>>()?, Vec::new())
            }
            Prompt::Generation { text, target, generation: _ } => (text.places(row)?, target.places(row)?),
        })
    }
}

fn cleaned(text: String, clean: Option<Clean>) -> String {
    match clean {
        None => python::strip(&text).to_owned(),
        Some(Clean::Hellaswag) => clean_hellaswag(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;

    fn texts(name: &str) -> Vec<DocumentText> {
        Task::load(name, None).unwrap().texts(&DataSource::Bundled).unwrap()
    }

    #[test]
    fn documents_speak_without_their_prompts() {
        let truthful = texts("truthfulqa");
        assert!(truthful.iter().all(|text| text.questions.len() == 1 && !text.questions[0].contains("Q:")));
        assert!(truthful[0].answers.len() > 3);
        let winogrande = texts("winogrande");
        assert!(winogrande.iter().all(|text| text.questions.len() == 2 && !text.questions[0].contains('_')));
        assert_ne!(winogrande[0].questions[0], winogrande[0].questions[1]);
        let gsm8k = texts("gsm8k");
        assert!(gsm8k.iter().all(|text| text.answers[0].contains("####") && !text.questions[0].contains("Question:")));
        let hellaswag = texts("hellaswag");
        assert!(hellaswag.iter().all(|text| text.answers.len() == 4 && !text.questions.concat().contains("[step]")));
    }

    #[test]
    fn rows_are_those_of_the_official_split() {
        let task = Task::load("arc_challenge", None).unwrap();
        let documents =
            task.documents(crate::protocol::Protocol::LeaderboardV1, &DataSource::Bundled, None, None).unwrap();
        let texts = task.texts(&DataSource::Bundled).unwrap();
        assert!(texts.len() >= documents.len());
        for document in documents {
            let text = texts.iter().find(|text| text.row == document.row).unwrap();
            let crate::request::Request::LogLikelihood { context, .. } = &document.requests[0] else { panic!() };
            assert!(context.contains(&text.questions[0]), "row {}", document.row);
        }
        let mmlu = texts_by_subject();
        assert!(mmlu.iter().any(|(subject, row)| subject == "astronomy" && *row < 152), "{mmlu:?}");
    }

    fn texts_by_subject() -> Vec<(String, usize)> {
        texts("mmlu").into_iter().map(|text| (text.subtask, text.row)).collect()
    }
}
