//! `adapter_config.json`: what of PEFT's LoRA settings changes the numbers, read.
//!
//! PEFT's config has grown to some fifty keys. Those with an effect are honoured; those that fireval does not know how
//! to honour must stand at "off" (null, false, empty), else the adapter is refused with the key's name and what to do,
//! so that no adapter is ever applied by half. Sources: peft 0.17.1 and 0.21.2, `tuners/lora/config.py`, `utils/other.py`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Map, Value};

use super::peft_targets::{Targets, texts};

/// The settings that decide what a pair does, and where there is one.
#[derive(Debug)]
pub struct PeftConfig {
    rank: usize,
    alpha: f64,
    /// First match wins, as in PEFT.
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    rank_stabilized: bool,
    pub targets: Targets,
    /// Modules whose weights the adapter replaces as a whole.
    pub modules_to_save: Vec<String>,
}

/// Keys without an effect on a trained adapter's numbers, whatever they hold.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys read by [`PeftConfig::new`].
const HONOURED: &[&str] = &[
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "use_rslora",
];

/// What to do about an adapter that does more than add a pair to a linear.
const MERGE: &str = "merge it into the weights with PEFT (`merge_and_unload`) and open the merged model";

/// Keys that are refused, and what they mean.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA scales the columns of each weight"),
    ("lora_bias", "the pairs have biases"),
    ("fan_in_fan_out", "the linears are stored transposed, as GPT-2's are, which no model that opens here does"),
    ("trainable_token_indices", "rows of the embedding are trained"),
    ("layer_replication", "layers are used several times"),
    ("alora_invocation_tokens", "the pairs work from a certain token on"),
    ("arrow_config", "several adapters are routed between"),
];

impl PeftConfig {
    pub fn read(path: &Path) -> Result<PeftConfig> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Map<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is not a JSON object", path.display()))?;
        PeftConfig::new(&value).with_context(|| path.display().to_string())
    }

    pub fn new(value: &Map<String, Value>) -> Result<PeftConfig> {
        is_lora(value.get("peft_type").unwrap_or(&Value::Null))?;
        for (key, setting) in value {
            let known = HONOURED.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
            ensure!(known || is_off(setting), "{}", refusal(key, setting));
        }
        let bias = value.get("bias").unwrap_or(&Value::Null);
        ensure!(is_off(bias) || bias == "none", "`bias` is {bias}: the biases of linears are trained; {MERGE}");
        initialisation_keeps_the_base(value.get("init_lora_weights"))?;
        let rank = whole(value.get("r").context("`r` (the rank) is missing")?).context("`r`")?;
        let alpha = value.get("lora_alpha").context("`lora_alpha` is missing")?;
        Ok(PeftConfig {
            rank,
            alpha: positive(alpha).context("`lora_alpha`")?,
            ranks: patterns(value.get("rank_pattern"), |v| whole(v).map(|r| r as f64)).context("`rank_pattern`")?,
            alphas: patterns(value.get("alpha_pattern"), positive).context("`alpha_pattern`")?,
            rank_stabilized: value.get("use_rslora").is_some_and(|value| value == &Value::Bool(true)),
            targets: Targets::new(value)?,
            modules_to_save: texts(value.get("modules_to_save").unwrap_or(&Value::Null))
                .context("`modules_to_save`")?,
        })
    }

    /// Whether `module` of `modules_to_save` has the weight `tensor`: its path ends so, also within a name, as in PEFT.
    pub fn saves(module: &str, tensor: &str) -> bool {
        tensor.strip_suffix(".weight").is_some_and(|path| path.ends_with(module))
    }

    /// Whether the weight `tensor` was trained as a whole.
    pub fn is_saved(&self, tensor: &str) -> bool {
        self.modules_to_save.iter().any(|module| PeftConfig::saves(module, tensor))
    }

    /// The rank of the module (or parameter) that goes by any of `names`.
    pub fn rank(&self, names: &[&str]) -> usize {
        first_match(&self.ranks, names).map_or(self.rank, |rank| rank as usize)
    }

    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self, names: &[&str]) -> f32 {
        let rank = self.rank(names) as f64;
        let alpha = first_match(&self.alphas, names).unwrap_or(self.alpha);
        (alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}

/// Prompts and prefixes are tokens that no weight could take in, so these cannot be merged either.
fn is_lora(kind: &Value) -> Result<()> {
    match kind.as_str() {
        Some("LORA") => Ok(()),
        Some(prompt) if prompt.contains("PROMPT") || prompt.contains("PREFIX") || prompt == "P_TUNING" => {
            bail!("`peft_type` is \"{prompt}\": virtual tokens have no place here; train a LoRA adapter instead")
        }
        _ => bail!("`peft_type` is {kind}, not \"LORA\"; {MERGE}"),
    }
}

fn refusal(key: &str, setting: &Value) -> String {
    match REFUSED.iter().find(|(refused, _)| *refused == key) {
        Some((_, meaning)) => format!("`{key}` is {setting}: {meaning}, which fireval does not do; {MERGE}"),
        None => format!("`{key}` is {setting}, which fireval does not know; {MERGE}"),
    }
}

/// PiSSA, OLoRA, CorDA and LoftQ change the frozen weights, so their adapter does not fit the original checkpoint.
fn initialisation_keeps_the_base(value: Option<&Value>) -> Result<()> {
    match value {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => Ok(()),
        Some(other) => bail!(
            "`init_lora_weights` is {other}, which changes the frozen weights when PEFT loads the adapter: save it with \
             PEFT's `path_initial_model_for_weight_conversion`, or {MERGE}"
        ),
    }
}

fn whole(value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(rank @ 1..=65_536) => Ok(rank as usize),
        _ => bail!("{value} is not a rank (a whole number from 1 to 65536)"),
    }
}

