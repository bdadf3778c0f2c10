//! An engine without a model, for tests of everything around one: its answers are made of digests of the question and its
//! own name, so they are the same each time, differ between names, and cost nothing.
//!
//! A name may state how long the engine takes and where it fails: `NAME+slow` waits a little before each document,
//! `NAME+fails-after-N` stops with an error after N documents, `NAME+dead` gives every continuation the same probability,
//! `NAME+broken` answers the first question with NaN. The name before the `+` is what scores depend on, but every variant
//! has an identity of its own except `slow` and `fails-after`, which give the same answers as the plain name.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{Done, Engine, Work};
use crate::digest::sha256_hex;
use crate::model_id::ModelId;
use crate::request::{Request, Response};

/// What a variant does besides answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Plain,
    Slow,
    FailsAfter(usize),
    Dead,
    Broken,
}

/// Answers from digests.
pub struct ScriptedEngine {
    id: ModelId,
    name: String,
    behaviour: Behaviour,
}

impl ScriptedEngine {
    /// `name`: what follows `scripted:`.
    pub fn new(name: &str) -> Result<ScriptedEngine> {
        let (plain, behaviour) = match name.split_once('+') {
            None => (name, Behaviour::Plain),
            Some((plain, "slow")) => (plain, Behaviour::Slow),
            Some((plain, "dead")) => (plain, Behaviour::Dead),
            Some((plain, "broken")) => (plain, Behaviour::Broken),
            Some((plain, other)) => match other.strip_prefix("fails-after-").map(str::parse) {
                Some(Ok(count)) => (plain, Behaviour::FailsAfter(count)),
                Some(Err(_)) | None => {
                    bail!("scripted:{name}: no behaviour `{other}` (there is slow, dead, broken, fails-after-N)")
                }
            },
        };
        let answers = match behaviour {
            Behaviour::Plain | Behaviour::Slow | Behaviour::FailsAfter(_) => plain,
            Behaviour::Dead | Behaviour::Broken => name,
        };
        Ok(ScriptedEngine { id: identity(answers), name: plain.to_owned(), behaviour })
    }

    fn response(&self, request: &Request) -> Response {
        match request {
            Request::LogLikelihood { context, continuation } => {
                let draw = self.draw(context, continuation);
                let sum = match self.behaviour {
                    Behaviour::Dead => -10.0,
                    Behaviour::Broken => f64::NAN,
                    Behaviour::Plain | Behaviour::Slow | Behaviour::FailsAfter(_) => {
                        // Between -20 and 0, shorter continuations likelier, as with a real model.
                        -20.0 * (draw as f64 / u32::MAX as f64) - 0.05 * continuation.chars().count() as f64
                    }
                };
                let tokens = continuation.bytes().map(u32::from).collect();
                Response::LogLikelihood { sum, tokens, is_greedy: draw.is_multiple_of(4) }
            }
            Request::Generate { context, max_tokens, .. } => {
                let draw = if self.behaviour == Behaviour::Dead { 7 } else { self.draw(context, "") };
                let text = format!(" The answer is {}.\n#### {}", draw % 100, draw % 100);
                let tokens = text.bytes().map(u32::from).take(*max_tokens).collect();
                Response::Generate { text, tokens }
            }
        }
    }

    fn draw(&self, context: &str, continuation: &str) -> u32 {
        let mut hasher = Sha256::new();
        for part in [&self.name, context, continuation] {
            hasher.update(part.as_bytes());
            hasher.update([0x1e]);
        }
        let digest = hasher.finalize();
        u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
    }
}

/// The identity that goes with a name.
fn identity(name: &str) -> ModelId {
    ModelId {
        weights: sha256_hex(name.as_bytes()),
        adapter: None,
        tokenizer: sha256_hex(b"bytes"),
        dtype: "f64".to_owned(),
        quantization: None,
        engine: "scripted-1".to_owned(),
    }
}

impl Engine for ScriptedEngine {
    fn id(&self) -> &ModelId {
        &self.id
    }

    fn answer(&mut self, work: &Work, done: &mut Done) -> Result<()> {
        work.progress.add_total(work.documents.iter().map(|requests| requests.len() as u64).sum());
        for (index, requests) in work.documents.iter().enumerate() {
            match self.behaviour {
                Behaviour::Slow => std::thread::sleep(std::time::Duration::from_millis(20)),
                Behaviour::FailsAfter(count) if index >= count => {
                    bail!("the scripted engine stopped after {count} documents, as it was told")
                }
                Behaviour::FailsAfter(_) | Behaviour::Plain | Behaviour::Dead | Behaviour::Broken => {}
            }
            let responses = requests.iter().map(|request| self.response(request)).collect();
            work.progress.advance(requests.len() as u64);
            done(index, responses).with_context(|| format!("document {index} of the evaluation"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    fn answers(name: &str) -> Result<Vec<Vec<Response>>> {
        let ask = |continuation: &str| Request::LogLikelihood {
            context: "2 + 2 =".into(),
            continuation: continuation.to_owned(),
        };
        let generate = Request::Generate { context: "How many?".into(), stop: Vec::new(), max_tokens: 256 };
        let (choices, text) = ([ask(" 4"), ask(" 5")], [generate]);
        let documents = [&choices[..], &text[..]];
        let mut answers = Vec::new();
        let work = Work { documents: &documents, protocol: None, sampling: None, progress: Progress::hidden() };
        ScriptedEngine::new(name)?.answer(&work, &mut |_, responses| {
            answers.push(responses);
            Ok(())
        })?;
        Ok(answers)
    }

    #[test]
    fn a_name_always_answers_alike_and_names_differ() {
        assert_eq!(answers("a").unwrap(), answers("a").unwrap());
        assert_ne!(answers("a").unwrap(), answers("b").unwrap());
        assert_eq!(answers("a+slow").unwrap(), answers("a").unwrap());
        let id = |name| ScriptedEngine::new(name).unwrap().id().digest();
        assert_eq!(id("a"), id("a+fails-after-3"));
        assert_ne!(id("a"), id("b"));
        assert_ne!(id("a"), id("a+dead"));
    }

    #[test]
    fn variants_misbehave_as_named() {
        assert!(answers("a+fails-after-1").unwrap_err().to_string().contains("after 1 documents"));
        let [Response::LogLikelihood { sum: first, .. }, Response::LogLikelihood { sum: second, .. }] =
            &answers("a+dead").unwrap()[0][..]
        else {
            panic!("two log-likelihoods")
        };
        assert_eq!(first, second);
        assert!(ScriptedEngine::new("a+fast").err().unwrap().to_string().contains("slow"));
    }
}
