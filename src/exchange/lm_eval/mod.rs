//! lm-evaluation-harness' files, `results_<date>.json` and `samples_<task>_<date>.jsonl`, as its version 0.4.13 writes them
//! (`lm_eval/evaluator.py`, `lm_eval/loggers/evaluation_tracker.py`, `lm_eval/result_schema.py`).
//!
//! `tests/fixtures/lm-eval` holds files of the harness's own making, which `tests/lm_eval.rs` compares with key by key.

mod answers;
mod leaf;
mod pair;
mod read;
mod sample;
mod write;

pub use leaf::Measured;
pub use pair::Paired;
pub use read::Recorded;
pub use write::Export;
