//! Generation, greedy or sampled: prompts are read together, as one trie, then all running documents take each step together; a
//! finished document makes room for those that wait.
//!
//! Where a model rotates long sequences otherwise, a document that becomes one is read again whole, as transformers drops
//! its cache then.

use anyhow::Result;

use super::admission::Admission;
use super::budget::Room;
use super::ends::{Ends, Stop};
use super::forecast::Forecast;
use super::penalty::penalise;
use super::prefixes::Prefixes;
use super::sampling::Sampling;
use super::tokens::Prompt;
use super::trie::Laid;
use super::{Done, Work};
use crate::model::decoder::{Decoder, Pasts};
use crate::model::packed::Packed;
use crate::request::Response;
use crate::tokenizer::Tokenizer;

/// Rows of logits held at once (10 MB where the vocabulary has 150,000 tokens).
const LOGIT_ROWS: usize = 16;

/// Documents that decode together.
pub struct Generation<'a, D: Decoder> {
    decoder: &'a D,
    room: Room,
    ends: Ends<'a>,
    /// The likeliest token is taken without it.
    sampling: Option<Sampling>,
    /// What makes tokens less likely that stand in the text already, if the model's generation config says so.
    penalty: Option<f32>,
    running: Vec<Running<'a>>,
    /// Of each running document.
    pasts: Vec<D::Past>,
}

/// A document being generated.
struct Running<'a> {
    prompt: Prompt<'a>,
    stops: Vec<Stop>,
    tokens: Vec<u32>,
}

impl<'a, D: Decoder> Generation<'a, D> {
    pub fn new(decoder: &'a D, tokenizer: &'a Tokenizer, room: Room, work: &Work) -> Generation<'a, D> {
        let (ends, penalty) = (Ends::new(tokenizer, work.protocol), tokenizer.repetition_penalty());
        Generation { decoder, room, ends, sampling: work.sampling, penalty, running: Vec::new(), pasts: Vec::new() }
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
                self.read(batch.into_iter().map(|prompt| Running::new(prompt, self.ends)).collect::<Result<_>>()?)?;
            }
            if self.running.is_empty() {
                return Ok(());
            }
            for document in self.take_ended()? {
                let text = self.ends.text(document.kept(), &document.stops)?;
                let Running { prompt, tokens, .. } = document;
                admission.release(&prompt);
                forecast.spared(prompt.max_tokens - tokens.len());
                done(prompt.document, vec![Response::Generate { text, tokens }])?;
            }
            forecast.generated(self.running.len());
            self.step()?;
        }
    }

    /// Reads documents so far as one trie and takes the next token of each. They run from then on.
    fn read(&mut self, documents: Vec<Running<'a>>) -> Result<()> {
        let ids: Vec<Vec<u32>> =
            documents.iter().map(|Running { prompt, tokens, .. }| [&prompt.ids[..], tokens].concat()).collect();
        let mut laid = Laid::of(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>(), self.room.short_length);
        let rows: Vec<usize> = ids.iter().enumerate().map(|(at, ids)| laid.row(at, ids.len() - 1)).collect();
        laid.packed.read_only(rows.clone());
        let mut pasts = Vec::with_capacity(documents.len());
        for Running { prompt, .. } in &documents {
            pasts.push(self.decoder.past(prompt.capacity())?);
        }
        let hidden = self.decoder.walk(&laid.packed, Pasts::Begin { pasts: &mut pasts, leaves: &laid.leaves })?;
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
        if self.sampling.is_none() && self.penalty.is_none() {
            return self.decoder.greedy(hidden, rows);
        }
        let mut next = Vec::with_capacity(rows.len());
        for (rows, documents) in rows.chunks(LOGIT_ROWS).zip(documents.chunks(LOGIT_ROWS)) {
            let logits = self.decoder.logits(hidden, rows)?;
            next.extend(logits.into_iter().zip(documents).map(|(logits, document)| self.choose(logits, document)));
        }
        Ok(next)
    }

    /// The next token of `document`, of which these are the logits.
    fn choose(&self, mut logits: Vec<f32>, document: &Running) -> u32 {
        let Running { prompt, tokens, .. } = document;
        if let Some(penalty) = self.penalty {
            penalise(&mut logits, prompt.ids.iter().chain(tokens).copied(), penalty);
        }
        match self.sampling {
            Some(sampling) => sampling.next(&logits, &prompt.ids, tokens.len()),
            None => likeliest(&logits),
        }
    }

    /// Documents that need no further token; their pasts are freed.
    fn take_ended(&mut self) -> Result<Vec<Running<'a>>> {
        let mut ended = Vec::new();
        for index in (0..self.running.len()).rev() {
            if self.running[index].has_ended(self.ends)? {
                self.pasts.swap_remove(index);
                ended.push(self.running.swap_remove(index));
            }
        }
        Ok(ended)
    }
}

impl<'a> Running<'a> {
    fn new(prompt: Prompt<'a>, ends: Ends) -> Result<Running<'a>> {
        Ok(Running { stops: ends.stops(prompt.stop)?, prompt, tokens: Vec::new() })
    }

    /// The new tokens that become text.
    fn kept(&self) -> &[u32] {
        &self.tokens[self.prompt.lost.min(self.tokens.len())..]
    }

    /// At its limit, where the harness sees an end, or where nothing more would change its text.
    fn has_ended(&self, ends: Ends) -> Result<bool> {
        Ok(self.tokens.len() >= self.prompt.max_tokens
            || ends.is_seen(&self.tokens, &self.stops)?
            || ends.is_settled(self.kept(), &self.stops)?)
    }
}

/// The token of the largest logit, the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best }) as u32
}
