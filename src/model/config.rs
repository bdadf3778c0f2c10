//! What distinguishes one decoder from another, read from `config.json` (or what a GGUF says in its place).

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

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

/// Dimensions beyond these are a damaged file, not a model (and products of them still fit in a usize).
const LARGEST_WIDTH: u64 = 1 << 24;
const MOST_LAYERS: u64 = 4096;

impl Architecture {
    fn parse(name: &str) -> Result<Architecture> {
        match name {
            "llama" => Ok(Architecture::Llama),
            "mistral" => Ok(Architecture::Mistral),
            "mixtral" => Ok(Architecture::Mixtral),
            other => bail!("model_type `{other}` does not open; `llama`, `mistral` and `mixtral` do"),
        }
    }
}

impl ModelConfig {
    /// Checks a `config.json` (transformers 4 or 5). `place` names it in errors. Defaults are those of transformers'
    /// configuration classes.
    pub fn from_json(json: &Value, place: &str) -> Result<ModelConfig> {
        let fields = json.as_object().ok_or_else(|| anyhow!("{place}: not a JSON object"))?;
        Reader { fields }.config().with_context(|| place.to_owned())
    }
}

/// Reads keys; `null` counts as absent.
struct Reader<'a> {
    fields: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig> {
        let architecture = Architecture::parse(self.text("model_type")?.ok_or_else(|| missing("model_type"))?)?;
        self.refuse_what_is_not_built()?;
        let hidden_size = self.width("hidden_size")?;
        let heads = self.width("num_attention_heads")?;
        let config = ModelConfig {
            architecture,
            vocab_size: self.width("vocab_size")?,
            hidden_size,
            intermediate_size: self.width("intermediate_size")?,
            num_hidden_layers: self.required("num_hidden_layers", MOST_LAYERS)?,
            num_attention_heads: heads,
            num_key_value_heads: self.key_value_heads(architecture, heads)?,
            head_dim: self.head_dim(hidden_size, heads)?,
            rms_norm_eps: self.positive("rms_norm_eps")?.unwrap_or(match architecture {
                Architecture::Llama | Architecture::Mistral => 1e-6,
                Architecture::Mixtral => 1e-5,
            }),
            rope_theta: self.rope_theta(architecture)?,
            rope_scaling: self.rope_scaling()?,
            max_position_embeddings: self.optional("max_position_embeddings", 1 << 40)?.unwrap_or(match architecture {
                Architecture::Llama => 2048,
                Architecture::Mistral | Architecture::Mixtral => 131_072,
            }),
            tie_word_embeddings: self.flag("tie_word_embeddings")?,
            sliding_window: self.sliding_window(architecture)?,
            mixture: self.mixture(architecture)?,
        };
        let key_value_heads = config.num_key_value_heads;
        ensure!(
            heads % key_value_heads == 0,
            "num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}"
        );
        Ok(config)
    }

    /// Whatever would change the numbers and is not computed here.
    fn refuse_what_is_not_built(&self) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            ensure!(!self.flag(key)?, "`{key}` is true; linears with a bias do not open");
        }
        let activation = self.text("hidden_act")?.unwrap_or("silu");
        ensure!(matches!(activation, "silu" | "swish"), "`hidden_act` is {activation}; silu opens");
        let rotated = self.positive("partial_rotary_factor")?.unwrap_or(1.0);
        ensure!(rotated == 1.0, "`partial_rotary_factor` is {rotated}; heads must be rotated whole");
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

    fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong(key, value, "text"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.present(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(key, value, "true or false"))
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

    fn key_value_heads(&self, architecture: Architecture, heads: usize) -> Result<usize> {
        let stated = self.optional("num_key_value_heads", LARGEST_WIDTH)?;
        let absent = !self.fields.contains_key("num_key_value_heads");
        Ok(stated.unwrap_or(match architecture {
            Architecture::Mistral | Architecture::Mixtral if absent => 8,
            Architecture::Llama | Architecture::Mistral | Architecture::Mixtral => heads,
        }))
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize> {
        let head_dim = match self.optional("head_dim", LARGEST_WIDTH)? {
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

    /// transformers 4 has `rope_theta` and `rope_scaling`; 5 has both in `rope_parameters`.
    fn rope_theta(&self, architecture: Architecture) -> Result<f64> {
        let inner = self.rope_fields("rope_parameters")?.map(|fields| positive(fields, "rope_theta")).transpose()?;
        let stated = match inner.flatten() {
            Some(theta) => Some(theta),
            None => self.positive("rope_theta")?,
        };
        Ok(stated.unwrap_or(match architecture {
            Architecture::Llama | Architecture::Mistral => 10_000.0,
            Architecture::Mixtral => 1_000_000.0,
        }))
    }

    fn rope_fields(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        value.as_object().map(Some).ok_or_else(|| wrong(key, value, "a table"))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        for key in ["rope_parameters", "rope_scaling"] {
            if let Some(fields) = self.rope_fields(key)? {
                return rope_scaling(fields).with_context(|| format!("`{key}`"));
            }
        }
        Ok(RopeScaling::None)
    }

    fn sliding_window(&self, architecture: Architecture) -> Result<Option<usize>> {
        let stated = self.optional("sliding_window", 1 << 40)?;
        Ok(match architecture {
            Architecture::Llama => None,
            Architecture::Mistral if !self.fields.contains_key("sliding_window") => Some(4096),
            Architecture::Mistral | Architecture::Mixtral => stated,
        })
    }

    fn mixture(&self, architecture: Architecture) -> Result<Option<Mixture>> {
        match architecture {
            Architecture::Llama | Architecture::Mistral => Ok(None),
            Architecture::Mixtral => {
                let experts = self.optional("num_local_experts", MOST_LAYERS)?.unwrap_or(8);
                let top_k = self.optional("num_experts_per_tok", MOST_LAYERS)?.unwrap_or(2);
                ensure!(top_k <= experts, "num_experts_per_tok {top_k} is more than num_local_experts {experts}");
                let router_aux_loss_coef = match self.present("router_aux_loss_coef") {
                    None => 0.001,
                    Some(value) => value
                        .as_f64()
                        .filter(|number| number.is_finite() && *number >= 0.0)
                        .ok_or_else(|| wrong("router_aux_loss_coef", value, "a number of 0 or more"))?,
                };
                Ok(Some(Mixture { experts, top_k, router_aux_loss_coef }))
            }
        }
    }
}

fn rope_scaling(fields: &Map<String, Value>) -> Result<RopeScaling> {
    let kind = fields.get("rope_type").or(fields.get("type")).filter(|kind| !kind.is_null());
    let number = |key: &str| positive(fields, key)?.ok_or_else(|| missing(key));
    match kind.map(|kind| kind.as_str().ok_or_else(|| wrong("rope_type", kind, "text"))).transpose()? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            ensure!(low < high, "low_freq_factor {low} is not below high_freq_factor {high}");
            Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
            })
        }
        Some(other) => bail!("rope type `{other}` does not open; `default`, `linear` and `llama3` do"),
    }
}

