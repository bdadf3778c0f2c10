//! What an evaluation comes to, counted before it: the same encoding, the same waves, and no weights.

use std::collections::HashSet;

use anyhow::Result;

use super::Work;
use super::ahead::Ahead;
use super::budget::Room;
use super::cost::Cost;
use super::prefixes::Prefixes;
use super::tokens::{Encoder, Pair};
use super::waves::{Encoded, Placed, Wave, Waves};
use crate::protocol::Protocol;
use crate::request::Request;

/// The work of one task, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    pub documents: usize,
    pub requests: usize,
    /// Tokens that the protocol's harness sends through the model, before anything is generated.
    pub harness_tokens: usize,
    /// Different tokens, where those with all the same before them are one.
    pub distinct_tokens: usize,
    /// Tokens that are computed: the distinct ones, and prefixes again that the end of a wave cut.
    pub computed_tokens: usize,
    /// Generations, and the tokens they may come to.
    pub prompts: usize,
    pub most_new_tokens: usize,
    /// Tokens of the longest prompt with all that may follow it.
    pub longest_generation: usize,
    /// Floating-point operations, with as many new tokens as there may be.
    pub operations: f64,
}

/// Counts.
pub struct Planner<'a> {
    pub encoder: Encoder<'a>,
    pub cost: Cost,
    pub protocol: Protocol,
    pub room: Room,
}

impl Plan {
    /// This and another together.
    pub fn plus(self, other: Plan) -> Plan {
        Plan {
            documents: self.documents + other.documents,
            requests: self.requests + other.requests,
            harness_tokens: self.harness_tokens + other.harness_tokens,
            distinct_tokens: self.distinct_tokens + other.distinct_tokens,
            computed_tokens: self.computed_tokens + other.computed_tokens,
            prompts: self.prompts + other.prompts,
            most_new_tokens: self.most_new_tokens + other.most_new_tokens,
            longest_generation: self.longest_generation.max(other.longest_generation),
            operations: self.operations + other.operations,
        }
    }

    /// Tokens computed again, as a share of the distinct ones.
    pub fn overhead(&self) -> f64 {
        (self.computed_tokens as f64 - self.distinct_tokens as f64) / self.distinct_tokens.max(1) as f64
    }
}

impl Planner<'_> {
    /// A plan for each of `tasks`; document `d` of `work` belongs to task `task_of[d]`. A token that several tasks share
    /// counts with the first.
    pub fn count(&self, work: &Work, task_of: &[usize], tasks: usize) -> Result<Vec<Plan>> {
        let (scorings, generations) = work.kinds();
        if !generations.is_empty() {
            self.encoder.tokenizer.check_generation()?;
        }
        let mut plans = vec![Plan::default(); tasks];
        let mut seen = Prefixes::new(self.room.short_length);
        for documents in [scorings, generations] {
            let encode = |document: usize| self.encode(document, work.documents[document]);
            for wave in Waves::new(Ahead::new(documents.into_iter(), encode), self.room) {
                let wave = wave?;
                let operations = self.operations(&wave) / wave.laid.packed.len() as f64;
                for placed in &wave.documents {
                    let document = placed.encoded.document;
                    let plan = &mut plans[task_of[document]];
                    *plan = plan.plus(self.document(placed, work.documents[document], &mut seen));
                    plan.operations += operations * placed.adds as f64;
                }
                work.progress.advance(wave.documents.len() as u64);
            }
        }
        Ok(plans)
    }

    /// A prompt is what a pair with any continuation of one token would have the model see.
    fn encode(&self, document: usize, requests: &[Request]) -> Result<Encoded> {
        let pairs = match requests {
            [Request::Generate { context, max_tokens, .. }] => {
                vec![Pair::new(&self.encoder.prompt(context, *max_tokens)?, &[0])]
            }
            _ => self.encoder.pairs(requests)?,
        };
        Ok(Encoded { document, pairs })
    }

    fn operations(&self, wave: &Wave) -> f64 {
        let packed = &wave.laid.packed;
        self.cost.walk(packed, packed.read.as_ref().map_or(packed.len(), Vec::len))
    }

    fn document(&self, placed: &Placed, requests: &[Request], seen: &mut Prefixes) -> Plan {
        let pairs = &placed.encoded.pairs;
        let mut plan = Plan { documents: 1, requests: requests.len(), computed_tokens: placed.adds, ..Plan::default() };
        for (request, pair) in requests.iter().zip(pairs) {
            if let Request::Generate { max_tokens, .. } = request {
                let limit = self.encoder.most_new_tokens(pair.fed().len(), *max_tokens);
                plan.prompts += 1;
                plan.most_new_tokens += limit;
                plan.longest_generation = plan.longest_generation.max(pair.fed().len() + limit);
                plan.operations += self.cost.generation(pair.fed().len(), limit);
            }
        }
        plan.harness_tokens = harness_tokens(self.protocol, pairs);
        plan.distinct_tokens = pairs.iter().map(|pair| seen.insert(pair.fed())).sum();
        plan
    }
}

/// Tokens that the harness computes for one document's requests (`tasks/protocol.md`, sections 5 and 8): each whole, the
/// last token aside; leaderboard-v1 answers equal requests once, lm-eval those that differ in their last token only.
fn harness_tokens(protocol: Protocol, pairs: &[Pair]) -> usize {
    let answered_alike: fn(&Pair) -> &[u32] = match protocol {
        Protocol::LeaderboardV1 => Pair::ids,
        Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => Pair::fed,
    };
    let mut seen: HashSet<&[u32]> = HashSet::new();
    pairs.iter().filter(|pair| seen.insert(answered_alike(pair))).map(|pair| pair.fed().len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_harness_answers_other_requests_once() {
        let pair = |continuation: &[u32]| Pair::new(&[5, 6, 7], continuation);
        let pairs = [pair(&[1]), pair(&[2]), pair(&[1]), pair(&[1, 2])];
        // Contexts of 3 for [1] and [2], and 4 for [1, 2].
        assert_eq!(harness_tokens(Protocol::LeaderboardV1, &pairs), 3 + 3 + 4);
        assert_eq!(harness_tokens(Protocol::LmEvalLatest, &pairs), 3 + 4);
    }

    #[test]
    fn overhead_is_what_is_computed_again() {
        let plan = Plan { distinct_tokens: 200, computed_tokens: 205, ..Plan::default() };
        assert!((plan.overhead() - 0.025).abs() < 1e-12);
        assert_eq!(plan.plus(plan).computed_tokens, 410);
        assert_eq!(Plan::default().overhead(), 0.0);
    }
}
