//! What a recipe takes, counted from the model's config alone: parameters, steps, tokens, memory.
//!
//! The memory is that of the card (or of the machine, without one), by this accounting, in bytes:
//! - frozen linears in NF4: half a byte a weight, a byte per block of 64, a float per 256 blocks and one per matrix;
//! - everything not quantised (embedding, head, norms) in the recipe's dtype;
//! - adapter, gradients and AdamW's two moments in f32;
//! - with recomputation one hidden state per token of a micro-batch and layer, in f32 (without: every layer's graph);
//! - workspace: one layer's graph and its gradients on a micro-batch, in f32; the largest frozen matrix decoded, in f32;
//!   128 rows of logits twice, in f32.
//!
//! A graph holds three numbers for each that a layer computes, since autograd keeps the temporaries of norms, softmax and
//! silu (measured on the rehearsal without recomputation: 2.8). On a CPU as many micro-batches as there are threads are
//! in work at a time, each with its own graph.
//!
//! "Streamed" is the same run with two layers on the card at a time (one computing, one arriving) and head, adapter,
//! gradients and moments likewise, the rest waiting in host memory or on disk.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::initial::linears;
use super::recipe::{Quantization, Recipe};
use crate::model::adapter::target::Target;
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::weights::Checkpoint;

/// Configs that are built in, for plans without the model at hand.
const BUNDLED: &[(&str, &str)] =
    &[("mixtral-8x7b-v0.1", include_str!("../../finetune/configs/mixtral-8x7b-v0.1.json"))];

const CARDS: [u64; 2] = [16, 32];
/// Numbers that autograd keeps for each that a layer computes.
const GRAPH: u64 = 3;
/// Rows of logits held at once.
const HEAD_ROWS: u64 = 128;

/// What a recipe takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the config came from.
    pub model: String,
    /// All weights of the base model.
    pub parameters: u64,
    /// Trained parameters by kind of linear, in the order of a layer.
    pub trained: Vec<(Target, u64)>,
    /// `None` where the recipe counts in epochs.
    pub steps: Option<usize>,
    pub dialogues_per_step: usize,
    /// No dialogue is longer.
    pub max_tokens: usize,
    pub memory: Vec<Memory>,
}

/// One row of the memory table, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub what: &'static str,
    /// With the whole model in place.
    pub resident: u64,
    /// With two layers in place at a time.
    pub streamed: u64,
}

impl Plan {
    pub fn trained_parameters(&self) -> u64 {
        self.trained.iter().map(|(_, count)| count).sum()
    }

    pub fn trained_without_router(&self) -> u64 {
        self.trained.iter().filter(|(target, _)| *target != Target::Router).map(|(_, count)| count).sum()
    }

    /// (resident, streamed) bytes in all.
    pub fn memory_in_all(&self) -> (u64, u64) {
        self.memory.iter().fold((0, 0), |(resident, streamed), row| (resident + row.resident, streamed + row.streamed))
    }
}

/// Counts with the recipe's `config`, else with that of the checkpoint at `model`. Loads no weight.
pub fn plan(recipe: &Recipe, model: Option<&Path>) -> Result<Plan> {
    let (place, config) = config(recipe, model)?;
    let chosen = linears(&config, &recipe.lora)?;
    let mut trained: Vec<(Target, u64)> = Vec::new();
    for (target, linear) in &chosen {
        let count = (recipe.lora.rank(*target) * (linear.inputs + linear.outputs)) as u64;
        match trained.iter_mut().find(|(found, _)| found == target) {
            Some((_, sum)) => *sum += count,
            None => trained.push((*target, count)),
        }
    }
    let all = names::tensors(&config).into_iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
    let trained_parameters = trained.iter().map(|(_, count)| count).sum();
    Ok(Plan {
        model: place,
        parameters: all,
        memory: memory(recipe, &config, all, trained_parameters),
        trained,
        steps: recipe.stated_steps(),
        dialogues_per_step: recipe.dialogues_per_step(),
        max_tokens: recipe.max_tokens,
    })
}

