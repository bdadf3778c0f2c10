//! Generation, greedy or sampled: prompts are read together, as one trie, then all running documents take each step together; a
//! finished document makes room for those that wait.
//!
//! Where a model rotates long sequences otherwise, a document that becomes one is read again whole, as transformers drops
//! its cache then.
//!
//! Looking for stop strings while generating only saves work: the final cut, at the earliest occurrence of any, decides
//! (`protocol.md`, section 4.6).

use anyhow::Result;

use super::Done;
use super::admission::Admission;
use super::budget::Room;
use super::forecast::Forecast;
use super::prefixes::Prefixes;
use super::sampling::Sampling;
use super::tokens::Prompt;
use super::trie::Laid;
use crate::model::decoder::{Decoder, Pasts};
use crate::model::packed::Packed;
use crate::request::Response;
use crate::tokenizer::Tokenizer;

/// Tokens beside those of the longest stop string in which it is looked for: half letters, special tokens.
const MARGIN: usize = 4;

/// Documents that decode together.
pub struct Generation<'a, D: Decoder> {
    decoder: &'a D,
    tokenizer: &'a Tokenizer,
    room: Room,
    /// The likeliest token is taken without it.
    sampling: Option<Sampling>,
    running: Vec<Running<'a>>,
    /// Of each running document.
    pasts: Vec<D::Past>,
}

/// A document being generated.
struct Running<'a> {
    prompt: Prompt<'a>,
    tokens: Vec<u32>,
}

impl<'a, D: Decoder> Generation<'a, D> {
    pub fn new(decoder: &'a D, tokenizer: &'a Tokenizer, room: Room, sampling: Option<Sampling>) -> Generation<'a, D> {
        Generation { decoder, tokenizer, room, sampling, running: Vec::new(), pasts: Vec::new() }
    }

    /// Answers all of `prompts`.
    pub fn run<I>(mut self, prompts: I, forecast: &mut Forecast, done: &mut Done) -> Result<()>
    where
        I: Iterator<Item = Result<Prompt<'a>>>,
    {
        let mut admission = Admission::new(prompts, self.room);
        loop {
            while let Some(batch) = admission.admit()? {
                let mut prefixes = Prefixes::new(self.room.short_length);
                for prompt in &batch {
                    forecast.read(prompt.document, prefixes.insert(&prompt.ids));
                }
                forecast.generated(batch.len());
                self.read(batch.into_iter().map(|prompt| Running { prompt, tokens: Vec::new() }).collect())?;
            }
            if self.running.is_empty() {
                return Ok(());
            }
            for Running { prompt, tokens } in self.take_ended()? {
                admission.release(&prompt);
                forecast.spared(prompt.max_tokens - tokens.len());
                let text = cut(&self.tokenizer.decode(&tokens)?, prompt.stop).to_owned();
                done(prompt.document, vec![Response::Generate { text, tokens }])?;
            }
            forecast.generated(self.running.len());
            self.step()?;
        }
    }

    /// Reads documents so far as one trie and takes the next token of each. They run from then on.
    fn read(&mut self, documents: Vec<Running<'a>>) -> Result<()> {
        let ids: Vec<Vec<u32>> =
            documents.iter().map(|Running { prompt, tokens }| [&prompt.ids[..], tokens].concat()).collect();
        let laid = Laid::of(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>(), self.room.short_length);
        let mut pasts = Vec::with_capacity(documents.len());
        for Running { prompt, .. } in &documents {
            pasts.push(self.decoder.past(prompt.capacity())?);
        }
        let hidden = self.decoder.walk(&laid.packed, Pasts::Begin { pasts: &mut pasts, leaves: &laid.leaves })?;
        let rows: Vec<usize> = ids.iter().enumerate().map(|(at, ids)| laid.row(at, ids.len() - 1)).collect();
        let next = self.next(&hidden, &rows, &documents)?;
        for (mut document, token) in documents.into_iter().zip(next) {
            document.tokens.push(token);
            self.running.push(document);
        }
        self.pasts.extend(pasts);
        Ok(())
    }

    /// One more token for every running document. Those that become long ones are read again, one by one.
    fn step(&mut self) -> Result<()> {
        let turning = self.take_turning();
        self.step_together()?;
        turning.into_iter().try_for_each(|document| self.read(vec![document]))
    }

    /// Documents that the next token makes longer than short ones are; their pasts are freed.
    fn take_turning(&mut self) -> Vec<Running<'a>> {
        let mut turning = Vec::new();
        for index in (0..self.running.len()).rev() {
            if self.decoder.past_len(&self.pasts[index]) == self.room.short_length {
                self.pasts.swap_remove(index);
                turning.push(self.running.swap_remove(index));
            }
        }
        turning
    }

    fn step_together(&mut self) -> Result<()> {
        if self.running.is_empty() {
            return Ok(());
        }
        let mut packed = Packed::default();
        for (document, past) in self.running.iter().zip(&self.pasts) {
            let last = document.tokens.last().expect("a running document has its first token");
            packed.push_at(&[*last], self.decoder.past_len(past));
        }
        let hidden = self.decoder.walk(&packed, Pasts::Continue(&mut self.pasts))?;
        let rows: Vec<usize> = (0..self.running.len()).collect();
        let next = self.next(&hidden, &rows, &self.running)?;
        for (document, token) in self.running.iter_mut().zip(next) {
            document.tokens.push(token);
        }
        Ok(())
    }

    /// The token after each of `rows`, which are the last of `documents`.
    fn next(&self, hidden: &D::Hidden, rows: &[usize], documents: &[Running]) -> Result<Vec<u32>> {
        let Some(sampling) = self.sampling else { return self.decoder.greedy(hidden, rows) };
        let next = |(&row, document): (&usize, &Running)| {
            sampling.next(self.decoder, hidden, row, &document.prompt.ids, document.tokens.len())
        };
        rows.iter().zip(documents).map(next).collect()
    }

    /// Documents that need no further token; their pasts are freed.
    fn take_ended(&mut self) -> Result<Vec<Running<'a>>> {
        let mut ended = Vec::new();
        for index in (0..self.running.len()).rev() {
            if self.running[index].has_ended(self.tokenizer)? {
                self.pasts.swap_remove(index);
                ended.push(self.running.swap_remove(index));
            }
        }
        Ok(ended)
    }
}

