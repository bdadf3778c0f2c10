//! The engine that runs a checkpoint here.
//!
//! Documents are answered in waves: the requests of as many documents as fit are merged into one trie and walked through
//! the layers together; only the rows somebody asked about reach the head. While one wave is computed the next is
//! encoded and laid out.

use anyhow::{Context, Result, ensure};

use super::ahead::Ahead;
use super::budget::{Limits, Room};
use super::forecast::Forecast;
use super::generate::Generation;
use super::tokens::{Encoder, Pair};
use super::waves::{Encoded, Wave, Waves};
use super::{Done, Engine, Work};
use crate::model::decoder::{Decoder, Pasts, TokenScore};
use crate::model_id::ModelId;
use crate::request::Response;
use crate::tokenizer::Tokenizer;

/// A loaded model that answers requests.
pub struct LocalEngine<D> {
    id: ModelId,
    decoder: D,
    tokenizer: Tokenizer,
    /// What bounds the next answer.
    pub limits: Limits,
}

impl<D: Decoder> LocalEngine<D> {
    pub fn new(id: ModelId, decoder: D, tokenizer: Tokenizer, limits: Limits) -> LocalEngine<D> {
        LocalEngine { id, decoder, tokenizer, limits }
    }

    fn encoder(&self, work: &Work) -> Encoder<'_> {
        let max_length = self.decoder.config().max_position_embeddings;
        Encoder { tokenizer: &self.tokenizer, protocol: work.protocol, max_length }
    }
}

impl<D: Decoder> Engine for LocalEngine<D> {
    fn id(&self) -> &ModelId {
        &self.id
    }

    fn answer(&mut self, work: &Work, done: &mut Done) -> Result<()> {
        let encoder = self.encoder(work);
        let mut forecast = Forecast::new(work, |asked| encoder.limit(asked));
        let room = Room::beside(self.decoder.footprint(), self.decoder.held(), work, self.limits)?;
        let room = room.apart_after(self.decoder.config().short_length());
        let (scorings, generations) = work.kinds();
        if !generations.is_empty() {
            self.tokenizer.check_generation()?;
        }
        let encode = |document: usize| Ok(Encoded { document, pairs: encoder.pairs(work.documents[document])? });
        let waves = Waves::new(Ahead::new(scorings.into_iter(), encode), room);
        self.score(waves, &mut forecast, done)?;

        let prompt = |document: usize| encoder.generation(document, work.documents[document]);
        let prompts = Ahead::new(generations.into_iter(), prompt);
        Generation::new(&self.decoder, &self.tokenizer, room, work).run(prompts, &mut forecast, done)
    }
}

impl<D: Decoder> LocalEngine<D> {
    fn score<I>(&self, mut waves: Waves<I>, forecast: &mut Forecast, done: &mut Done) -> Result<()>
    where
        I: Iterator<Item = Result<Encoded>> + Send,
    {
        let mut next = waves.next();
        while let Some(wave) = next {
            let wave = wave?;
            let (scores, following) = rayon::join(|| self.walk(&wave), || waves.next());
            deliver(&wave, scores?, forecast, done)?;
            next = following;
        }
        Ok(())
    }

    fn walk(&self, wave: &Wave) -> Result<Vec<TokenScore>> {
        let hidden = self.decoder.walk(&wave.laid.packed, Pasts::None)?;
        self.decoder.score(&hidden, &wave.wanted())
    }
}

fn deliver(wave: &Wave, scores: Vec<TokenScore>, forecast: &mut Forecast, done: &mut Done) -> Result<()> {
    let mut scores = scores.into_iter();
    for placed in &wave.documents {
        let responses: Result<Vec<Response>> =
            placed.encoded.pairs.iter().map(|pair| response(pair, &mut scores)).collect();
        forecast.read(placed.encoded.document, placed.adds);
        done(placed.encoded.document, responses?)?;
    }
    ensure!(scores.next().is_none(), "every score belongs to a request");
    Ok(())
}

fn response(pair: &Pair, scores: &mut impl Iterator<Item = TokenScore>) -> Result<Response> {
    let (mut sum, mut is_greedy) = (0.0, true);
    for _ in pair.continuation() {
        let score = scores.next().context("every scored token has a score")?;
        sum += score.log_probability;
        is_greedy &= score.is_greedy;
    }
    Ok(Response::LogLikelihood { sum, tokens: pair.continuation().to_vec(), is_greedy })
}
