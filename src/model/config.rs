//! What distinguishes one decoder from another, read from `config.json` (or what a GGUF says in its place).

/// The families whose checkpoints open. One decoder serves them all; the differences are fields of [`ModelConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Mixtral,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: usize },
}

/// A layer of several feed-forwards of which each token uses `top_k`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    pub experts: usize,
    pub top_k: usize,
    pub router_aux_loss_coef: f64,
}

/// The shape and constants of a decoder, checked once.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Keys further back than this many positions are not attended to.
    pub sliding_window: Option<usize>,
    /// `None` for a dense feed-forward.
    pub mixture: Option<Mixture>,
}
