//! Where a generated text ends, as the protocol's harness sees it (`tasks/protocol.md`, section 4.6; both harnesses'
//! `MultiTokenEOSCriteria`).
//!
//! To a task's stop strings a harness adds the tokenizer's end of text, and looks for each in the text of the newest tokens,
//! special ones among them. The final text has no special tokens and is cut at the earliest of the same strings. So a
//! stop string that is a special token (`<|im_end|>`) is only seen while generating.

use anyhow::Result;

use crate::protocol::Protocol;
use crate::tokenizer::{Decoding, Tokenizer};

/// Tokens beside those of the longest stop string in which it is looked for: half letters, special tokens.
const MARGIN: usize = 4;

/// Ends texts by the rules of one protocol; without one at the model's ends of text and the strings asked for alone.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    tokenizer: &'a Tokenizer,
    protocol: Option<Protocol>,
}

/// A string that ends a text.
pub struct Stop {
    text: String,
    /// How many of the newest tokens a harness looks for it in.
    window: usize,
}

impl<'a> Ends<'a> {
    pub fn new(tokenizer: &'a Tokenizer, protocol: Option<Protocol>) -> Ends<'a> {
        Ends { tokenizer, protocol }
    }

    /// What ends the text of a request with these stop strings.
    pub fn stops(&self, asked: &[String]) -> Result<Vec<Stop>> {
        let end_of_text = self.protocol.and_then(|_| self.tokenizer.eos_text());
        let more = match self.protocol {
            Some(Protocol::LeaderboardV1) => 0,
            Some(Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) | None => 2,
        };
        let stop = |text: &str| -> Result<Stop> {
            let window = self.tokenizer.encode(text, false)?.len() + more;
            Ok(Stop { text: text.to_owned(), window })
        };
        asked.iter().map(String::as_str).chain(end_of_text).map(stop).collect()
    }

    /// Whether the harness ends a text after these new tokens.
    pub fn is_seen(&self, tokens: &[u32], stops: &[Stop]) -> Result<bool> {
        if tokens.last().is_some_and(|token| self.tokenizer.eos().contains(token)) {
            return Ok(true);
        }
        for stop in stops {
            if self.decode(last(tokens, stop.window), true)?.contains(&stop.text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the final text of these tokens is cut, so that further ones would not change it. A harness goes on where a
    /// stop string came in more tokens than it looks at; the work is spared here. Looked for where the newest token
    /// could have completed one.
    pub fn is_settled(&self, tokens: &[u32], stops: &[Stop]) -> Result<bool> {
        let longest = stops.iter().map(|stop| stop.text.len()).max().unwrap_or(0); // a token is a byte or more
        let is_cut = |text: &str| stops.iter().any(|stop| text.contains(&stop.text));
        // Cut out of its text a tail may decode otherwise (without its first space), so the whole text confirms.
        Ok(is_cut(&self.decode(last(tokens, longest + MARGIN), false)?) && is_cut(&self.decode(tokens, false)?))
    }

    /// The final text of these tokens: up to the earliest occurrence of any stop string.
    pub fn text(&self, tokens: &[u32], stops: &[Stop]) -> Result<String> {
        let mut text = self.decode(tokens, false)?;
        let end = stops.iter().filter_map(|stop| text.find(&stop.text)).min();
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    fn decode(&self, tokens: &[u32], special_tokens: bool) -> Result<String> {
        let as_transformers_4 = match self.protocol {
            Some(Protocol::LeaderboardV1) => true,
            Some(Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) | None => false,
        };
        self.tokenizer.decode_as(tokens, Decoding { special_tokens, as_transformers_4 })
    }
}

fn last(tokens: &[u32], count: usize) -> &[u32] {
    &tokens[tokens.len().saturating_sub(count)..]
}