fn config(recipe: &Recipe, model: Option<&Path>) -> Result<(String, ModelConfig)> {
    let Some(name) = &recipe.config else {
        let Some(model) = model else {
            bail!("`{}` is not at hand to plan with: give the recipe a `config`", recipe.model)
        };
        let checkpoint = Checkpoint::open(model)?;
        let config = ModelConfig::from_json(checkpoint.config_json(), checkpoint.config_place())?;
        return Ok((model.display().to_string(), config));
    };
    let text = match BUNDLED.iter().find(|(bundled, _)| bundled == name) {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(name).with_context(|| {
            let known: Vec<&str> = BUNDLED.iter().map(|(bundled, _)| *bundled).collect();
            format!("`config` is `{name}`, neither a file nor a bundled config (bundled: {})", known.join(", "))
        })?,
    };
    let json = serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
    Ok((name.clone(), ModelConfig::from_json(&json, name)?))
}

fn memory(recipe: &Recipe, config: &ModelConfig, all: u64, trained: u64) -> Vec<Memory> {
    let layers = config.num_hidden_layers as u64;
    let linears: Vec<u64> =
        names::linears(config, 0).iter().map(|linear| (linear.inputs * linear.outputs) as u64).collect();
    let per_layer: u64 = linears.iter().sum();
    let dtype = recipe.dtype.bytes();
    let layer_bytes = match recipe.quantization {
        Quantization::Nf4 => linears.iter().map(|&weights| nf4_bytes(weights)).sum(),
        Quantization::None => per_layer * dtype,
    };
    let other = all - layers * per_layer;
    let head = (config.vocab_size * config.hidden_size) as u64;
    let tokens = (recipe.batch.dialogues * recipe.max_tokens) as u64;
    let at_once = layers.min(2);
    let row = |what, resident, streamed| Memory { what, resident, streamed };
    let activations = layer_activations(config, recipe.max_tokens as u64) * tokens * 4;
    let kept = match recipe.recompute {
        true => tokens * config.hidden_size as u64 * 4,
        false => GRAPH * activations,
    };
    let largest = linears.iter().max().copied().unwrap_or(0);
    let decoded = if recipe.quantization == Quantization::Nf4 { largest * 4 } else { 0 };
    let workspace = (GRAPH + 1) * activations + decoded + 2 * HEAD_ROWS * config.vocab_size as u64 * 4;
    vec![
        row("frozen linears", layers * layer_bytes, at_once * layer_bytes),
        row("embedding, head, norms", other * dtype, head * dtype),
        row("adapter", trained * 4, at_once * trained * 4 / layers),
        row("gradients", trained * 4, at_once * trained * 4 / layers),
        row("AdamW's moments", trained * 8, at_once * trained * 8 / layers),
        row("kept for the way back", layers * kept, layers * kept),
        row("workspace", workspace, workspace),
    ]
}

fn nf4_bytes(weights: u64) -> u64 {
    let blocks = weights.div_ceil(64);
    weights.div_ceil(2) + blocks + 4 * blocks.div_ceil(256) + 4
}

