//! Reading a `config.json` key by key; `null` counts as absent, except where transformers' defaults tell them apart.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::rope::{self, Surroundings};
use super::{Activation, Architecture, Mixture, ModelConfig, Rope, RopeScaling};

/// Dimensions beyond these are a damaged file, not a model (and products of them still fit in a usize).
const LARGEST_WIDTH: u64 = 1 << 24;
const MOST_LAYERS: u64 = 4096;
const LONGEST: u64 = 1 << 40;

pub(super) fn config(fields: &Map<String, Value>) -> Result<ModelConfig> {
    let name = text(fields, "model_type")?.ok_or_else(|| missing("model_type"))?;
    Reader { fields, architecture: Architecture::parse(name)? }.config()
}

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    architecture: Architecture,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig> {
        self.refuse_what_is_not_built()?;
        let (architecture, defaults) = (self.architecture, self.architecture.defaults());
        let hidden_size = self.width("hidden_size")?;
        let heads = self.width("num_attention_heads")?;
        let layers = self.required("num_hidden_layers", MOST_LAYERS)?;
        let key_value_heads = self.key_value_heads(heads)?;
        let head_dim = self.head_dim(hidden_size, heads)?;
        ensure!(
            heads % key_value_heads == 0,
            "num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}"
        );
        let sliding_window = self.sliding_window()?;
        let mut config = ModelConfig {
            architecture,
            vocab_size: self.width("vocab_size")?,
            hidden_size,
            intermediate_size: self.intermediate_size()?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads,
            head_dim,
            rotary_dim: self.rotary_dim(head_dim)?,
            rms_norm_eps: self.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope_theta: defaults.rope_theta,
            rope_scaling: RopeScaling::None,
            local_rope: None,
            max_position_embeddings: self
                .optional("max_position_embeddings", LONGEST)?
                .unwrap_or(defaults.max_position_embeddings),
            tie_word_embeddings: self.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
            sliding_window,
            full_attention: self.full_attention(layers)?,
            activation: self.activation()?,
            attention_bias: architecture.has_attention_bias(),
            head_norms: architecture.has_head_norms(),
            sandwich_norms: architecture.is_gemma(),
            norm_plus_one: architecture.is_gemma(),
            embedding_scale: architecture.is_gemma().then(|| (hidden_size as f64).sqrt() as f32),
            attention_scale: self.attention_scale(head_dim)?,
            attention_softcap: self.softcap("attn_logit_softcapping", 50.0)?,
            final_softcap: self.softcap("final_logit_softcapping", 30.0)?,
            mixture: self.mixture()?,
            dense_widths: self.dense_widths(layers)?,
        };
        self.rope(&mut config)?;
        Ok(config)
    }

    /// Whatever would change the numbers and is not computed here.
    fn refuse_what_is_not_built(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            ensure!(!self.is_set(key)?, "`{key}` is true; biases open on q, k and v alone, as Qwen2 has them");
        }
        ensure!(!self.is_set("use_bidirectional_attention")?, "`use_bidirectional_attention` is true; decoders open");
        if let Some(quantization) = self.present("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
            let opens = method == "bitsandbytes"; // which of its formats do, `weights` says
            ensure!(
                opens,
                "the weights are quantised (`quantization_config`: {method}); take the checkpoint that is not"
            );
        }
        Ok(())
    }

    fn present(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong(key, value, "true or false"))
    }

    fn is_set(&self, key: &str) -> Result<bool> {
        Ok(self.flag(key)?.unwrap_or(false))
    }

    fn optional(&self, key: &str, largest: u64) -> Result<Option<usize>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (1..=largest).contains(number));
        number
            .map(|number| Some(number as usize))
            .ok_or_else(|| wrong(key, value, &format!("a count of 1 to {largest}")))
    }

    fn required(&self, key: &str, largest: u64) -> Result<usize> {
        self.optional(key, largest)?.ok_or_else(|| missing(key))
    }

    fn width(&self, key: &str) -> Result<usize> {
        self.required(key, LARGEST_WIDTH)
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        positive(self.fields, key)
    }

    fn key_value_heads(&self, heads: usize) -> Result<usize> {
        let stated = self.optional("num_key_value_heads", LARGEST_WIDTH)?;
        let default = self.architecture.defaults().key_value_heads;
        let default = default.filter(|_| !self.fields.contains_key("num_key_value_heads"));
        Ok(stated.or(default).unwrap_or(heads))
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        let stated = self.optional("head_dim", LARGEST_WIDTH)?.or(self.architecture.defaults().head_dim);
        let head_dim = match stated {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    hidden_size.is_multiple_of(heads),
                    "hidden_size {hidden_size} is no multiple of num_attention_heads {heads}, and head_dim is not stated"
                );
                hidden_size / heads
            }
        };
        ensure!(head_dim.is_multiple_of(2), "head_dim {head_dim} is odd; rotary embedding needs pairs");
        Ok(head_dim)
    }

    /// transformers' Phi-3 rotates a part of each head; its other classes here read no such key.
    fn rotary_dim(&self, head_dim: usize) -> Result<usize> {
        let key = "partial_rotary_factor";
        let inner = rope::table(self.fields, "rope_parameters")?.or(rope::table(self.fields, "rope_scaling")?);
        let inner = inner.map_or(Ok(None), |fields| positive(fields, key))?;
        let factor = inner.or(self.positive(key)?).unwrap_or(1.0);
        ensure!(
            factor == 1.0 || self.architecture == Architecture::Phi3,
            "`{key}` is {factor}; heads are rotated in part by Phi-3 alone"
        );
        let rotated = (head_dim as f64 * factor) as usize;
        ensure!(
            (2..=head_dim).contains(&rotated) && rotated.is_multiple_of(2),
            "`{key}` {factor} rotates {rotated} numbers of a head of {head_dim}; expected an even count of 2 or more"
        );
        Ok(rotated)
    }

    fn intermediate_size(&self) -> Result<usize> {
        match self.architecture {
            Architecture::Qwen3Moe => Ok(self.optional("moe_intermediate_size", LARGEST_WIDTH)?.unwrap_or(768)),
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Phi3 => self.width("intermediate_size"),
        }
    }

    fn activation(&self) -> Result<Activation> {
        let (key, default) = match self.architecture.is_gemma() {
            true => ("hidden_activation", "gelu_pytorch_tanh"),
            false => ("hidden_act", "silu"),
        };
        match text(self.fields, key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => bail!("`{key}` is {other}; silu and gelu_pytorch_tanh open"),
        }
    }

    fn attention_scale(&self, head_dim: usize) -> Result<f64> {
        let scalar = match self.architecture.is_gemma() {
            true => self.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            false => head_dim as f64,
        };
        Ok(1.0 / scalar.sqrt())
    }

    /// Gemma's; `null` is not the same as absent.
    fn softcap(&self, key: &str, default: f64) -> Result<Option<f64>> {
        let stated = self.positive(key)?;
        Ok(match self.architecture {
            Architecture::Gemma2 if !self.fields.contains_key(key) => Some(default),
            Architecture::Gemma2 | Architecture::Gemma3 => stated,
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Phi3 => None,
        })
    }

    fn sliding_window(&self) -> Result<Option<usize>> {
        let key = "sliding_window";
        let stated = match self.fields.contains_key(key) {
            true => self.optional(key, LONGEST)?,
            false => self.architecture.defaults().sliding_window,
        };
        Ok(match self.architecture {
            Architecture::Llama => None,
            Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe => {
                let is_used = self.is_set("use_sliding_window")?;
                stated.filter(|_| is_used)
            }
            Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Phi3 => stated,
        })
    }

    /// Which layers see everything. Families without `layer_types` in transformers window every layer.
    fn full_attention(&self, layers: usize) -> Result<Vec<bool>> {
        let stated = self.layer_types(layers)?;
        let by_index = |is_full: &dyn Fn(usize) -> bool| (0..layers).map(is_full).collect();
        let default = match self.architecture {
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::Qwen3Moe
            | Architecture::Phi3 => return Ok(Vec::new()),
            Architecture::Qwen2 | Architecture::Qwen3 => {
                let first = self.count_from_zero("max_window_layers")?.unwrap_or(28);
                by_index(&|layer| layer < first)
            }
            Architecture::Gemma2 => by_index(&|layer| layer % 2 == 1),
            Architecture::Gemma3 => {
                let pattern = self.optional("sliding_window_pattern", MOST_LAYERS)?.unwrap_or(6);
                by_index(&|layer| (layer + 1) % pattern == 0)
            }
        };
        Ok(stated.unwrap_or(default))
    }

    fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let key = "layer_types";
        let Some(value) = self.present(key) else { return Ok(None) };
        let kinds = value.as_array().ok_or_else(|| wrong(key, value, "a list"))?;
        ensure!(kinds.len() == layers, "`{key}` has {} entries for {layers} layers", kinds.len());
        let is_full = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(true),
            Some("sliding_attention") => Ok(false),
            Some(_) | None => bail!("`{key}` has {kind}; full_attention and sliding_attention open"),
        };
        kinds.iter().map(is_full).collect::<Result<_>>().map(Some)
    }

    fn count_from_zero(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        value.as_u64().map(|number| Some(number as usize)).ok_or_else(|| wrong(key, value, "a count"))
    }

    fn mixture(&self) -> Result<Option<Mixture>> {
        match self.architecture {
            Architecture::Mixtral => self.experts("num_local_experts", 8, 2, true).map(Some),
            Architecture::Qwen3Moe => {
                // transformers 5 writes Mixtral's name for it.
                let key = if self.present("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
                self.experts(key, 128, 8, self.is_set("norm_topk_prob")?).map(Some)
            }
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Phi3 => Ok(None),
        }
    }

    /// Of Qwen3-MoE: every `decoder_sparse_step`th layer is a mixture, but for those of `mlp_only_layers`.
    fn dense_widths(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        if self.architecture != Architecture::Qwen3Moe {
            return Ok(Vec::new());
        }
        let step = self.optional("decoder_sparse_step", MOST_LAYERS)?.unwrap_or(1);
        let stated = self.layer_numbers("mlp_only_layers")?;
        let is_dense = |layer: usize| stated.contains(&layer) || !(layer + 1).is_multiple_of(step);
        if !(0..layers).any(is_dense) {
            return Ok(Vec::new());
        }
        let width = self.optional("intermediate_size", LARGEST_WIDTH)?.unwrap_or(6144);
        Ok((0..layers).map(|layer| is_dense(layer).then_some(width)).collect())
    }

    fn layer_numbers(&self, key: &str) -> Result<Vec<usize>> {
        let Some(value) = self.present(key) else { return Ok(Vec::new()) };
        let numbers =
            value.as_array().map(|items| items.iter().map(|item| item.as_u64().map(|number| number as usize)));
        numbers.and_then(Iterator::collect).ok_or_else(|| wrong(key, value, "a list of layers"))
    }

    fn experts(&self, key: &str, experts: usize, top_k: usize, normalize: bool) -> Result<Mixture> {
        let experts = self.optional(key, MOST_LAYERS)?.unwrap_or(experts);
        let top_k = self.optional("num_experts_per_tok", MOST_LAYERS)?.unwrap_or(top_k);
        ensure!(top_k <= experts, "num_experts_per_tok {top_k} is more than {key} {experts}");
        let router_aux_loss_coef = match self.present("router_aux_loss_coef") {
            None => 0.001,
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite() && *number >= 0.0)
                .ok_or_else(|| wrong("router_aux_loss_coef", value, "a number of 0 or more"))?,
        };
        Ok(Mixture { experts, top_k, router_aux_loss_coef, normalize })
    }

    /// transformers 4 has `rope_theta` and `rope_scaling`; 5 has both in `rope_parameters`, of Gemma 3 in one table for
    /// each kind of layers.
    fn rope(&self, config: &mut ModelConfig) -> Result<()> {
        let around = Surroundings {
            rotary_dim: config.rotary_dim,
            max_position_embeddings: config.max_position_embeddings,
            original_max_position_embeddings: self
                .optional("original_max_position_embeddings", LONGEST)?
                .or(self.architecture.defaults().original_max_position_embeddings),
        };
        let parameters = rope::table(self.fields, "rope_parameters")?;
        let of_layers = |kind: &str| parameters.map_or(Ok(None), |fields| rope::table(fields, kind));
        let stated = of_layers("full_attention")?.or(parameters);
        let theta = self.positive("rope_theta")?.unwrap_or(config.rope_theta);
        config.rope_theta = stated.map_or(Ok(None), |fields| positive(fields, "rope_theta"))?.unwrap_or(theta);
        let parsed = |fields: Option<&Map<String, Value>>, key: &'static str| {
            fields.map(|fields| rope::scaling(fields, &around).context(format!("`{key}`"))).transpose()
        };
        let scaling = parsed(rope::table(self.fields, "rope_scaling")?, "rope_scaling")?;
        config.rope_scaling = match (parsed(stated, "rope_parameters")?, scaling) {
            // transformers 4 would take the one, 5 the other.
            (Some(new), Some(old)) if new != old => {
                bail!("keys `rope_scaling` and `rope_parameters` state different scalings; remove one of them")
            }
            (Some(scaling), _) | (None, Some(scaling)) => scaling,
            (None, None) => RopeScaling::None,
        };
        if config.architecture == Architecture::Gemma3 {
            let theta = self.positive("rope_local_base_freq")?.unwrap_or(10_000.0);
            config.local_rope = Some(match of_layers("sliding_attention")? {
                Some(fields) => Rope {
                    theta: positive(fields, "rope_theta")?.unwrap_or(theta),
                    scaling: rope::scaling(fields, &around).context("`rope_parameters`")?,
                },
                None => Rope { theta, scaling: RopeScaling::None },
            });
        }
        Ok(())
    }
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| wrong(key, value, "text"))
}

pub(super) fn positive(fields: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
    number.map(Some).ok_or_else(|| wrong(key, value, "a number above 0"))
}

pub(super) fn missing(key: &str) -> anyhow::Error {
    anyhow!("key `{key}` is missing; fetch the file again")
}

pub(super) fn wrong(key: &str, value: &Value, expected: &str) -> anyhow::Error {
    anyhow!("key `{key}` is {value}; expected {expected}")
}