impl Running<'_> {
    /// At an end of text, at its limit, or at a stop string.
    fn has_ended(&self, tokenizer: &Tokenizer) -> Result<bool> {
        let is_end = self.tokens.last().is_some_and(|token| tokenizer.eos().contains(token));
        Ok(is_end || self.tokens.len() >= self.prompt.max_tokens || self.shows_stop(tokenizer)?)
    }

    /// Whether a stop string appeared, looked for where the newest token could have completed one.
    fn shows_stop(&self, tokenizer: &Tokenizer) -> Result<bool> {
        let longest = self.prompt.stop.iter().map(String::len).max().unwrap_or(0); // a token is a byte or more
        let tail = &self.tokens[self.tokens.len().saturating_sub(longest + MARGIN)..];
        // Cut out of its text a tail may decode otherwise (without its first space), so the whole text confirms.
        Ok(self.is_stop(&tokenizer.decode(tail)?) && self.is_stop(&tokenizer.decode(&self.tokens)?))
    }

    fn is_stop(&self, text: &str) -> bool {
        self.prompt.stop.iter().any(|stop| text.contains(stop.as_str()))
    }
}

/// `text` up to the earliest occurrence of any stop string.
fn cut<'a>(text: &'a str, stop: &[String]) -> &'a str {
    let end = stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_the_earliest_stop() {
        let stop = ["Question:".to_owned(), ":".to_owned()];
        assert_eq!(cut("a: Question: b", &stop), "a");
        assert_eq!(cut("plain", &stop), "plain");
        assert_eq!(cut(":", &stop), "");
    }
}
