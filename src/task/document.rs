//! Documents in the order a protocol asks them, with their few-shot examples in place and their requests made.
//! `tasks/protocol.md`, sections 2, 3, 5 of 3, and 7.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::Document;
use super::definition::{Definition, Prompt, ShotsChoice, Split};
use super::prompt::Item;
use super::source::{DataFile, DataSource};
use crate::chat::{ChatTemplate, Message, Role};
use crate::digest::sha256_hex;
use crate::protocol::Protocol;
use crate::python::{self, Random};
use crate::request::Request;
use crate::rows::{Row, Rows};

/// Documents that share a generator and, for MMLU, a subject.
pub struct Part {
    pub subtask: String,
    /// Rows of the file, in official order.
    pub rows: Vec<usize>,
}

/// What is shown before a document's own text.
struct Preamble {
    description: String,
    shots: Vec<Item>,
}

/// All documents of a task; `subject` keeps one subtask.
pub fn documents(
    task: &Definition,
    subject: Option<&str>,
    protocol: Protocol,
    data: &DataSource,
    limit: Option<usize>,
    chat: Option<&ChatTemplate>,
) -> Result<Vec<Document>> {
    let evaluation = data.evaluation(task)?;
    let pool = data.shots(task)?;
    let shots = Shots::new(task, pool.as_ref())?;
    let limit = [limit, evaluation.documents].into_iter().flatten().min();
    let mut parts = parts(task, &evaluation)?;
    parts.sort_by_key(|part| turn(task, protocol, &part.subtask));
    if let Some(subject) = subject {
        let known: Vec<String> = parts.iter().map(|part| part.subtask.clone()).collect();
        parts.retain(|part| part.subtask == subject);
        ensure!(!parts.is_empty(), "{} has no subtask `{subject}`{}", task.name, super::did_you_mean(subject, &known));
    }
    let mut documents = Vec::new();
    for part in &parts {
        let asked = Asked { task, protocol, limit, chat, evaluation: &evaluation.rows, shots: &shots };
        documents.extend(asked.part(part)?);
    }
    ensure!(!documents.is_empty(), "{}: no documents", task.name);
    Ok(documents)
}

/// The file's rows by subtask, subtasks in order of appearance (MMLU's follow each other alphabetically).
pub fn parts(task: &Definition, file: &DataFile) -> Result<Vec<Part>> {
    let Some(field) = &task.subtask else {
        return Ok(vec![Part { subtask: task.name.clone(), rows: (0..file.rows.len()).collect() }]);
    };
    if let Some(known) = &file.parts {
        let part = |(subtask, first, count): &(String, usize, usize)| Part {
            subtask: subtask.clone(),
            rows: (*first..first + count).collect(),
        };
        return Ok(known.iter().map(part).collect());
    }
    let mut parts: Vec<Part> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for row in 0..file.rows.len() {
        let subtask = field.text(&file.rows.get(row)?).with_context(|| file.rows.place(row))?;
        let part = *index.entry(subtask.clone()).or_insert_with(|| {
            parts.push(Part { subtask, rows: Vec::new() });
            parts.len() - 1
        });
        parts[part].rows.push(row);
    }
    Ok(parts)
}

/// When a subtask is asked: by file order on the leaderboard, group by group in lm-eval.
fn turn(task: &Definition, protocol: Protocol, subtask: &str) -> usize {
    match protocol {
        Protocol::LeaderboardV1 => 0,
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => {
            let mut turns = task.groups.iter().flat_map(|group| &group.subtasks);
            turns.position(|known| known == subtask).unwrap_or(usize::MAX)
        }
    }
}

/// The pool that examples come from.
struct Shots<'a> {
    task: &'a Definition,
    pool: Option<&'a Rows>,
    /// The pool's rows of each subtask, where examples are the first ones.
    first: HashMap<String, Vec<usize>>,
}

impl<'a> Shots<'a> {
    fn new(task: &'a Definition, pool: Option<&'a DataFile>) -> Result<Shots<'a>> {
        let first = match (pool, task.data.choice) {
            (Some(pool), ShotsChoice::First) => {
                parts(task, pool)?.into_iter().map(|part| (part.subtask, part.rows)).collect()
            }
            _ => HashMap::new(),
        };
        Ok(Shots { task, pool: pool.map(|file| &file.rows), first })
    }

    /// The examples of the next document of `subtask`; draws from `random` whatever the protocol would draw.
    fn next(&self, subtask: &str, protocol: Protocol, random: &mut Random) -> Result<Vec<Item>> {
        let Some(pool) = self.pool else { return Ok(Vec::new()) };
        let count = self.task.shots;
        let rows: Vec<usize> = match self.task.data.choice {
            ShotsChoice::First => {
                let rows = self.first.get(subtask).map(Vec::as_slice).unwrap_or_default();
                ensure!(rows.len() >= count, "{subtask}: {} examples where {count} are shown", rows.len());
                rows[..count].to_vec()
            }
            ShotsChoice::Drawn => {
                let drawn = count + usize::from(self.draws_one_more(protocol));
                ensure!(pool.len() >= drawn, "{}: {} examples to draw {drawn} from", self.task.name, pool.len());
                let mut rows = random.sample(pool.len(), drawn);
                rows.truncate(count);
                rows
            }
        };
        let read = |row: usize| self.task.prompt.read(&pool.get(row)?).with_context(|| pool.place(row));
        rows.into_iter().map(read).collect()
    }

    /// lm-eval draws one example more, to have one left if it drew the document itself, when "the few-shot split is the
    /// test split"; a task without a test split compares nothing with nothing, which is equal. Its group `openllm` names
    /// the few-shot split.
    fn draws_one_more(&self, protocol: Protocol) -> bool {
        match (protocol, self.task.data.split) {
            (Protocol::LmEvalLatest, Split::Validation) => true,
            (Protocol::LmEvalLatest, Split::Test) => false,
            (Protocol::LeaderboardV1 | Protocol::LmEvalLatestOpenllm, Split::Test | Split::Validation) => false,
        }
    }
}

