//! Documents encoded a handful at a time, in parallel, as they are asked for.
//!
//! Encoding a whole suite takes minutes and its tokens fill memory, so neither is done at once: whoever takes the
//! documents, takes the next wave's while the present one is computed.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use rayon::prelude::*;

/// Documents that each thread encodes before any is handed out.
const EACH: usize = 4;

/// `encode` of each of `documents`, in order.
pub struct Ahead<I, T, F> {
    documents: I,
    encode: F,
    ready: VecDeque<Result<T>>,
}

impl<I: Iterator<Item = usize>, T: Send, F: Fn(usize) -> Result<T> + Sync> Ahead<I, T, F> {
    pub fn new(documents: I, encode: F) -> Ahead<I, T, F> {
        Ahead { documents, encode, ready: VecDeque::new() }
    }
}

impl<I: Iterator<Item = usize>, T: Send, F: Fn(usize) -> Result<T> + Sync> Iterator for Ahead<I, T, F> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.ready.is_empty() {
            let several: Vec<usize> = self.documents.by_ref().take(EACH * rayon::current_num_threads()).collect();
            let encode =
                |&document| (self.encode)(document).with_context(|| format!("document {document} of the evaluation"));
            self.ready = several.par_iter().map(encode).collect::<Vec<_>>().into();
        }
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn documents_keep_their_order_and_errors_their_place() {
        let encode = |document: usize| if document == 60 { bail!("no") } else { Ok(document * 2) };
        let mut ahead = Ahead::new(0..100, encode);
        let before: Vec<usize> = ahead.by_ref().take(60).map(Result::unwrap).collect();
        assert_eq!(before, (0..60).map(|document| document * 2).collect::<Vec<_>>());
        let error = format!("{:#}", ahead.next().unwrap().unwrap_err());
        assert_eq!(error, "document 60 of the evaluation: no");
        assert_eq!(ahead.count(), 39);
    }
}
