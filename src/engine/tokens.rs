//! From a request's strings to the tokens a model sees: where the context ends, what is cut, what is scored.
//! `tasks/protocol.md`, section 5; lm-evaluation-harness, `lm_eval/api/model.py` (`_encode_pair`) and `models/huggingface.py`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use crate::protocol::Protocol;
use crate::python;
use crate::request::Request;
use crate::tokenizer::Tokenizer;

/// A scored pair as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Context and continuation, already cut from the left.
    ids: Vec<u32>,
    /// Where the continuation begins; never 0, and never the end.
    scored_from: usize,
}

impl Pair {
    /// A context and a continuation of at least one token each.
    pub fn new(context: &[u32], continuation: &[u32]) -> Pair {
        debug_assert!(!context.is_empty() && !continuation.is_empty());
        Pair { scored_from: context.len(), ids: [context, continuation].concat() }
    }

    /// What the model sees before the continuation.
    pub fn context(&self) -> &[u32] {
        &self.ids[..self.scored_from]
    }

    /// What is scored.
    pub fn continuation(&self) -> &[u32] {
        &self.ids[self.scored_from..]
    }

    /// All tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What the model has to see: all but the last token, of which only the probability is wanted.
    pub fn fed(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// Indices into `fed` of the tokens after which each token of the continuation is expected.
    pub fn scored_after(&self) -> Range<usize> {
        self.scored_from - 1..self.ids.len() - 1
    }
}

/// What a generation begins with, as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt<'a> {
    /// The document's place in the work.
    pub document: usize,
    pub ids: Vec<u32>,
    pub stop: &'a [String],
    pub max_tokens: usize,
    /// How many of the first new tokens do not count.
    pub lost: usize,
}

impl Prompt<'_> {
    /// Tokens that the sequence may come to.
    pub fn capacity(&self) -> usize {
        self.ids.len() + self.max_tokens
    }
}

/// Encodes requests for one model; the contexts of one document's requests are encoded once.
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Without one no special tokens are added.
    pub protocol: Option<Protocol>,
    /// The model's `max_position_embeddings`.
    pub max_length: usize,
}

impl Encoder<'_> {
    /// The pairs of a document's log-likelihood requests, in order.
    pub fn pairs(&self, requests: &[Request]) -> Result<Vec<Pair>> {
        let mut contexts: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut pairs = Vec::with_capacity(requests.len());
        for request in requests {
            let Request::LogLikelihood { context, continuation } = request else {
                bail!("a document mixes log-likelihood and generation requests");
            };
            pairs.push(self.pair(context, continuation, &mut contexts)?);
        }
        Ok(pairs)
    }

    fn pair<'r>(
        &self,
        context: &'r str,
        continuation: &str,
        contexts: &mut HashMap<&'r str, Vec<u32>>,
    ) -> Result<Pair> {
        if context.is_empty() {
            let scored = self.tokenizer.encode(continuation, false)?;
            ensure!(!scored.is_empty(), "the continuation {continuation:?} has no token");
            return self.cut(Pair::new(&[self.empty_context()?], &scored));
        }
        // Trailing whitespace belongs to the continuation: a tokenizer would merge it with what follows.
        let stripped = python::rstrip(context);
        let whole = self.tokenizer.encode(&format!("{context}{continuation}"), self.special_tokens())?;
        let before = match contexts.entry(stripped) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.tokenizer.encode(stripped, self.special_tokens())?),
        };
        ensure!(
            !before.is_empty(),
            "the context {context:?} has no token after which its continuation could be scored"
        );
        // Cut by count, not by comparing tokens: where the boundary tokenises differently the harness does not care.
        let Some(scored) = whole.get(before.len()..).filter(|scored| !scored.is_empty()) else {
            bail!("the continuation {continuation:?} adds no token to its context");
        };
        self.cut(Pair::new(before, scored))
    }

    /// Cut from the left to `max_length + 1` tokens, the last of which is scored but never fed.
    fn cut(&self, mut pair: Pair) -> Result<Pair> {
        let scored = pair.continuation().len();
        if scored > self.max_length {
            bail!("a continuation of {scored} tokens exceeds the model's {}", self.max_length);
        }
        let excess = pair.ids.len().saturating_sub(self.max_length + 1);
        pair.ids.drain(..excess);
        pair.scored_from -= excess;
        Ok(pair)
    }

    /// The prompt of document `document`, which asks for one generation.
    pub fn generation<'r>(&self, document: usize, requests: &'r [Request]) -> Result<Prompt<'r>> {
        let [Request::Generate { context, stop, max_tokens }] = requests else {
            bail!("a document asks for more than one generation");
        };
        let (ids, cut) = self.cut_prompt(context, *max_tokens)?;
        let lost = match self.protocol {
            // The harness takes what follows the prompt's length before it was cut.
            Some(Protocol::LeaderboardV1) => cut,
            Some(Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm) | None => 0,
        };
        let max_tokens = self.most_new_tokens(ids.len(), *max_tokens);
        Ok(Prompt { document, ids, stop, max_tokens, lost })
    }

    /// How many new tokens a text may have of which `asked` were asked for.
    pub fn limit(&self, asked: usize) -> usize {
        self.tokenizer.limit(self.protocol, asked)
    }

    /// And how many after a prompt of that length.
    pub fn most_new_tokens(&self, prompt: usize, asked: usize) -> usize {
        self.limit(asked).min(self.max_length - prompt)
    }

    /// The prompt of a generation, cut from the left so that `max_tokens` more fit.
    pub fn prompt(&self, context: &str, max_tokens: usize) -> Result<Vec<u32>> {
        Ok(self.cut_prompt(context, max_tokens)?.0)
    }

    /// And how many tokens were cut.
    fn cut_prompt(&self, context: &str, max_tokens: usize) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.tokenizer.encode(context, self.special_tokens())?;
        let room = self.max_length.checked_sub(max_tokens).filter(|&room| room > 0);
        let room = room.with_context(|| {
            format!("the model's {} positions leave no room for {max_tokens} new tokens", self.max_length)
        })?;
        let cut = ids.len().saturating_sub(room);
        ids.drain(..cut);
        if ids.is_empty() {
            ids.push(self.empty_context()?);
        }
        Ok((ids, cut))
    }

    fn empty_context(&self) -> Result<u32> {
        let bos = self.tokenizer.bos().filter(|_| self.special_tokens());
        bos.or(self.tokenizer.eos_token()).context("the tokenizer has neither a BOS nor an EOS token")
    }

    fn special_tokens(&self) -> bool {
        self.protocol.is_some_and(Protocol::special_tokens)
    }
}
