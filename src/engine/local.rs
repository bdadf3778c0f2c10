//! The engine that runs a checkpoint here.
//!
//! Documents are answered in waves: the requests of as many documents as fit a budget of distinct tokens are merged
//! into one trie and walked through the layers together; only the rows somebody asked about reach the head.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::tokens::{Encoder, Pair};
use super::trie::{Path, Trie};
use super::{Done, Engine, Work, generate};
use crate::model::decoder::{Decoder, Pasts, TokenScore, Wanted};
use crate::model_id::ModelId;
use crate::progress::Progress;
use crate::request::{Request, Response};
use crate::tokenizer::Tokenizer;

/// Distinct tokens walked at once. Enough to keep the products large; hidden states and scores stay in megabytes.
const WAVE_TOKENS: usize = 4096;

/// A loaded model that answers requests.
pub struct LocalEngine<D> {
    id: ModelId,
    decoder: D,
    tokenizer: Tokenizer,
}

impl<D: Decoder> LocalEngine<D> {
    pub fn new(id: ModelId, decoder: D, tokenizer: Tokenizer) -> LocalEngine<D> {
        LocalEngine { id, decoder, tokenizer }
    }

    fn encoder(&self, work: &Work) -> Encoder<'_> {
        let max_length = self.decoder.config().max_position_embeddings;
        Encoder { tokenizer: &self.tokenizer, special_tokens: work.special_tokens, max_length }
    }
}

impl<D: Decoder> Engine for LocalEngine<D> {
    fn id(&self) -> &ModelId {
        &self.id
    }

    fn answer(&mut self, work: &Work, done: &mut Done) -> Result<()> {
        let (generations, scorings): (Vec<usize>, Vec<usize>) = (0..work.documents.len())
            .partition(|&index| matches!(work.documents[index][..], [Request::Generate { .. }]));
        self.score(work, &scorings, done)?;
        let encoder = self.encoder(work);
        generate::generate(&self.decoder, &encoder, work, &generations, done)
    }
}

/// A document's pairs and its place in the work.
struct Encoded {
    document: usize,
    pairs: Vec<Pair>,
}

impl<D: Decoder> LocalEngine<D> {
    fn score(&self, work: &Work, documents: &[usize], done: &mut Done) -> Result<()> {
        let encoder = self.encoder(work);
        if documents.is_empty() {
            return Ok(());
        }
        let encoded: Result<Vec<Encoded>> = documents
            .par_iter()
            .map(|&document| {
                let pairs = encoder.pairs(&work.documents[document]);
                Ok(Encoded {
                    document,
                    pairs: pairs.with_context(|| format!("document {document} of the evaluation"))?,
                })
            })
            .collect();
        let waves = waves(encoded?);
        work.progress.add_total(waves.iter().map(|wave| wave.trie.len() as u64).sum());
        for wave in waves {
            self.answer_wave(wave, &work.progress, done)?;
        }
        Ok(())
    }

    fn answer_wave(&self, wave: Wave, progress: &Progress, done: &mut Done) -> Result<()> {
        let laid = wave.trie.lay_out();
        let hidden = self.decoder.walk(&laid.packed, Pasts::None)?;
        let requests = || wave.documents.iter().flat_map(|(encoded, paths)| encoded.pairs.iter().zip(paths));
        let wanted: Vec<Wanted> = requests()
            .flat_map(|(pair, path)| {
                let first = pair.context.len() - 1; // the row before the continuation's first token
                pair.continuation
                    .iter()
                    .enumerate()
                    .map(|(offset, &token)| Wanted { row: laid.row(path, first + offset), token })
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut scores = self.decoder.score(&hidden, &wanted)?.into_iter();
        progress.advance(laid.packed.len() as u64);
        for (encoded, _) in &wave.documents {
            let responses = encoded.pairs.iter().map(|pair| response(pair, &mut scores)).collect();
            done(encoded.document, responses)?;
        }
        ensure!(scores.next().is_none(), "every score belongs to a request");
        Ok(())
    }
}

fn response(pair: &Pair, scores: &mut impl Iterator<Item = TokenScore>) -> Response {
    let scores: Vec<TokenScore> = scores.take(pair.continuation.len()).collect();
    Response::LogLikelihood {
        sum: scores.iter().map(|score| score.log_probability).sum(),
        tokens: pair.continuation.to_vec(),
        is_greedy: scores.iter().all(|score| score.is_greedy),
    }
}

/// Documents that are walked together.
#[derive(Default)]
struct Wave {
    trie: Trie,
    documents: Vec<(Encoded, Vec<Path>)>,
}

/// Documents in their order, as many to a wave as fit the budget (at least one).
fn waves(encoded: Vec<Encoded>) -> Vec<Wave> {
    let mut waves = vec![Wave::default()];
    for encoded in encoded {
        let longest: usize = encoded.pairs.iter().map(Pair::count).max().unwrap_or(0);
        if waves.last().is_some_and(|wave| !wave.trie.is_empty() && wave.trie.len() + longest > WAVE_TOKENS) {
            waves.push(Wave::default());
        }
        let wave = waves.last_mut().expect("there is always a wave");
        let paths = encoded.pairs.iter().map(|pair| wave.trie.insert(pair.ids().take(pair.count() - 1))).collect();
        wave.documents.push((encoded, paths));
    }
    waves
}
