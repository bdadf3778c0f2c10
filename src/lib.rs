//! fireval: fine-tune a mixture-of-experts model, score it exactly as the Open LLM Leaderboard did, and say
//! whether it helped. `ARCHITECTURE.md` draws the floors; `tests/floors.rs` holds them.

// 0 values
pub mod digest;
pub mod disk;
pub mod memory;
pub mod progress;
pub mod protocol;
pub mod python;
pub mod random;
pub mod request;
pub mod score;
pub mod settings;
pub mod spill;
pub mod stats;
// 1 kernels, weights and doors, one per heavy package
pub mod kernel;
pub mod weights;

pub mod chart;
pub mod chat;
pub mod hub;
pub mod language;
pub mod rows;
pub mod tokenizer;
// 2 meanings
pub mod dialogue;
pub mod model;
pub mod model_id;
pub mod task;
// 3 workers
pub mod claim;
pub mod engine;
pub mod store;
pub mod train;
pub mod transform;
// 4 together
pub mod compare;
pub mod eval;
pub mod gate;
pub mod project;
pub mod published;
pub mod samples;
// 5 showing
pub mod report;
// 6 exchange with other programs
pub mod exchange;
// 7 commands
pub mod cmd;