/// Numbers that one layer computes for a token of a dialogue of `length` tokens.
fn layer_activations(config: &ModelConfig, length: u64) -> u64 {
    let (hidden, heads) = (config.hidden_size as u64, config.num_attention_heads as u64);
    let queries = heads * config.head_dim as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    // Queries and keys before and after rotation, values; scores before and after softmax; what they gather.
    let attention = 3 * queries + 3 * keys + 2 * heads * length;
    let experts = config.mixture.map_or(1, |mixture| mixture.top_k) as u64;
    // Gate, its silu, up, their product; input and output of each expert.
    let feed_forward = experts * (4 * config.intermediate_size as u64 + 2 * hidden);
    // Two norms, two residual sums, the attention's output.
    attention + feed_forward + 5 * hidden
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model               {} ({} parameters)", self.model, grouped(self.parameters))?;
        for (target, count) in &self.trained {
            writeln!(f, "  {:<10}{:>20}", target.name(), grouped(*count))?;
        }
        writeln!(f, "trained parameters  {:>12}", grouped(self.trained_parameters()))?;
        writeln!(f, "without the router  {:>12}", grouped(self.trained_without_router()))?;
        let per_step = self.dialogues_per_step;
        match self.steps {
            Some(steps) => {
                let dialogues = (steps * per_step) as u64;
                writeln!(f, "steps               {:>12}", grouped(steps as u64))?;
                writeln!(f, "dialogues           {:>12} ({per_step} a step)", grouped(dialogues))?;
                let tokens = dialogues * self.max_tokens as u64;
                writeln!(f, "tokens, at most     {:>12} ({} a dialogue)", grouped(tokens), self.max_tokens)?;
            }
            None => writeln!(f, "steps               by epochs, {per_step} dialogues a step")?,
        }
        writeln!(f, "\n{:<26}{:>12}{:>16}", "memory (GiB)", "whole model", "layer by layer")?;
        for row in &self.memory {
            writeln!(f, "{:<26}{:>12.2}{:>16.2}", row.what, gibibytes(row.resident), gibibytes(row.streamed))?;
        }
        let (resident, streamed) = self.memory_in_all();
        writeln!(f, "{:<26}{:>12.2}{:>16.2}", "in all", gibibytes(resident), gibibytes(streamed))?;
        for card in CARDS {
            let fits = |bytes: u64| if bytes <= card << 30 { "fits" } else { "does not fit" };
            writeln!(f, "{:<26}{:>12}{:>16}", format!("a card of {card} GB"), fits(resident), fits(streamed))?;
        }
        writeln!(f, "(layer by layer: what streaming the weights would take; this version holds the whole model)")
    }
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// 48000 as "48,000".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(group.iter().map(|&digit| char::from(digit)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post() -> Plan {
        let recipe = Recipe::parse(include_str!("../../finetune/mixtral-8x7b-v100.toml"), "some.toml").unwrap();
        plan(&recipe, None).unwrap()
    }

    #[test]
    fn the_posts_run_is_counted_to_the_parameter() {
        let plan = post();
        assert_eq!(plan.parameters, 46_702_792_704);
        assert_eq!(plan.trained_parameters(), 242_225_152);
        assert_eq!(plan.trained_without_router(), 240_123_904);
        let printed = plan.to_string();
        for line in [
            "trained parameters   242,225,152",
            "without the router   240,123,904",
            "steps                      3,000",
            "dialogues                 48,000 (16 a step)",
            "tokens, at most       49,152,000 (1024 a dialogue)",
        ] {
            assert!(printed.contains(line), "{line} is not in\n{printed}");
        }
    }

    #[test]
    fn the_posts_run_fits_its_card_whole_and_a_smaller_one_layer_by_layer() {
        let plan = post();
        let (resident, streamed) = plan.memory_in_all();
        assert!(16 << 30 < resident && resident < 32 << 30, "{plan}");
        assert!(streamed < 16 << 30, "{plan}");
        // 32 layers of q, o (4096 x 4096), k, v (4096 x 1024), router (4096 x 8), 24 expert matrices (4096 x 14336).
        assert_eq!(plan.memory[0].resident, 23_957_163_904);
    }

    #[test]
    fn nf4_takes_little_more_than_half_a_byte() {
        // 4096 x 14336: 29,360,128 bytes of codes, 917,504 scales of a byte, 3,584 floats, one offset.
        assert_eq!(nf4_bytes(4096 * 14_336), 29_360_128 + 917_504 + 14_336 + 4);
        assert_eq!(nf4_bytes(1), 1 + 1 + 4 + 4);
    }

    #[test]
    fn a_config_that_is_nowhere_and_a_target_the_model_lacks_are_named() {
        let text = include_str!("../../finetune/mixtral-8x7b-v100.toml");
        let with = |from: &str, to: &str| {
            let recipe = Recipe::parse(&text.replacen(from, to, 1), "some.toml").unwrap();
            format!("{:#}", plan(&recipe, None).unwrap_err())
        };
        let error = with("config = \"mixtral-8x7b-v0.1\"", "config = \"nowhere.json\"");
        assert!(error.contains("nowhere.json") && error.contains("mixtral-8x7b-v0.1"), "{error}");
        assert!(with("config = \"mixtral-8x7b-v0.1\"", "").contains("give the recipe a `config`"));
        let error = with("\"gate\"", "\"gate_proj\"");
        assert!(error.contains("`gate_proj`") && error.contains("w3"), "{error}");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1_000, 48_000, 242_225_152].map(grouped), ["0", "999", "1,000", "48,000", "242,225,152"]);
    }
}
