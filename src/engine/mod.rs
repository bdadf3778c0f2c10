//! An engine answers requests. It is given all of an evaluation's documents at once, because knowing the whole work
//! is what lets it share prefixes and visit each layer once for many tokens; it reports documents as they finish.

mod admission;
mod ahead;
pub mod budget;
pub mod cost;
mod ends;
mod forecast;
mod generate;
pub mod local;
pub mod open;
mod penalty;
pub mod plan;
mod prefixes;
pub mod sampling;
pub mod scripted;
pub mod tokens;
mod trie;
mod waves;

use anyhow::Result;

use self::sampling::Sampling;
use crate::model_id::ModelId;
use crate::progress::Progress;
use crate::protocol::Protocol;
use crate::request::{Request, Response};

/// Everything one call has to answer.
pub struct Work<'a> {
    /// The requests of each document, in evaluation order.
    pub documents: &'a [&'a [Request]],
    /// Whose rules tokens and ends of texts follow; without one prompts carry no special tokens but those they spell.
    pub protocol: Option<Protocol>,
    /// How tokens are drawn; the likeliest is taken without it.
    pub sampling: Option<Sampling>,
    /// Counts tokens; the engine sets the total once it knows it.
    pub progress: Progress,
}

impl Work<'_> {
    /// Documents that are scored, and those that are generated.
    fn kinds(&self) -> (Vec<usize>, Vec<usize>) {
        let is_generation = |&document: &usize| matches!(self.documents[document], [Request::Generate { .. }]);
        let (generations, scorings) = (0..self.documents.len()).partition(is_generation);
        (scorings, generations)
    }
}

/// Called once per document, in any order, as soon as all its responses are there (in the order of its requests).
/// An error it returns ends the work.
pub type Done<'a> = dyn FnMut(usize, Vec<Response>) -> Result<()> + 'a;

/// Something that answers requests: a checkpoint run here, or a script for tests.
pub trait Engine {
    /// Everything that can change an answer.
    fn id(&self) -> &ModelId;

    /// Answers every document of `work`. A document that cannot be answered is an error, never an empty answer.
    fn answer(&mut self, work: &Work, done: &mut Done) -> Result<()>;
}
