//! Which waiting documents begin to be generated, and when.
//!
//! A running document holds its past, with room for all it may come to; while prompts are read they need a wave's memory
//! as well. Prompts are read in batches, since one alone would visit every layer alone; and where only a few fit beside
//! those that run, these take some more steps first.

use std::collections::VecDeque;

use anyhow::Result;

use super::budget::Room;
use super::prefixes::Prefixes;
use super::tokens::Prompt;

/// A batch is worth reading from this share of the running documents on.
const WORTH: usize = 8;

/// The queue before the decoder.
pub struct Admission<I, P> {
    prompts: I,
    room: Room,
    /// Taken from `prompts` and not admitted yet.
    waiting: VecDeque<P>,
    running: usize,
    /// Bytes that the pasts of running documents hold.
    held: u64,
}

/// The documents in front that fit, and what the next one did not fit into.
struct Fitting {
    count: usize,
    is_short_of_room: bool,
}

impl<'a, I: Iterator<Item = Result<Prompt<'a>>>> Admission<I, Prompt<'a>> {
    pub fn new(prompts: I, room: Room) -> Admission<I, Prompt<'a>> {
        Admission { prompts, room, waiting: VecDeque::new(), running: 0, held: 0 }
    }

    /// Documents to be read together, or none: no more wait, or too few fit. They count as running from here on.
    pub fn admit(&mut self) -> Result<Option<Vec<Prompt<'a>>>> {
        let Fitting { count, is_short_of_room } = self.fitting()?;
        let is_worth = !is_short_of_room || count * WORTH >= self.running;
        if count == 0 || !is_worth {
            return Ok(None);
        }
        let admitted: Vec<Prompt> = self.waiting.drain(..count).collect();
        self.running += count;
        self.held += admitted.iter().map(|prompt| bytes(&self.room, prompt)).sum::<u64>();
        Ok(Some(admitted))
    }

    /// A document that was admitted ended.
    pub fn release(&mut self, prompt: &Prompt) {
        self.running -= 1;
        self.held -= bytes(&self.room, prompt);
    }

    fn fitting(&mut self) -> Result<Fitting> {
        let (mut prefixes, mut held) = (Prefixes::new(self.room.short_length), self.held);
        let mut count = 0;
        while let Some(prompt) = self.look(count)? {
            held += bytes(&self.room, &prompt);
            prefixes.insert(&prompt.ids);
            let needed = held + self.room.wave_bytes(prefixes.len());
            if self.running + count == 0 {
                self.room.check(prompt.document, needed)?;
            } else if needed > self.room.free() || self.running + count == self.room.limits.running {
                return Ok(Fitting { count, is_short_of_room: true });
            } else if count > 0 && prefixes.len() > self.room.wave_tokens() {
                break;
            }
            count += 1;
        }
        Ok(Fitting { count, is_short_of_room: false })
    }

    /// The waiting prompt number `index`.
    fn look(&mut self, index: usize) -> Result<Option<Prompt<'a>>> {
        if index == self.waiting.len() {
            match self.prompts.next() {
                Some(prompt) => self.waiting.push_back(prompt?),
                None => return Ok(None),
            }
        }
        Ok(self.waiting.get(index).cloned())
    }
}

fn bytes(room: &Room, prompt: &Prompt) -> u64 {
    room.generation_bytes(prompt.ids.len(), prompt.capacity())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::budget::Limits;
    use crate::memory::Memory;
    use crate::model::decoder::Footprint;

    /// 1,000 bytes a token of a wave, 10 a token of a past, 100,000 in all.
    fn room(running: usize) -> Room {
        let footprint = Footprint { fixed: 0, per_token: 488, per_past_token: 10 };
        Room::new(footprint, 0, Limits { memory: Memory(100_000), wave_tokens: 50, running }).unwrap()
    }

    /// Prompts of `shared` tokens alike and `own` more, with 100 new tokens each.
    fn prompts<'a>(count: usize, shared: u32, own: u32) -> impl Iterator<Item = Result<Prompt<'a>>> {
        (0..count).map(move |document| {
            let own = (0..own).map(|index| 1000 + 100 * document as u32 + index);
            Ok(Prompt { document, ids: (0..shared).chain(own).collect(), stop: &[], max_tokens: 100, lost: 0 })
        })
    }

    fn admitted<'a>(admission: &mut Admission<impl Iterator<Item = Result<Prompt<'a>>>, Prompt<'a>>) -> Vec<usize> {
        let batch = admission.admit().unwrap().unwrap_or_default();
        batch.iter().map(|prompt| prompt.document).collect()
    }

    #[test]
    fn a_batch_is_at_most_a_wave_and_shares_prefixes() {
        // 20 shared tokens and 10 own: 50 tokens hold three prompts.
        let mut admission = Admission::new(prompts(5, 20, 10), room(100));
        assert_eq!(admitted(&mut admission), [0, 1, 2]);
        assert_eq!(admitted(&mut admission), [3, 4]);
        assert!(admission.admit().unwrap().is_none());
        let mut apart = Admission::new(prompts(5, 0, 30), room(100));
        assert_eq!(admitted(&mut apart), [0]);
    }

    #[test]
    fn no_more_run_than_there_is_room_for() {
        // A past of 130 tokens and a next token: 2,300 bytes; n prompts need 20,000 + n * 10,000 while they are read.
        let mut admission = Admission::new(prompts(100, 20, 10), room(1000));
        let mut running = 0;
        while let Some(batch) = admission.admit().unwrap() {
            running += batch.len();
        }
        // Three beside 21 would need 105,200 bytes; two would fit and are fewer than an eighth of 21.
        assert_eq!(running, 21);
        let ended = prompts(1, 20, 10).next().unwrap().unwrap();
        admission.release(&ended);
        admission.release(&ended);
        assert!(admission.admit().unwrap().is_none(), "two beside 19 are too few still");
        admission.release(&ended);
        assert_eq!(admitted(&mut admission), [21, 22, 23]);
    }

    #[test]
    fn a_limit_on_running_documents_is_held() {
        let mut admission = Admission::new(prompts(5, 20, 1), room(2));
        assert_eq!(admitted(&mut admission), [0, 1]);
        let ended = prompts(1, 20, 1).next().unwrap().unwrap();
        assert!(admission.admit().unwrap().is_none());
        admission.release(&ended);
        assert_eq!(admitted(&mut admission), [2]);
    }

    #[test]
    fn a_document_that_never_fits_is_an_error() {
        let mut admission = Admission::new(prompts(1, 99, 1), room(2));
        let error = admission.admit().unwrap_err().to_string();
        assert!(error.contains("document 0") && error.contains("--memory"), "{error}");
    }
}
