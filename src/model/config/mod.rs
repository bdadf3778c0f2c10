//! What distinguishes one decoder from another, read from `config.json` (or what a GGUF says in its place).
//!
//! One decoder serves all families: a family is only a set of values here ([`family`] has its defaults, [`read`] the
//! reading). What a config states and no value here can express is refused by name, so nothing is computed by half.

mod family;
mod read;
pub mod rope;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

pub use rope::{Rope, RopeScaling};

use crate::weights::Checkpoint;

/// The families whose checkpoints open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Mixtral,
    /// And Qwen2.5.
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    /// The text model.
    Gemma3,
    Phi3,
}

/// What a feed-forward's gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation: `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// A layer of several feed-forwards of which each token uses `top_k`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    pub experts: usize,
    pub top_k: usize,
    pub router_aux_loss_coef: f64,
    /// The probabilities of the chosen experts are divided by their sum.
    pub normalize: bool,
}

/// The shape and constants of a decoder, checked once.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Of a mixture: an expert's width.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    /// Numbers of a head that are rotated, from its first on; the others pass as they are.
    pub rotary_dim: usize,
    pub rms_norm_eps: f64,
    /// Of layers that see everything, and of all layers where there is no `local_rope`.
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// Of layers that see only the window, where the family gives them their own (Gemma 3).
    pub local_rope: Option<Rope>,
    /// The longest sequence the rotary embedding is for.
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// A query sees itself and the keys before it, this many in all. Which layers: [`ModelConfig::window`].
    pub sliding_window: Option<usize>,
    /// For each layer whether it sees everything in spite of `sliding_window`; shorter lists go on with `false`.
    pub full_attention: Vec<bool>,
    pub activation: Activation,
    /// The query, key and value linears have biases (the output has none).
    pub attention_bias: bool,
    /// RMS norm over each query and key head before rotation.
    pub head_norms: bool,
    /// Attention's and the feed-forward's outputs also go through a norm before they are added.
    pub sandwich_norms: bool,
    /// Norm weights are stored minus one.
    pub norm_plus_one: bool,
    /// Multiplies embeddings, after it is rounded to the dtype they are held in.
    pub embedding_scale: Option<f32>,
    /// Multiplies the product of a query and a key.
    pub attention_scale: f64,
    /// Scores `s`, scaled, become `cap * tanh(s / cap)` before the mask and softmax.
    pub attention_softcap: Option<f64>,
    /// The same for the head's logits.
    pub final_softcap: Option<f64>,
    /// `None` for a dense feed-forward. Which layers: [`ModelConfig::mixture_of`].
    pub mixture: Option<Mixture>,
    /// For each layer that is dense beside others that are mixtures, its feed-forward's width; shorter lists go on with
    /// `None`.
    pub dense_widths: Vec<Option<usize>>,
}

impl ModelConfig {
    /// The configuration beside a checkpoint's weights.
    pub fn of(checkpoint: &Checkpoint) -> Result<ModelConfig> {
        ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())
    }

    /// Checks a `config.json` (transformers 4 or 5). `place` names it in errors. Defaults are those of transformers'
    /// configuration classes.
    pub fn from_json(json: &Value, place: &str) -> Result<ModelConfig> {
        let fields = json.as_object().ok_or_else(|| anyhow!("{place}: not a JSON object"))?;
        read::config(fields).with_context(|| place.to_owned())
    }

    /// That all of `ids` are in the vocabulary.
    pub fn check_tokens(&self, mut ids: impl Iterator<Item = u32>) -> Result<()> {
        match ids.find(|&id| id as usize >= self.vocab_size) {
            Some(id) => bail!("token {id} is outside the model's vocabulary of {}", self.vocab_size),
            None => Ok(()),
        }
    }

    /// How many keys, its own included, a query of that layer sees; `None`: all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| !self.sees_everything(layer))
    }

    /// The mixture of that layer; `None` where it is dense.
    pub fn mixture_of(&self, layer: usize) -> Option<Mixture> {
        self.mixture.filter(|_| self.dense_width(layer).is_none())
    }

    /// The width of that layer's feed-forward, of a mixture an expert's.
    pub fn feed_forward_width(&self, layer: usize) -> usize {
        self.dense_width(layer).unwrap_or(self.intermediate_size)
    }

    /// The most numbers that a token's feed-forwards have inside, in any layer.
    pub fn widest_feed_forward(&self) -> usize {
        let used = |layer| self.mixture_of(layer).map_or(1, |mixture| mixture.top_k);
        let widths = (0..self.num_hidden_layers).map(|layer| used(layer) * self.feed_forward_width(layer));
        widths.max().unwrap_or(0)
    }

    /// The width of the widest feed-forward, of a mixture an expert's.
    pub fn widest_expert(&self) -> usize {
        (0..self.num_hidden_layers).map(|layer| self.feed_forward_width(layer)).max().unwrap_or(0)
    }

    fn dense_width(&self, layer: usize) -> Option<usize> {
        self.dense_widths.get(layer).copied().flatten()
    }

    /// The rotary embedding of that layer.
    pub fn rope(&self, layer: usize) -> Rope {
        match &self.local_rope {
            Some(local) if !self.sees_everything(layer) => local.clone(),
            Some(_) | None => Rope { theta: self.rope_theta, scaling: self.rope_scaling.clone() },
        }
    }

    /// The longest sequence that LongRoPE's short factors are for; a longer one is another from its first token on. Of
    /// other rotary embeddings `usize::MAX`.
    pub fn short_length(&self) -> usize {
        match self.rope_scaling {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => original_max_position_embeddings,
            RopeScaling::None
            | RopeScaling::Dynamic
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Yarn { .. } => usize::MAX,
        }
    }

    fn sees_everything(&self, layer: usize) -> bool {
        self.full_attention.get(layer).copied().unwrap_or(false)
    }
}
