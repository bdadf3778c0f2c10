//! fireval: fine-tune a mixture-of-experts model, score it exactly as the Open LLM Leaderboard did, and say
//! whether it helped. `ARCHITECTURE.md` draws the floors; `tests/floors.rs` holds them.

// 0 values
pub mod digest;
pub mod memory;
pub mod progress;
pub mod protocol;
pub mod python;
pub mod random;
pub mod request;
pub mod settings;
//   records
pub mod disk;
pub mod score;
pub mod spill;
pub mod stats;
//   kernels
pub mod kernel;
// 1 weights
pub mod weights;
// 2 doors, one per heavy package
pub mod chart;
pub mod chat;
pub mod hub;
pub mod language;
pub mod rows;
pub mod tokenizer;
// 3 meanings
pub mod dialogue;
pub mod model;
pub mod model_id;
pub mod published;
pub mod task;
// 4 workers
pub mod claim;
pub mod engine;
pub mod store;
pub mod train;
pub mod transform;
// 5 together
pub mod project;
// 6 evaluation
pub mod eval;
pub mod samples;
// 7 comparison
pub mod compare;
// 8 judging
pub mod gate;
// 9 showing
pub mod report;
// 10 exchange with other programs
pub mod exchange;
// 11 commands
pub mod cmd;
