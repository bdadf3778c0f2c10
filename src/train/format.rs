//! A dialogue as tokens, and which of them are learnt.
//!
//! Two formats. `firefly-mistral` is what firefly-mixtral-8x7b was trained on (Firefly, commit f0c759b,
//! `MistralSFTDataset`): `<s>` and then for each turn `[INST]`, the question, `[/INST]`, the answer and `</s>`, every piece
//! encoded by itself. `chat-template` is the tokenizer's own template. In both, the answers and the token that ends them
//! are learnt, nothing else, and what exceeds the limit is cut off at the end.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::dialogue::Dialogue;
use crate::chat::{ChatTemplate, Message, Role};
use crate::model::packed::Packed;
use crate::tokenizer::Tokenizer;

/// How dialogues are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    FireflyMistral,
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
    FireflyMistral { bos: u32, eos: u32, open: Vec<u32>, close: Vec<u32> },
    ChatTemplate(ChatTemplate),
}

impl Example {
    fn push(&mut self, ids: &[u32], learnt: bool) {
        self.ids.extend_from_slice(ids);
        self.learnt.resize(self.ids.len(), learnt);
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

/// A micro-batch: the dialogues end to end, no padding, none seeing another, with the targets of all their rows.
pub fn pack(examples: &[&Example]) -> (Packed, Vec<Option<u32>>) {
    let sequences: Vec<&[u32]> = examples.iter().map(|example| example.ids.as_slice()).collect();
    (Packed::rows(&sequences), examples.iter().flat_map(|example| example.targets()).collect())
}

impl<'a> Formatter<'a> {
    pub fn new(format: Format, tokenizer: &'a Tokenizer, max_tokens: usize) -> Result<Formatter<'a>> {
        let layout = match format {
            Format::FireflyMistral => Layout::FireflyMistral {
                bos: tokenizer
                    .bos()
                    .context("format firefly-mistral: the tokenizer has no token that begins a text")?,
                eos: end_of_text(tokenizer)?,
                open: tokenizer.encode("[INST]", false)?,
                close: tokenizer.encode("[/INST]", false)?,
            },
            Format::ChatTemplate => {
                let source = tokenizer.chat_template().context(
                    "format chat-template: the tokenizer has no chat template (take `firefly-mistral`, or put a \
                     chat_template into its tokenizer_config.json)",
                )?;
                Layout::ChatTemplate(ChatTemplate::new(source, tokenizer.bos_text(), tokenizer.eos_text())?)
            }
        };
        Ok(Formatter { tokenizer, layout, max_tokens })
    }

    /// The first `max_tokens` tokens of a dialogue.
    pub fn example(&self, dialogue: &Dialogue) -> Result<Example> {
        let mut example = match &self.layout {
            Layout::FireflyMistral { bos, eos, open, close } => {
                self.pieces(&dialogue.messages, (*bos, *eos), (open, close))
            }
            Layout::ChatTemplate(template) => self.templated(&dialogue.messages, template),
        }
        .with_context(|| dialogue.place.clone())?;
        example.ids.truncate(self.max_tokens);
        example.learnt.truncate(self.max_tokens);
        Ok(example)
    }

    fn pieces(&self, messages: &[Message], (bos, eos): (u32, u32), (open, close): (&[u32], &[u32])) -> Result<Example> {
        let mut example = Example::default();
        example.push(&[bos], false);
        for message in messages {
            let ids = self.tokenizer.encode(message.content.trim(), false)?;
            match message.role {
                Role::System => bail!("format firefly-mistral has no place for a system turn"),
                Role::User => [open, &ids, close].map(|piece| example.push(piece, false)),
                Role::Assistant => [&[], ids.as_slice(), &[eos]].map(|piece| example.push(piece, true)),
            };
        }
        Ok(example)
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

/// The token that ends a text, by the tokenizer's own name for it.
fn end_of_text(tokenizer: &Tokenizer) -> Result<u32> {
    let text = tokenizer.eos_text().context("format firefly-mistral: the tokenizer has no token that ends a text")?;
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
