//! The same chat prompts answered by several models: read from a file, asked in each model's chat template, and kept as one
//! file that a report shows.

mod prompts;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use prompts::{Conversation, Turn, read};

use crate::chat::{ChatTemplate, Message};
use crate::digest::sha256_hex;
use crate::engine::sampling::Sampling;
use crate::engine::{Engine, Work};
use crate::model_id::ModelId;
use crate::progress::Progress;
use crate::request::{Request, Response};

/// The version of the format in `results/README.md`.
const SCHEMA: u32 = 1;

/// How answers are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Greedy without it.
    pub sampling: Option<Sampling>,
    /// New tokens of an answer, at most.
    pub max_tokens: usize,
}

/// Prompts with the answers of all models: a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sheet {
    pub schema: u32,
    pub fireval: String,
    pub sampling: Option<Sampling>,
    pub max_tokens: usize,
    pub models: Vec<Answering>,
    pub prompts: Vec<Answered>,
}

/// A model that answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answering {
    pub model: String,
    pub id: ModelId,
    /// sha256 of the chat template it was asked in.
    pub template: String,
}

/// A prompt and what each model answered, in the order of the sheet's models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub messages: Conversation,
    pub answers: Vec<Answer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub text: String,
    /// New tokens, the one that ends the answer included.
    pub tokens: usize,
    /// Whether the answer was cut at its limit of tokens.
    pub is_cut: bool,
}

/// What `engine` answers to each of `prompts`, asked in `template`.
pub fn answer(
    engine: &mut dyn Engine,
    template: &ChatTemplate,
    prompts: &[Conversation],
    settings: Settings,
    progress: &Progress,
) -> Result<Vec<Answer>> {
    let Settings { sampling, max_tokens } = settings;
    let request = |turns: &Conversation| -> Result<[Request; 1]> {
        let messages: Vec<Message> = turns.iter().map(Turn::message).collect::<Result<_>>()?;
        let context = template.render(&messages, true)?.into();
        Ok([Request::Generate { context, stop: Vec::new(), max_tokens }])
    };
    let requests: Vec<[Request; 1]> = prompts.iter().map(request).collect::<Result<_>>()?;
    let documents: Vec<&[Request]> = requests.iter().map(|requests| &requests[..]).collect();
    // The template writes the special tokens that it wants.
    let work = Work { documents: &documents, protocol: None, sampling, progress: progress.clone() };
    let mut answers: Vec<Option<Answer>> = vec![None; prompts.len()];
    engine.answer(&work, &mut |index, responses| {
        if let [Response::Generate { text, tokens }] = &responses[..] {
            let is_cut = tokens.len() >= max_tokens;
            answers[index] = Some(Answer { text: text.clone(), tokens: tokens.len(), is_cut });
        }
        Ok(())
    })?;
    let answered = |(index, answer): (usize, Option<Answer>)| {
        answer.with_context(|| format!("prompt {} was not answered", index + 1))
    };
    answers.into_iter().enumerate().map(answered).collect()
}

/// Every prompt with the answers of all models: `columns` has a model's answers each.
pub fn sheet(settings: Settings, models: Vec<Answering>, prompts: Vec<Conversation>, columns: &[Vec<Answer>]) -> Sheet {
    let answered = |(index, messages): (usize, Conversation)| {
        let answers = columns.iter().map(|answers| answers[index].clone()).collect();
        Answered { messages, answers }
    };
    Sheet {
        schema: SCHEMA,
        fireval: env!("CARGO_PKG_VERSION").to_owned(),
        sampling: settings.sampling,
        max_tokens: settings.max_tokens,
        models,
        prompts: prompts.into_iter().enumerate().map(answered).collect(),
    }
}

impl Answering {
    pub fn new(model: &str, id: ModelId, template: &str) -> Answering {
        Answering { model: model.to_owned(), id, template: sha256_hex(template.as_bytes()) }
    }
}

impl Sheet {
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and finite numbers serialise") + "\n"
    }

    /// Reads a sheet that was saved.
    pub fn read(path: &Path) -> Result<Sheet> {
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        let place = || format!("{}: no answers that `fireval samples --save` wrote", path.display());
        let sheet: Sheet = serde_json::from_str(&text).with_context(place)?;
        ensure!(
            sheet.schema == SCHEMA,
            "{}: schema {} where this fireval reads {SCHEMA}",
            path.display(),
            sheet.schema
        );
        for (index, prompt) in sheet.prompts.iter().enumerate() {
            let (answers, models) = (prompt.answers.len(), sheet.models.len());
            ensure!(
                answers == models,
                "{}: prompt {} has {answers} answers of {models} models",
                path.display(),
                index + 1
            );
        }
        Ok(sheet)
    }

    /// "greedy", or how tokens were drawn.
    pub fn describe(&self) -> String {
        let limit = self.max_tokens;
        match self.sampling {
            None => format!("greedy, at most {limit} tokens"),
            Some(Sampling { temperature, top_p, seed }) => {
                format!("sampled at temperature {temperature}, top-p {top_p}, seed {seed}, at most {limit} tokens")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Role;
    use crate::engine::scripted::ScriptedEngine;

    fn asked(text: &str) -> Conversation {
        vec![Turn { role: Role::User.name().to_owned(), content: text.to_owned() }]
    }

    fn made() -> Sheet {
        let template = ChatTemplate::new("{{ messages[0].content }}", None, None).unwrap();
        let settings = Settings { sampling: None, max_tokens: 30 };
        let prompts = vec![asked("one"), asked("two")];
        let mut engine = ScriptedEngine::new("a").unwrap();
        let answers = answer(&mut engine, &template, &prompts, settings, &Progress::hidden()).unwrap();
        let model = Answering::new("a", engine.id().clone(), "t");
        sheet(settings, vec![model], prompts, &[answers])
    }

    #[test]
    fn a_sheet_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.json");
        let sheet = made();
        assert_eq!((sheet.prompts.len(), sheet.prompts[0].answers.len()), (2, 1));
        assert_ne!(sheet.prompts[0].answers, sheet.prompts[1].answers);
        assert!(sheet.prompts[0].answers[0].text.starts_with(" The answer is"));
        std::fs::write(&path, sheet.to_json()).unwrap();
        assert_eq!(Sheet::read(&path).unwrap(), sheet);
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", Sheet::read(&path).unwrap_err())
        };
        assert!(error("{}").contains("answers.json"));
        assert!(error(&sheet.to_json().replace("\"schema\": 1", "\"schema\": 9")).contains("schema 9"));
        let mut short = sheet.clone();
        short.prompts[1].answers.clear();
        assert!(error(&short.to_json()).contains("prompt 2 has 0 answers of 1 models"));
    }

    #[test]
    fn how_answers_were_made_is_said() {
        let greedy = made();
        assert_eq!(greedy.describe(), "greedy, at most 30 tokens");
        let sampling = Some(Sampling { temperature: 0.7, top_p: 0.9, seed: 3 });
        assert!(Sheet { sampling, ..greedy }.describe().starts_with("sampled at temperature 0.7, top-p 0.9, seed 3"));
    }
}
