//! The scoring protocols: the same six tasks, asked and counted in ways that differ in the third digit.
//!
//! A closed set: whatever depends on the protocol matches on it without a wildcard.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Which harness's rules a score follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
pub enum Protocol {
    /// lm-evaluation-harness at b281b092 (June 2023), batch size 1: what the Open LLM Leaderboard ran.
    #[default]
    #[serde(rename = "leaderboard-v1")]
    #[value(name = "leaderboard-v1")]
    LeaderboardV1,
    /// lm-eval 0.4.13, `--tasks X --num_fewshot K`.
    #[serde(rename = "lm-eval-latest")]
    #[value(name = "lm-eval-latest")]
    LmEvalLatest,
    /// lm-eval 0.4.13, group `openllm`: other few-shot draws for HellaSwag and Winogrande.
    #[serde(rename = "lm-eval-latest-openllm")]
    #[value(name = "lm-eval-latest-openllm")]
    LmEvalLatestOpenllm,
}

impl Protocol {
    /// The name in files, flags and tables.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::LeaderboardV1 => "leaderboard-v1",
            Protocol::LmEvalLatest => "lm-eval-latest",
            Protocol::LmEvalLatestOpenllm => "lm-eval-latest-openllm",
        }
    }

    /// Whether prompts carry the tokenizer's own special tokens (`<s>`); leaderboard-v1 added none to any model.
    pub fn special_tokens(self) -> bool {
        match self {
            Protocol::LeaderboardV1 => false,
            Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm => true,
        }
    }
}
