//! Results in the forms that others read and write: a model card's metadata, lm-evaluation-harness' files.

mod known;
pub mod lm_eval;
pub mod model_card;
mod yaml;
