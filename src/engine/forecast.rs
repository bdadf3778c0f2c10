//! How many tokens an evaluation will come to, before they are counted: strings are known at once, tokens only wave by
//! wave. The progress bar's total is what was computed, and the bytes still to come at the rate seen so far.

use super::Work;
use super::trie::shared;
use crate::progress::Progress;
use crate::request::Request;

/// Tokens a byte before any were seen.
const FIRST_GUESS: f64 = 0.25;

/// Keeps a progress bar's total.
pub struct Forecast {
    progress: Progress,
    /// Bytes that each document adds to the one before it.
    fresh: Vec<u64>,
    bytes_left: u64,
    bytes_read: u64,
    tokens_read: u64,
    /// New tokens that may still be generated.
    reserved: u64,
}

impl Forecast {
    /// `limit`: how many new tokens there may be where some were asked for.
    pub fn new(work: &Work, limit: impl Fn(usize) -> usize) -> Forecast {
        let mut before = "";
        let fresh: Vec<u64> = work.documents.iter().map(|requests| fresh(requests, &mut before)).collect();
        let reserved = work.documents.iter().copied().flatten().map(|request| reserved(request, &limit)).sum();
        let bytes_left = fresh.iter().sum();
        let progress = work.progress.clone();
        let forecast = Forecast { progress, fresh, bytes_left, bytes_read: 0, tokens_read: 0, reserved };
        forecast.update(0);
        forecast
    }

    /// A document's own `tokens` were computed.
    pub fn read(&mut self, document: usize, tokens: usize) {
        self.bytes_left -= self.fresh[document];
        self.bytes_read += self.fresh[document];
        self.tokens_read += tokens as u64;
        self.update(tokens as u64);
    }

    /// New tokens were generated.
    pub fn generated(&mut self, tokens: usize) {
        self.reserved = self.reserved.saturating_sub(tokens as u64);
        self.update(tokens as u64);
    }

    /// A generation ended `tokens` before its limit.
    pub fn spared(&mut self, tokens: usize) {
        self.reserved = self.reserved.saturating_sub(tokens as u64);
        self.update(0);
    }

    fn update(&self, done: u64) {
        self.progress.advance(done);
        let rate = match self.bytes_read {
            0 => FIRST_GUESS,
            bytes => self.tokens_read as f64 / bytes as f64,
        };
        let to_come = (self.bytes_left as f64 * rate) as u64 + self.reserved;
        self.progress.set_total(self.progress.done() + to_come);
    }
}

/// Bytes of a document's strings that the context `before` does not begin with.
fn fresh<'a>(requests: &'a [Request], before: &mut &'a str) -> u64 {
    let mut bytes = 0;
    for request in requests {
        let (context, more) = match request {
            Request::LogLikelihood { context, continuation } => (context, continuation.len()),
            Request::Generate { context, .. } => (context, 0),
        };
        if **context != **before {
            bytes += context.len() - shared(before.as_bytes(), context.as_bytes());
        }
        bytes += more;
        *before = context;
    }
    bytes as u64
}

fn reserved(request: &Request, limit: impl Fn(usize) -> usize) -> u64 {
    match request {
        Request::LogLikelihood { .. } => 0,
        Request::Generate { max_tokens, .. } => limit(*max_tokens) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(context: &str, continuation: &str) -> Request {
        Request::LogLikelihood { context: context.into(), continuation: continuation.to_owned() }
    }

    #[test]
    fn the_total_follows_what_was_seen() {
        let documents = [
            vec![ask("header one", " a"), ask("header one", " b")], // 10 + 2 + 2
            vec![ask("header two", " a")],                          // 3 + 2
            vec![Request::Generate { context: "what?".into(), stop: Vec::new(), max_tokens: 10 }],
        ];
        let documents: Vec<&[Request]> = documents.iter().map(Vec::as_slice).collect();
        let work = Work { documents: &documents, protocol: None, sampling: None, progress: Progress::hidden() };
        let mut forecast = Forecast::new(&work, |asked| asked);
        assert_eq!(forecast.fresh, [14, 5, 5]);
        assert_eq!(work.progress.total(), 6 + 10, "24 bytes, a token each 4");
        forecast.read(0, 7);
        assert_eq!((work.progress.done(), work.progress.total()), (7, 7 + 5 + 10));
        forecast.read(1, 3);
        forecast.read(2, 2);
        forecast.generated(4);
        forecast.spared(6);
        assert_eq!((work.progress.done(), work.progress.total()), (16, 16), "in the end all of it");
    }
}
