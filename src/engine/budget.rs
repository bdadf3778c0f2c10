//! How much memory an evaluation may use, and what that leaves for tokens.
//!
//! A budget is a promise about the peak resident memory of the process. What is held already is the larger of what the
//! system counts and what model and requests are known to need (a mapped weight counts only once it was touched); the
//! rest is divided by what the decoder says a token costs.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::Work;
use crate::memory::Memory;
use crate::model::decoder::Footprint;
use crate::request::Request;

/// The program itself, its tokenizer, its thread stacks.
const PROGRAM: u64 = 96 << 20;
/// What the store remembers of a document and of each of its requests.
const STORED: u64 = 1024;
/// Tokens of a wave outside the decoder: every request's own copy, two waves at once, and the layout.
const LAYOUT: u64 = 512;

/// What bounds a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub memory: Memory,
    /// Distinct tokens walked at once where memory allows it.
    pub wave_tokens: usize,
    /// Documents that decode together where memory allows it.
    pub running: usize,
}

impl Limits {
    /// Waves so large that cut prefixes hardly count, and small enough that little is lost when a run is interrupted.
    /// (Products run at full speed from some hundred rows on.)
    pub fn of(memory: Memory) -> Limits {
        Limits { memory, wave_tokens: 40_960, running: 256 }
    }
}

/// What a budget leaves for tokens.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub limits: Limits,
    /// Sequences of more tokens share nothing with others.
    pub short_length: usize,
    footprint: Footprint,
    /// Bytes that are not for tokens.
    held: u64,
}

impl Room {
    /// What `limits` leave beside a loaded decoder and the requests of `work`, and beside what is `held` as the system counts
    /// it. An error if that is nothing.
    pub fn beside(footprint: Footprint, held: Option<Memory>, work: &Work, limits: Limits) -> Result<Room> {
        let known = known(footprint, work);
        // More, if the system counts more: memory that loading freed stays with the process.
        let held = held.map_or(known, |held| held.0.max(known));
        Room::new(footprint, held, limits)
    }

    /// As `beside`, of a decoder that is not loaded.
    pub fn planned(footprint: Footprint, work: &Work, limits: Limits) -> Result<Room> {
        Room::new(footprint, known(footprint, work), limits)
    }

    pub fn new(footprint: Footprint, held: u64, limits: Limits) -> Result<Room> {
        let room = Room { limits, short_length: usize::MAX, footprint, held };
        if room.most_tokens() == 0 {
            bail!(
                "{} of memory can't hold the model and its requests, which need {}; give more with --memory",
                limits.memory,
                Memory(held + room.token_bytes())
            );
        }
        Ok(room)
    }

    /// For a model whose sequences of more than `length` tokens share nothing with others.
    pub fn apart_after(self, length: usize) -> Room {
        Room { short_length: length, ..self }
    }

    /// Bytes for tokens.
    pub fn free(&self) -> u64 {
        self.limits.memory.0.saturating_sub(self.held)
    }

    fn token_bytes(&self) -> u64 {
        self.footprint.per_token as u64 + LAYOUT
    }

    /// Bytes that a wave of `tokens` needs.
    pub fn wave_bytes(&self, tokens: usize) -> u64 {
        tokens as u64 * self.token_bytes()
    }

    /// Bytes that a sequence needs while it is generated: its past with room for `tokens`, and its next token.
    pub fn past_bytes(&self, tokens: usize) -> u64 {
        tokens as u64 * self.footprint.per_past_token as u64 + self.token_bytes()
    }

    /// Bytes that a prompt of `read` tokens needs that may come to `tokens`: where it may become long, it is read again.
    pub fn generation_bytes(&self, read: usize, tokens: usize) -> u64 {
        let may_turn = read <= self.short_length && tokens > self.short_length;
        self.past_bytes(tokens) + if may_turn { self.wave_bytes(tokens) } else { 0 }
    }

    /// Tokens that one wave can have.
    fn most_tokens(&self) -> usize {
        usize::try_from(self.free() / self.token_bytes()).unwrap_or(usize::MAX)
    }

    /// Tokens that a wave is filled to.
    pub fn wave_tokens(&self) -> usize {
        self.limits.wave_tokens.min(self.most_tokens())
    }

    /// The peak: a full wave, and beside it, as far as there is room, `running` pasts of `capacity` tokens.
    pub fn peak(&self, running: usize, capacity: usize) -> Memory {
        let wave = self.wave_bytes(self.wave_tokens());
        let pasts = running as u64 * self.past_bytes(capacity);
        Memory(self.held + (wave + pasts).min(self.free()))
    }

    /// An error if a document that needs `bytes` at once does not fit.
    pub fn check(&self, document: usize, bytes: u64) -> Result<()> {
        ensure!(
            bytes <= self.free(),
            "document {document} of the evaluation does not fit into {} of memory; together with the model it needs {}; \
             give more with --memory",
            self.limits.memory,
            Memory(self.held + bytes)
        );
        Ok(())
    }
}

/// What model, program and requests are known to need.
fn known(footprint: Footprint, work: &Work) -> u64 {
    footprint.fixed as u64 + PROGRAM + work.documents.iter().map(|asked| text(asked)).sum::<u64>()
}

/// Bytes of a document's strings (requests share one context) and of what is kept of its answers.
fn text(requests: &[Request]) -> u64 {
    let (mut bytes, mut before): (usize, Option<&Arc<str>>) = (0, None);
    for request in requests {
        let (context, more) = match request {
            Request::LogLikelihood { context, continuation } => (context, continuation.len()),
            Request::Generate { context, .. } => (context, 0),
        };
        bytes += more;
        if !before.is_some_and(|before| Arc::ptr_eq(before, context)) {
            bytes += context.len();
        }
        before = Some(context);
    }
    bytes as u64 + STORED * (1 + requests.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOTPRINT: Footprint = Footprint { fixed: 1000, per_token: 9_488, per_past_token: 100 }; // 10,000 a token

    #[test]
    fn what_is_left_is_divided_by_what_a_token_costs() {
        let limits = Limits { memory: Memory(1_000_000), wave_tokens: 50, running: 4 };
        let room = Room::new(FOOTPRINT, 200_000, limits).unwrap();
        assert_eq!((room.free(), room.most_tokens(), room.wave_tokens()), (800_000, 80, 50));
        assert_eq!((room.peak(0, 0), room.peak(2, 100)), (Memory(700_000), Memory(740_000)));
        assert_eq!(room.peak(1000, 100), Memory(1_000_000));
        assert_eq!(Room::new(FOOTPRINT, 600_000, limits).unwrap().wave_tokens(), 40);
        assert_eq!(room.past_bytes(7), 10_700);
        let apart = room.apart_after(5);
        assert_eq!((apart.generation_bytes(6, 7), apart.generation_bytes(5, 7)), (10_700, 80_700));
        assert_eq!(apart.generation_bytes(3, 5), 10_500);
        room.check(3, 800_000).unwrap();
        let error = room.check(3, 800_001).unwrap_err().to_string();
        assert!(error.contains("document 3") && error.contains("--memory"), "{error}");
    }

    #[test]
    fn too_small_a_budget_says_how_much_is_needed() {
        let limits = Limits::of(Memory(64 << 20));
        let error = Room::new(FOOTPRINT, 2 << 30, limits).unwrap_err().to_string();
        assert!(error.contains("64 MiB") && error.contains("2.0 GiB") && error.contains("--memory"), "{error}");
    }
}
