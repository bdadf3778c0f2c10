//! Dialogues that are longer than the limit: cut at its last token, as Firefly does, or split between turns.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Dialogue;
use super::format::{Example, Formatter};
use crate::chat::{Message, Role};

/// What becomes of a dialogue that is longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Long {
    /// Its first tokens are kept.
    #[default]
    Cut,
    /// It becomes several: as many whole exchanges each as fit, every one begun anew with the system turn. Only an
    /// exchange that is longer by itself is cut.
    Split,
}

/// A dialogue within the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Those with something to learn.
    pub examples: Vec<Example>,
    /// Tokens of the whole dialogue.
    pub tokens: usize,
    /// Tokens were cut off.
    pub cut: bool,
    /// It became several pieces (some of them perhaps with nothing to learn).
    pub split: bool,
}

/// `dialogue` in the formatter's tokens, no example longer than its limit.
pub fn pieces(dialogue: &Dialogue, formatter: &Formatter, long: Long) -> Result<Pieces> {
    lay_out(&dialogue.messages, formatter, long).with_context(|| dialogue.place.clone())
}

fn lay_out(messages: &[Message], formatter: &Formatter, long: Long) -> Result<Pieces> {
    let whole = formatter.whole(messages)?;
    let mut pieces = Pieces { tokens: whole.ids.len(), ..Pieces::default() };
    if whole.ids.len() <= formatter.max_tokens() || long == Long::Cut {
        pieces.take(whole, formatter.max_tokens());
        return Ok(pieces);
    }
    let (system, turns) = messages.split_at(usize::from(messages[0].role == Role::System));
    let mut rest: Vec<&[Message]> = turns.chunks(2).collect();
    while !rest.is_empty() {
        let (example, taken) = as_many_as_fit(system, &rest, formatter)?;
        pieces.split |= taken < rest.len();
        rest.drain(..taken);
        pieces.take(example, formatter.max_tokens());
    }
    Ok(pieces)
}

/// The longest run of exchanges from the start that fits (at least one), and its length.
fn as_many_as_fit(system: &[Message], exchanges: &[&[Message]], formatter: &Formatter) -> Result<(Example, usize)> {
    let mut messages = [system, exchanges[0]].concat();
    let mut best = (formatter.whole(&messages)?, 1);
    for (index, exchange) in exchanges.iter().enumerate().skip(1) {
        messages.extend_from_slice(exchange);
        let example = formatter.whole(&messages)?;
        if example.ids.len() > formatter.max_tokens() {
            break;
        }
        best = (example, index + 1);
    }
    Ok(best)
}

impl Pieces {
    fn take(&mut self, mut example: Example, max_tokens: usize) {
        self.cut |= example.ids.len() > max_tokens;
        example.truncate(max_tokens);
        if example.target_count() > 0 {
            self.examples.push(example);
        }
    }
}