/// What `documents` was asked for.
struct Asked<'a> {
    task: &'a Definition,
    protocol: Protocol,
    limit: Option<usize>,
    chat: Option<&'a ChatTemplate>,
    evaluation: &'a Rows,
    shots: &'a Shots<'a>,
}

impl Asked<'_> {
    fn part(&self, part: &Part) -> Result<Vec<Document>> {
        let mut order: Vec<usize> = (0..part.rows.len()).collect();
        let mut random = match self.protocol {
            Protocol::LeaderboardV1 => {
                // One generator shuffles the documents and then goes on to draw their examples.
                let mut random = Random::new(42);
                random.shuffle(&mut order);
                random
            }
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => Random::new(1234),
        };
        order.truncate(self.limit.unwrap_or(usize::MAX));
        order.into_iter().map(|index| self.document(part, index, &mut random)).collect()
    }

    fn document(&self, part: &Part, index: usize, random: &mut Random) -> Result<Document> {
        let place = || self.evaluation.place(part.rows[index]);
        let row = self.evaluation.get(part.rows[index])?;
        let item = self.task.prompt.read(&row).with_context(place)?;
        let shots = self.shots.next(&part.subtask, self.protocol, random)?;
        let preamble = Preamble { description: self.description(&row).with_context(place)?, shots };
        let requests = self.requests(&item, &preamble).with_context(place)?;
        self.check(&requests).with_context(place)?;
        Ok(Document { subtask: part.subtask.clone(), row: index, digest: digest(&requests), requests, item })
    }

    fn description(&self, row: &Row) -> Result<String> {
        self.task.description.fill(row)
    }

    fn requests(&self, item: &Item, preamble: &Preamble) -> Result<Vec<Request>> {
        let separator = if self.chat.is_some() { "" } else { " " };
        Ok(match item {
            Item::Choice { question, .. } | Item::True { question, .. } => {
                let context: Arc<str> = self.context(preamble, question)?.into();
                let ask = |choice| Request::LogLikelihood {
                    context: context.clone(),
                    continuation: format!("{separator}{choice}"),
                };
                item.continuations(self.protocol).into_iter().map(ask).collect()
            }
            Item::Partial { beginnings, ending, .. } => {
                let continuation = if self.chat.is_some() { &ending[1..] } else { ending };
                let ask = |beginning: &String| {
                    let context = self.context(preamble, beginning)?.into();
                    Ok(Request::LogLikelihood { context, continuation: continuation.to_owned() })
                };
                beginnings.iter().map(ask).collect::<Result<_>>()?
            }
            Item::Text { question, .. } => vec![self.generate(self.context(preamble, question)?)],
        })
    }

    /// White space at the end of a context is scored with what follows it; without special tokens a context of nothing
    /// else leaves no token to score that after, and the harness stops.
    fn check(&self, requests: &[Request]) -> Result<()> {
        let is_blank = |context: &str| !context.is_empty() && python::strip(context).is_empty();
        let is_unscorable =
            |request: &Request| matches!(request, Request::LogLikelihood { context, .. } if is_blank(context));
        ensure!(
            self.protocol.special_tokens() || !requests.iter().any(is_unscorable),
            "the context is white space alone, after which {} scores nothing; give the row a text, or leave it out",
            self.protocol.name()
        );
        Ok(())
    }

    fn generate(&self, context: String) -> Request {
        let Prompt::Generation { generation, .. } = &self.task.prompt else {
            unreachable!("only the shape `generation` reads texts");
        };
        let stop = match self.protocol {
            Protocol::LeaderboardV1 => &generation.stop,
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => &generation.stop_latest,
        };
        Request::Generate { context: context.into(), stop: stop.clone(), max_tokens: generation.max_tokens }
    }

    /// Description, examples and question as plain text, or as a conversation.
    fn context(&self, preamble: &Preamble, question: &str) -> Result<String> {
        let Some(chat) = self.chat else {
            let mut text = preamble.description.clone();
            for shot in &preamble.shots {
                text.push_str(&shot.shot()?);
                text.push_str("\n\n");
            }
            return Ok(text + question);
        };
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let mut messages = Vec::new();
        if !preamble.description.is_empty() {
            messages.push(message(Role::System, &preamble.description));
        }
        for shot in &preamble.shots {
            messages.push(message(Role::User, shot.question()));
            messages.push(message(Role::Assistant, shot.target()?));
        }
        messages.push(message(Role::User, question));
        // A template that refuses a system message gets none, as in lm-eval (`models/huggingface.py`, `apply_chat_template`).
        chat.render(&messages, true).or_else(|_| {
            messages.retain(|message| message.role != Role::System);
            chat.render(&messages, true)
        })
    }
}

/// sha256 over context, 0x1e, continuation, 0x1f of every request (the continuation of a generation is empty).
pub fn digest(requests: &[Request]) -> String {
    let mut bytes = Vec::new();
    for request in requests {
        let (context, continuation) = match request {
            Request::LogLikelihood { context, continuation } => (context, continuation.as_str()),
            Request::Generate { context, .. } => (context, ""),
        };
        bytes.extend_from_slice(context.as_bytes());
        bytes.push(0x1e);
        bytes.extend_from_slice(continuation.as_bytes());
        bytes.push(0x1f);
    }
    sha256_hex(&bytes)
}
