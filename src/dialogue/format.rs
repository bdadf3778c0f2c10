//! A dialogue as tokens, and which of them are learnt.
//!
//! | format | of | tokens |
//! |---|---|---|
//! | `firefly-mistral` | Firefly, commit f0c759b (December 2023), `MistralSFTDataset`: what firefly-mixtral-8x7b was trained on | `<s>`, then for each turn `[INST]`, question, `[/INST]`, answer, `</s>`, every piece encoded by itself, texts stripped |
//! | `firefly-mixtral` | Firefly, commit e22b406, `UnifiedSFTDataset` with its template `mixtral` | `<s>`, `[INST]question[/INST]`, `answer</s>`, each encoded as one string, texts stripped |
//! | `mistral` | Mistral's own, mistral-common's `InstructTokenizerV1` | `<s>`, `[INST] question [/INST]`, `answer`, `</s>`; a system turn stands before the first question with an empty line between |
//! | `chat-template` | the tokenizer's own template | what it renders, encoded as one text |
//!
//! `<s>` and `</s>` are the tokenizer's own tokens for a text's beginning and end. In all formats the answers and the
//! token that ends them are learnt, nothing else, and what exceeds the limit is cut off at the end.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Dialogue;
use crate::chat::{ChatTemplate, Message, Role};
use crate::settings;
use crate::tokenizer::Tokenizer;

/// How dialogues are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    FireflyMistral,
    FireflyMixtral,
    Mistral,
    ChatTemplate,
}

/// A dialogue's tokens and which of them are learnt; equally long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    pub learnt: Vec<bool>,
}

/// Turns dialogues into tokens.
pub struct Formatter<'a> {
    tokenizer: &'a Tokenizer,
    layout: Layout,
    max_tokens: usize,
}

enum Layout {
    /// Turns encoded apart from each other, between the tokens of a text's beginning and end.
    Turns {
        style: Style,
        bos: u32,
        eos: u32,
    },
    ChatTemplate(ChatTemplate),
}

/// What stands around a turn.
#[derive(Clone, Copy)]
enum Style {
    FireflyMistral,
    FireflyMixtral,
    Mistral,
}

impl Format {
    pub const ALL: [Format; 4] =
        [Format::FireflyMistral, Format::FireflyMixtral, Format::Mistral, Format::ChatTemplate];

    /// As recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Format::FireflyMistral => "firefly-mistral",
            Format::FireflyMixtral => "firefly-mixtral",
            Format::Mistral => "mistral",
            Format::ChatTemplate => "chat-template",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Format> {
        let known = Format::ALL.map(Format::name);
        let near =
            || settings::closest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        found.with_context(|| format!("unknown format `{name}` (known: {}{})", known.join(", "), near()))
    }
}

impl Example {
    fn push(&mut self, ids: &[u32], learnt: bool) {
        self.ids.extend_from_slice(ids);
        self.learnt.resize(self.ids.len(), learnt);
    }

    /// Drops what exceeds `max_tokens`.
    pub fn truncate(&mut self, max_tokens: usize) {
        self.ids.truncate(max_tokens);
        self.learnt.truncate(max_tokens);
    }

    /// What each token should predict: the next one, where that is learnt.
    pub fn targets(&self) -> Vec<Option<u32>> {
        let next = self.ids.iter().zip(&self.learnt).skip(1).map(|(&id, &learnt)| learnt.then_some(id));
        next.chain(std::iter::once(None)).take(self.ids.len()).collect()
    }

    /// How many tokens are predicted (the first token of all never is).
    pub fn target_count(&self) -> usize {
        self.learnt.iter().skip(1).filter(|&&learnt| learnt).count()
    }
}

