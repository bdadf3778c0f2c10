//! From a request's strings to the tokens a model sees: where the context ends, what is cut, what is scored.
//! `protocol.md`, section 5; lm-evaluation-harness, `lm_eval/api/model.py` (`_encode_pair`) and `models/huggingface.py`.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::python;
use crate::request::Request;
use crate::tokenizer::Tokenizer;

/// A scored pair as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// What the model sees before the continuation, already cut from the left.
    pub context: Arc<[u32]>,
    /// What is scored.
    pub continuation: Arc<[u32]>,
}

impl Pair {
    /// All tokens in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.context.iter().chain(self.continuation.iter()).copied()
    }

    /// Tokens in all; at least one of them is scored.
    pub fn count(&self) -> usize {
        self.context.len() + self.continuation.len()
    }
}

/// Encodes requests for one model; the contexts of one document's requests are encoded once.
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub special_tokens: bool,
    /// The model's `max_position_embeddings`.
    pub max_length: usize,
}

impl Encoder<'_> {
    /// The pairs of a document's log-likelihood requests, in order.
    pub fn pairs(&self, requests: &[Request]) -> Result<Vec<Pair>> {
        let mut contexts: HashMap<&str, Arc<[u32]>> = HashMap::new();
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
        contexts: &mut HashMap<&'r str, Arc<[u32]>>,
    ) -> Result<Pair> {
        if context.is_empty() {
            let continuation = self.tokenizer.encode(continuation, false)?;
            return self.cut(Arc::from([self.empty_context()?]), continuation.into());
        }
        // Trailing whitespace belongs to the continuation: a tokenizer would merge it with what follows.
        let stripped = python::rstrip(context);
        let whole = self.tokenizer.encode(&format!("{context}{continuation}"), self.special_tokens)?;
        let context: Arc<[u32]> = match contexts.get(stripped) {
            Some(known) => known.clone(),
            None => self.tokenizer.encode(stripped, self.special_tokens)?.into(),
        };
        contexts.insert(stripped, context.clone());
        // Cut by count, not by comparing tokens: where the boundary tokenises differently the harness does not care.
        let Some(scored) = whole.get(context.len()..).filter(|scored| !scored.is_empty()) else {
            bail!("the continuation {continuation:?} adds no token to its context");
        };
        self.cut(context, scored.into())
    }

    /// Cut from the left to `max_length + 1` tokens, the last of which is scored but never fed.
    fn cut(&self, context: Arc<[u32]>, continuation: Arc<[u32]>) -> Result<Pair> {
        if continuation.len() > self.max_length {
            bail!("a continuation of {} tokens exceeds the model's {}", continuation.len(), self.max_length);
        }
        let excess = (context.len() + continuation.len()).saturating_sub(self.max_length + 1);
        let context = if excess == 0 { context } else { context[excess..].into() };
        Ok(Pair { context, continuation })
    }

    /// The prompt of a generation, cut from the left so that `max_tokens` more fit.
    pub fn prompt(&self, context: &str, max_tokens: usize) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(context, self.special_tokens)?;
        let room = self.max_length.checked_sub(max_tokens).filter(|&room| room > 0);
        let room = room.with_context(|| {
            format!("the model's {} positions leave no room for {max_tokens} new tokens", self.max_length)
        })?;
        ids.drain(..ids.len().saturating_sub(room));
        if ids.is_empty() {
            ids.push(self.empty_context()?);
        }
        Ok(ids)
    }

    fn empty_context(&self) -> Result<u32> {
        let bos = self.tokenizer.bos().filter(|_| self.special_tokens);
        bos.or(self.tokenizer.eos().first().copied()).context("the tokenizer has neither a BOS nor an EOS token")
    }
}