fn positive(fields: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
    number.map(Some).ok_or_else(|| wrong(key, value, "a number above 0"))
}

fn missing(key: &str) -> anyhow::Error {
    anyhow!("key `{key}` is missing; fetch the file again")
}

fn wrong(key: &str, value: &Value, expected: &str) -> anyhow::Error {
    anyhow!("key `{key}` is {value}; expected {expected}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The keys without a default.
    fn bare(model_type: &str) -> Value {
        json!({"model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
               "num_hidden_layers": 2, "num_attention_heads": 16})
    }

    fn with(model_type: &str, key: &str, value: Value) -> Result<ModelConfig> {
        let mut json = bare(model_type);
        json[key] = value;
        ModelConfig::from_json(&json, "some/config.json")
    }

    fn refused(model_type: &str, key: &str, value: Value) -> String {
        let error = with(model_type, key, value).expect_err("this must be refused");
        let error = format!("{error:#}");
        assert!(error.starts_with("some/config.json: "), "{error}");
        error
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let read = |model_type: &str| ModelConfig::from_json(&bare(model_type), "config.json").unwrap();
        let (llama, mistral, mixtral) = (read("llama"), read("mistral"), read("mixtral"));
        assert_eq!((llama.num_key_value_heads, mistral.num_key_value_heads, mixtral.num_key_value_heads), (16, 8, 8));
        assert_eq!((llama.rms_norm_eps, mistral.rms_norm_eps, mixtral.rms_norm_eps), (1e-6, 1e-6, 1e-5));
        assert_eq!((llama.rope_theta, mistral.rope_theta, mixtral.rope_theta), (1e4, 1e4, 1e6));
        assert_eq!((llama.sliding_window, mistral.sliding_window, mixtral.sliding_window), (None, Some(4096), None));
        assert_eq!((llama.max_position_embeddings, mixtral.max_position_embeddings), (2048, 131_072));
        assert_eq!((llama.head_dim, llama.tie_word_embeddings, llama.mixture), (4, false, None));
        assert_eq!(mixtral.mixture, Some(Mixture { experts: 8, top_k: 2, router_aux_loss_coef: 0.001 }));
    }

    #[test]
    fn null_is_not_the_same_as_absent() {
        assert_eq!(with("mistral", "num_key_value_heads", Value::Null).unwrap().num_key_value_heads, 16);
        assert_eq!(with("mistral", "sliding_window", Value::Null).unwrap().sliding_window, None);
        assert_eq!(with("llama", "sliding_window", json!(7)).unwrap().sliding_window, None, "Llama has none");
        assert_eq!(with("llama", "head_dim", json!(32)).unwrap().head_dim, 32);
    }

    #[test]
    fn rope_is_read_under_its_old_and_new_names() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192, "rope_theta": 5e5});
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(with("llama", "rope_scaling", llama3.clone()).unwrap().rope_scaling, expected);
        let newer = with("llama", "rope_parameters", llama3).unwrap();
        assert_eq!((newer.rope_scaling, newer.rope_theta), (expected, 5e5));
        let linear = RopeScaling::Linear { factor: 2.0 };
        for key in ["type", "rope_type"] {
            assert_eq!(
                with("llama", "rope_scaling", json!({key: "linear", "factor": 2.0})).unwrap().rope_scaling,
                linear
            );
        }
        let default = with("llama", "rope_parameters", json!({"rope_type": "default", "rope_theta": 3.0})).unwrap();
        assert_eq!((default.rope_scaling, default.rope_theta), (RopeScaling::None, 3.0));
        assert_eq!(with("llama", "rope_scaling", Value::Null).unwrap().rope_scaling, RopeScaling::None);
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        assert!(refused("llama", "model_type", json!("qwen2")).contains("model_type `qwen2`"));
        assert!(refused("llama", "attention_bias", json!(true)).contains("`attention_bias`"));
        assert!(refused("llama", "mlp_bias", json!(true)).contains("`mlp_bias`"));
        assert!(refused("llama", "hidden_act", json!("gelu")).contains("`hidden_act` is gelu"));
        assert!(refused("llama", "partial_rotary_factor", json!(0.5)).contains("`partial_rotary_factor` is 0.5"));
        let quantized = json!({"quant_method": "gptq"});
        assert!(refused("llama", "quantization_config", quantized).contains("gptq"));
        let yarn = json!({"rope_type": "yarn", "factor": 2.0});
        assert!(refused("llama", "rope_scaling", yarn).contains("rope type `yarn`"));
    }

    #[test]
    fn impossible_numbers_name_their_key() {
        for (key, value) in [
            ("vocab_size", json!(0)),
            ("hidden_size", json!(-64)),
            ("hidden_size", json!(1u64 << 40)),
            ("num_hidden_layers", json!(1_000_000_000)),
            ("num_attention_heads", json!(2.5)),
            ("intermediate_size", json!("128")),
            ("intermediate_size", Value::Null),
            ("rms_norm_eps", json!(0.0)),
            ("rope_theta", json!("big")),
            ("num_key_value_heads", json!(5)),
            ("num_attention_heads", json!(7)),
            ("tie_word_embeddings", json!("yes")),
            ("head_dim", json!(3)),
            ("rope_scaling", json!("linear")),
            ("model_type", json!(3)),
        ] {
            let error = refused("llama", key, value.clone());
            assert!(error.contains(key), "{key} = {value}: {error}");
        }
        assert!(refused("llama", "rope_scaling", json!({"type": "linear"})).contains("`factor` is missing"));
        assert!(refused("mixtral", "num_experts_per_tok", json!(9)).contains("more than num_local_experts 8"));
        assert!(refused("mixtral", "router_aux_loss_coef", json!(-1)).contains("router_aux_loss_coef"));
        assert!(ModelConfig::from_json(&json!([]), "config.json").is_err());
    }
}