fn positive(value: &Value) -> Result<f64> {
    match value.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => bail!("{value} is not a positive number"),
    }
}

/// PEFT matches a key against `(.*\.)?(pattern)$` from the start (`get_pattern_key`).
fn patterns(value: Option<&Value>, number: impl Fn(&Value) -> Result<f64>) -> Result<Vec<(Regex, f64)>> {
    let entries = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => bail!("{other} is not an object"),
    };
    let pattern = |key: &String| {
        Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).with_context(|| format!("`{key}` is no regular expression"))
    };
    entries.iter().map(|(key, value)| Ok((pattern(key)?, number(value)?))).collect()
}

fn first_match(patterns: &[(Regex, f64)], names: &[&str]) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| names.iter().any(|name| pattern.is_match(name))).map(|&(_, number)| number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(more: Value) -> Result<PeftConfig> {
        let mut value = json!({"peft_type": "LORA", "r": 16, "lora_alpha": 32});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        PeftConfig::new(value.as_object().unwrap())
    }

    #[test]
    fn scale_is_alpha_over_rank_or_over_its_root() {
        let module = ["model.layers.0.self_attn.q_proj"];
        assert_eq!(config(json!({})).unwrap().scale(&module), 2.0);
        assert_eq!(config(json!({"use_rslora": true})).unwrap().scale(&module), 8.0);
    }

    #[test]
    fn patterns_match_as_peft_matches_them() {
        let config = config(json!({
            "rank_pattern": {"self_attn.q_proj": 4, "^model.layers.1.self_attn.v_proj": 8, r".*\.gate_up_proj": 64},
            "alpha_pattern": {"(q|k)_proj": 12},
        }))
        .unwrap();
        let q = ["model.layers.0.self_attn.q_proj"];
        assert_eq!((config.rank(&q), config.scale(&q)), (4, 3.0));
        // `^` after an optional prefix: only the whole path fits.
        assert_eq!(config.rank(&["model.layers.1.self_attn.v_proj"]), 8);
        assert_eq!(config.rank(&["model.layers.11.self_attn.v_proj"]), 16);
        // A pattern must begin at a dot: `k_proj` is not part of `xk_proj`.
        assert_eq!(config.scale(&["model.layers.0.self_attn.k_proj"]), 0.75);
        assert_eq!(config.scale(&["model.layers.0.self_attn.xk_proj"]), 2.0);
        assert_eq!(config.rank(&["model.layers.0.mlp.experts.gate_up_proj"]), 64);
    }

    #[test]
    fn a_module_to_save_is_the_end_of_a_path() {
        let norm = "model.layers.0.input_layernorm.weight";
        let saves = |module: &str| PeftConfig::saves(module, norm);
        assert_eq!(
            ["norm", "input_layernorm", "layers.0.input_layernorm", "input"].map(saves),
            [true, true, true, false]
        );
        assert!(PeftConfig::saves("lm_head", "lm_head.weight") && !PeftConfig::saves("lm_head", "lm_head.bias"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (more, named) in [
            (json!({"use_dora": true}), "`use_dora` is true: DoRA scales the columns of each weight"),
            (json!({"use_dora": true}), "merge it into the weights with PEFT (`merge_and_unload`)"),
            (json!({"trainable_token_indices": [3]}), "`trainable_token_indices` is [3]: rows of the embedding"),
            (json!({"layer_replication": [[0, 4]]}), "`layer_replication`"),
            (json!({"peft_type": "PROMPT_TUNING"}), "train a LoRA adapter instead"),
            (json!({"peft_type": "IA3"}), "`peft_type` is \"IA3\", not \"LORA\"; merge it"),
            (json!({"modules_to_save": [1]}), "`modules_to_save`"),
            (json!({"bias": "all"}), "`bias`"),
            (json!({"lora_bias": true}), "`lora_bias`"),
            (json!({"fan_in_fan_out": true}), "`fan_in_fan_out`"),
            (json!({"from_the_future": {"x": 1}}), "`from_the_future`"),
            (json!({"init_lora_weights": "pissa"}), "`init_lora_weights`"),
            (json!({"r": 0}), "`r`"),
            (json!({"r": 1e30}), "`r`"),
            (json!({"lora_alpha": "x"}), "`lora_alpha`"),
            (json!({"rank_pattern": {"(": 4}}), "`rank_pattern`"),
            (json!({"alpha_pattern": [1]}), "`alpha_pattern`"),
        ] {
            let error = format!("{:#}", config(more).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
        config(json!({"use_dora": false, "loftq_config": {"loftq_bits": 4}, "from_the_future": {}, "bias": "none"}))
            .unwrap();
    }
}
