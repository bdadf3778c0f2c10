//! What each family takes for granted: the defaults of transformers 5.24's configuration classes (those of 4 are the
//! same), and what its modelling code does without asking the config.

use anyhow::{Result, bail};

use super::Architecture;

/// Defaults of a family's configuration class.
pub(super) struct Defaults {
    /// Where the key is absent; `None`: as many as query heads.
    pub key_value_heads: Option<usize>,
    /// `None`: hidden_size / num_attention_heads.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_position_embeddings: usize,
    /// Beside the table of rotary scaling, where the class has it there.
    pub original_max_position_embeddings: Option<usize>,
    pub tie_word_embeddings: bool,
    pub sliding_window: Option<usize>,
}

const PLAIN: Defaults = Defaults {
    key_value_heads: None,
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    max_position_embeddings: 2048,
    original_max_position_embeddings: None,
    tie_word_embeddings: false,
    sliding_window: None,
};

const QWEN: Defaults = Defaults {
    key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    sliding_window: Some(4096), // if `use_sliding_window`
    ..PLAIN
};

const GEMMA: Defaults = Defaults {
    key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    sliding_window: Some(4096),
    ..PLAIN
};

impl Architecture {
    pub(super) fn parse(name: &str) -> Result<Architecture> {
        match name {
            "llama" => Ok(Architecture::Llama),
            "mistral" => Ok(Architecture::Mistral),
            "mixtral" => Ok(Architecture::Mixtral),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            "qwen3_moe" => Ok(Architecture::Qwen3Moe),
            "gemma2" => Ok(Architecture::Gemma2),
            "gemma3_text" => Ok(Architecture::Gemma3),
            "phi3" => Ok(Architecture::Phi3),
            other => bail!(
                "model_type `{other}` does not open; `llama`, `mistral`, `mixtral`, `qwen2`, `qwen3`, `qwen3_moe`, \
                 `gemma2`, `gemma3_text` and `phi3` do"
            ),
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        match self {
            Architecture::Llama => PLAIN,
            Architecture::Mistral => Defaults {
                key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                sliding_window: Some(4096),
                ..PLAIN
            },
            Architecture::Mixtral => Defaults {
                key_value_heads: Some(8),
                rms_norm_eps: 1e-5,
                rope_theta: 1_000_000.0,
                max_position_embeddings: 131_072,
                ..PLAIN
            },
            Architecture::Qwen2 => QWEN,
            Architecture::Qwen3 => Defaults { head_dim: Some(128), ..QWEN },
            Architecture::Qwen3Moe => Defaults { key_value_heads: Some(4), ..QWEN },
            Architecture::Gemma2 => GEMMA,
            Architecture::Gemma3 => Defaults { rope_theta: 1_000_000.0, max_position_embeddings: 131_072, ..GEMMA },
            Architecture::Phi3 => Defaults {
                rms_norm_eps: 1e-5,
                max_position_embeddings: 4096,
                original_max_position_embeddings: Some(4096),
                ..PLAIN
            },
        }
    }

    /// Norms around attention and feed-forward, norm weights minus one, scaled embeddings, `query_pre_attn_scalar`.
    pub(super) fn is_gemma(self) -> bool {
        match self {
            Architecture::Gemma2 | Architecture::Gemma3 => true,
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Phi3 => false,
        }
    }

    /// Qwen2's attention always has biases; where others can have them (`attention_bias`), so has the output, which is
    /// not computed here.
    pub(super) fn has_attention_bias(self) -> bool {
        match self {
            Architecture::Qwen2 => true,
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Phi3 => false,
        }
    }

    pub(super) fn has_head_norms(self) -> bool {
        match self {
            Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Gemma3 => true,
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen2
            | Architecture::Gemma2
            | Architecture::Phi3 => false,
        }
    }
}