impl<'a> Formatter<'a> {
    pub fn new(format: Format, tokenizer: &'a Tokenizer, max_tokens: usize) -> Result<Formatter<'a>> {
        let turns = |style| -> Result<Layout> {
            let bos = tokenizer
                .bos()
                .with_context(|| format!("format {format}: the tokenizer has no token that begins a text"))?;
            Ok(Layout::Turns { style, bos, eos: end_of_text(format, tokenizer)? })
        };
        let layout = match format {
            Format::FireflyMistral => turns(Style::FireflyMistral)?,
            Format::FireflyMixtral => turns(Style::FireflyMixtral)?,
            Format::Mistral => turns(Style::Mistral)?,
            Format::ChatTemplate => {
                let source = tokenizer.chat_template().context(
                    "format chat-template: the tokenizer has no chat template (take another format, or put a \
                     chat_template into its tokenizer_config.json)",
                )?;
                Layout::ChatTemplate(ChatTemplate::new(source, tokenizer.bos_text(), tokenizer.eos_text())?)
            }
        };
        Ok(Formatter { tokenizer, layout, max_tokens })
    }

    /// No example has more tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The first `max_tokens` tokens of a dialogue.
    pub fn example(&self, dialogue: &Dialogue) -> Result<Example> {
        let mut example = self.whole(&dialogue.messages).with_context(|| dialogue.place.clone())?;
        example.truncate(self.max_tokens);
        Ok(example)
    }

    /// All tokens of these turns.
    pub fn whole(&self, messages: &[Message]) -> Result<Example> {
        match &self.layout {
            Layout::Turns { style, bos, eos } => self.turns(messages, *style, (*bos, *eos)),
            Layout::ChatTemplate(template) => self.templated(messages, template),
        }
    }

    fn turns(&self, messages: &[Message], style: Style, (bos, eos): (u32, u32)) -> Result<Example> {
        let mut example = Example::default();
        example.push(&[bos], false);
        let mut system = None;
        for message in messages {
            let content = message.content.as_str();
            match (message.role, style) {
                (Role::System, Style::FireflyMistral) => bail!("format firefly-mistral has no place for a system turn"),
                (Role::System, Style::FireflyMixtral) => bail!("format firefly-mixtral has no place for a system turn"),
                (Role::System, Style::Mistral) => system = Some(content),
                (Role::User, _) => {
                    for piece in question(style, system.take(), content) {
                        example.push(&self.tokenizer.encode(&piece, false)?, false);
                    }
                }
                (Role::Assistant, _) => example.push(&self.answer(style, content, eos)?, true),
            }
        }
        Ok(example)
    }

    fn answer(&self, style: Style, content: &str, eos: u32) -> Result<Vec<u32>> {
        let end = self.tokenizer.eos_text().unwrap_or_default();
        let mut ids = match style {
            Style::FireflyMistral => self.tokenizer.encode(content.trim(), false)?,
            // The end is encoded with the answer.
            Style::FireflyMixtral => return self.tokenizer.encode(&format!("{}{end}", content.trim()), false),
            Style::Mistral => self.tokenizer.encode(content, false)?,
        };
        ids.push(eos);
        Ok(ids)
    }

    fn templated(&self, messages: &[Message], template: &ChatTemplate) -> Result<Example> {
        let text = template.render(messages, false)?;
        let spans = answers(messages, template, &text)?;
        let tokens = self.tokenizer.encode_with_offsets(&text)?;
        let mut example =
            Example { ids: tokens.iter().map(|(id, _)| *id).collect(), learnt: vec![false; tokens.len()] };
        for span in spans {
            let first = tokens.partition_point(|(_, bytes)| bytes.end <= span.start);
            let behind = tokens.partition_point(|(_, bytes)| bytes.start < span.end);
            example.learnt[first..behind.max(first)].fill(true);
        }
        Ok(example)
    }
}

/// A question as the texts that are encoded one by one.
fn question(style: Style, system: Option<&str>, content: &str) -> Vec<String> {
    match style {
        Style::FireflyMistral => vec!["[INST]".to_owned(), content.trim().to_owned(), "[/INST]".to_owned()],
        Style::FireflyMixtral => vec![format!("[INST]{}[/INST]", content.trim())],
        Style::Mistral => {
            let system = system.map(|system| format!("{system}\n\n")).unwrap_or_default();
            vec![format!("[INST] {system}{content} [/INST]")]
        }
    }
}

/// The token that ends a text, by the tokenizer's own name for it.
fn end_of_text(format: Format, tokenizer: &Tokenizer) -> Result<u32> {
    let text = tokenizer
        .eos_text()
        .with_context(|| format!("format {format}: the tokenizer has no token that ends a text"))?;
    match tokenizer.encode(text, false)?.as_slice() {
        &[id] => Ok(id),
        ids => bail!("the end of text `{text}` is {} tokens, not one", ids.len()),
    }
}

/// Stands for an answer where the template's own text around it is to be found. No template writes it by itself.
const MARK: &str = "\u{e000}answer\u{e000}";

/// Where in `text` (the dialogue rendered whole) the answers lie, each with what ends it.
///
/// The dialogue up to an answer, with a mark in the answer's place, shows what the template writes before and behind
/// it. Both must be found again in the whole: else the template treats early and last turns differently, and what was
/// trained would not be what is asked later.
fn answers(messages: &[Message], template: &ChatTemplate, text: &str) -> Result<Vec<Range<usize>>> {
    let mut spans = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role != Role::Assistant {
            continue;
        }
        let mut marked = messages[..=index].to_vec();
        marked[index].content = MARK.to_owned();
        let marked = template.render(&marked, false)?;
        let (before, behind) =
            marked.split_once(MARK).with_context(|| format!("the template leaves out turn {}", index + 1))?;
        let span = answer(text, before, &message.content, behind.trim_end());
        spans.push(span.with_context(|| {
            format!(
                "turn {} cannot be found in the rendered dialogue: the chat template writes an answer differently when \
                 more turns follow",
                index + 1
            )
        })?);
    }
    ensure!(!spans.is_empty(), "the dialogue has no answer");
    Ok(spans)
}

/// `content` (or what is left of it when trimmed, as many templates do) between `before` and `end`.
fn answer(text: &str, before: &str, content: &str, end: &str) -> Option<Range<usize>> {
    let rest = text.strip_prefix(before)?;
    let written = [content, content.trim_end(), content.trim_start(), content.trim()];
    let written =
        written.into_iter().find(|written| rest.strip_prefix(written).is_some_and(|rest| rest.starts_with(end)))?;
    Some(before.len()..before.len() + written.len() + end.len())
}
