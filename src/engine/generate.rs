//! Greedy generation: prompts are read once, then all running documents take each step together; a finished document
//! makes room for the next.
//!
//! Looking for stop strings while generating only saves work: the final cut, at the earliest occurrence of any, decides
//! (`protocol.md`, section 4.6).

use std::collections::VecDeque;

use anyhow::{Result, bail};

use super::tokens::Encoder;
use super::{Done, Work};
use crate::model::decoder::{Decoder, Pasts};
use crate::model::packed::Packed;
use crate::request::{Request, Response};

/// Documents that decode together. Each holds its keys and values: about 60 MB for SmolLM2-135M at 1,300 tokens.
const RUNNING: usize = 32;

/// A document being generated.
struct Running<'a> {
    document: usize,
    stop: &'a [String],
    max_tokens: usize,
    tokens: Vec<u32>,
}

/// Answers the generation requests at `documents` of `work`.
pub fn generate<D: Decoder>(
    decoder: &D,
    encoder: &Encoder,
    work: &Work,
    documents: &[usize],
    done: &mut Done,
) -> Result<()> {
    let mut waiting: VecDeque<usize> = documents.iter().copied().collect();
    let mut running: Vec<Running> = Vec::new();
    let mut pasts: Vec<D::Past> = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < RUNNING
            && let Some(document) = waiting.pop_front()
        {
            let (next, past) = start(decoder, encoder, work, document)?;
            running.push(next);
            pasts.push(past);
        }
        for index in (0..running.len()).rev() {
            if let Some(text) = running[index].finished(encoder)? {
                pasts.swap_remove(index);
                let Running { document, tokens, .. } = running.swap_remove(index);
                done(document, vec![Response::Generate { text, tokens }])?;
            }
        }
        step(decoder, &mut running, &mut pasts)?;
        work.progress.advance(running.len() as u64);
    }
    Ok(())
}

/// Reads a document's prompt and takes its first token.
fn start<'a, D: Decoder>(
    decoder: &D,
    encoder: &Encoder,
    work: &Work<'a>,
    document: usize,
) -> Result<(Running<'a>, D::Past)> {
    let [Request::Generate { context, stop, max_tokens }] = &work.documents[document][..] else {
        bail!("document {document} does not ask for one generation");
    };
    let ids = encoder.prompt(context, *max_tokens)?;
    work.progress.add_total((ids.len() + max_tokens) as u64);
    let mut past = decoder.past(ids.len() + max_tokens)?;
    let begin = Pasts::Begin { pasts: std::slice::from_mut(&mut past), leaves: &[0] };
    let hidden = decoder.walk(&Packed::rows(&[&ids]), begin)?;
    let tokens = decoder.greedy(&hidden, &[ids.len() - 1])?;
    work.progress.advance(ids.len() as u64);
    Ok((Running { document, stop, max_tokens: *max_tokens, tokens }, past))
}

/// One more token for every running document.
fn step<D: Decoder>(decoder: &D, running: &mut [Running], pasts: &mut [D::Past]) -> Result<()> {
    if running.is_empty() {
        return Ok(());
    }
    let mut packed = Packed::default();
    for (document, past) in running.iter().zip(pasts.iter()) {
        let last = document.tokens.last().expect("a running document has its first token");
        packed.push_at(&[*last], decoder.past_len(past));
    }
    let hidden = decoder.walk(&packed, Pasts::Continue(pasts))?;
    let rows: Vec<usize> = (0..running.len()).collect();
    for (document, token) in running.iter_mut().zip(decoder.greedy(&hidden, &rows)?) {
        document.tokens.push(token);
    }
    Ok(())
}

impl Running<'_> {
    /// The cut text, once the document has ended, reached its limit or shown a stop string.
    fn finished(&self, encoder: &Encoder) -> Result<Option<String>> {
        let ends = encoder.tokenizer.eos();
        let ended = self.tokens.last().is_some_and(|token| ends.contains(token));
        let text = encoder.tokenizer.decode(&self.tokens)?;
        let stopped = self.stop.iter().any(|stop| text.contains(stop.as_str()));
        let full = self.tokens.len() >= self.max_tokens;
        Ok((ended || stopped || full).then(|| cut(&text, self.stop).to_owned()))
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
