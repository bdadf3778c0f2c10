//! What a recipe takes, counted from the model's config alone: parameters, steps, tokens, memory ([`memory`]).

mod card;
mod full;
mod memory;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::initial::linears;
use super::recipe::{Method, Recipe};
use crate::memory::Memory;
use crate::model::adapter::target::Target;
use crate::model::config::ModelConfig;
use crate::model::names::{self, Linear};
use crate::weights::Checkpoint;
use full::FullNeeds;
use memory::Needs;

/// Configs that are built in, for plans without the model at hand.
const BUNDLED: &[(&str, &str)] =
    &[("mixtral-8x7b-v0.1", include_str!("../../../finetune/configs/mixtral-8x7b-v0.1.json"))];

/// What a recipe takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where the config came from.
    pub model: String,
    /// All weights of the base model.
    pub parameters: u64,
    /// Trained parameters by kind of linear or tensor, in the order of a layer.
    pub trained: Vec<(&'static str, u64)>,
    /// `None` where the recipe counts in epochs.
    pub steps: Option<usize>,
    pub dialogues_per_step: usize,
    /// No dialogue is longer.
    pub max_tokens: usize,
    pub needs: Needs,
    /// Where weights themselves are trained, in place of `needs`.
    pub full: Option<FullNeeds>,
    /// What a run may take here.
    pub memory: Memory,
}

impl Plan {
    pub fn trained_parameters(&self) -> u64 {
        self.trained.iter().map(|(_, count)| count).sum()
    }

    pub fn trained_without_router(&self) -> u64 {
        self.trained.iter().filter(|(kind, _)| *kind != Target::Router.name()).map(|(_, count)| count).sum()
    }
}

/// Counts with the recipe's `config`, else with that of the checkpoint at `model`. Loads no weight.
pub fn plan(recipe: &Recipe, model: Option<&Path>, memory: Memory) -> Result<Plan> {
    let (place, config) = config(recipe, model)?;
    let mut trained: Vec<(&'static str, u64)> = Vec::new();
    for (kind, count) in counts(recipe, &config)? {
        match trained.iter_mut().find(|(found, _)| *found == kind) {
            Some((_, sum)) => *sum += count,
            None => trained.push((kind, count)),
        }
    }
    let trained_parameters = trained.iter().map(|(_, count)| count).sum();
    Ok(Plan {
        model: place,
        parameters: names::parameters(&config).all,
        needs: Needs::of(recipe, &config, trained_parameters),
        full: match recipe.method() {
            Method::Lora(_) => None,
            Method::Full(_) => Some(FullNeeds::of(recipe, &config, trained_parameters)),
        },
        memory,
        trained,
        steps: recipe.stated_steps(),
        dialogues_per_step: recipe.dialogues_per_step(),
        max_tokens: recipe.max_tokens,
    })
}

/// The kind and the trained numbers of everything that is trained.
fn counts(recipe: &Recipe, config: &ModelConfig) -> Result<Vec<(&'static str, u64)>> {
    Ok(match recipe.method() {
        Method::Lora(lora) => {
            let numbers = |target, linear: &Linear| (lora.rank(target) * (linear.inputs + linear.outputs)) as u64;
            linears(config, lora)?.iter().map(|(target, linear)| (target.name(), numbers(*target, linear))).collect()
        }
        Method::Full(full) => {
            let tensors = full.tensors(config)?.into_iter();
            tensors.map(|(name, shape)| (kind(&name), shape.iter().product::<usize>() as u64)).collect()
        }
    })
}

/// What a tensor is called in the table.
fn kind(tensor: &str) -> &'static str {
    let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
    match tensor {
        names::EMBEDDING => "embedding",
        names::HEAD => "head",
        _ if tensor.ends_with(".bias") => "biases",
        _ => Target::of(module).map_or("norms", Target::name),
    }
}

fn config(recipe: &Recipe, model: Option<&Path>) -> Result<(String, ModelConfig)> {
    let Some(name) = &recipe.config else {
        let Some(model) = model else {
            bail!("`{}` is not at hand to plan with: give the recipe a `config`", recipe.model)
        };
        let checkpoint = Checkpoint::open(model)?;
        let config = ModelConfig::of(&checkpoint)?;
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model               {} ({} parameters)", self.model, grouped(self.parameters))?;
        for (kind, count) in &self.trained {
            writeln!(f, "  {kind:<10}{:>20}", grouped(*count))?;
        }
        writeln!(f, "trained parameters  {:>12}", grouped(self.trained_parameters()))?;
        if self.full.is_none() {
            writeln!(f, "without the router  {:>12}", grouped(self.trained_without_router()))?;
        }
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
        match &self.full {
            Some(full) => {
                write!(f, "\n{full}")?;
                full.show_within(self.memory, f)
            }
            None => {
                write!(f, "\n{}", self.needs)?;
                self.needs.show_within(self.memory, f)
            }
        }
    }
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
    use std::collections::HashMap;

    use super::*;
    use crate::model::device::CONTEXT;

    fn post() -> Plan {
        let recipe = Recipe::parse(include_str!("../../../finetune/mixtral-8x7b-v100.toml"), "some.toml").unwrap();
        plan(&recipe, None, Memory(1 << 30)).unwrap()
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
    fn a_token_goes_through_two_experts_of_eight() {
        let json = serde_json::from_str(BUNDLED[0].1).unwrap();
        let counted = names::parameters(&ModelConfig::from_json(&json, "config.json").unwrap());
        // 32 layers of 24 expert matrices of 4096 x 14336, of which 6 are used.
        assert_eq!(counted.all - counted.active, 32 * 18 * 4096 * 14_336);
        assert_eq!(counted.active, 12_879_925_248);
    }

    #[test]
    fn the_posts_run_fits_its_card_whole_and_a_smaller_one_with_some_layers_waiting() {
        let plan = post();
        // 32 layers of q, o (4096 x 4096), k, v (4096 x 1024), router (4096 x 8), 24 expert matrices (4096 x 14336).
        assert_eq!(plan.needs.rows[0].card.whole, 23_957_163_904);
        let (_, card) = plan.needs.in_all();
        assert!(16 << 30 < card.whole && card.whole < 32 << 30, "{plan}");
        let needs = plan.needs.on_card();
        let on = |gibibytes: u64| needs.on((gibibytes << 30) - CONTEXT).unwrap();
        let (large, small) = (on(32), on(16));
        assert!(large.stay == 32 && large.link == 2 * 4 * 242_225_152 && large.peak == card.whole, "{plan}");
        assert!(0 < small.stay && small.stay < 32 && small.peak <= (16 << 30) - CONTEXT, "{plan}");
        // Gradients there and an adapter back, and each of 16 micro-batches brings in every waiting layer twice.
        let waiting = (32 - small.stay as u64) * 23_957_163_904 / 32;
        assert_eq!(small.link, 2 * 4 * 242_225_152 + 32 * waiting, "{plan}");
        assert!(plan.to_string().contains(&format!("of 16 GB: {} of 32 layers stay", small.stay)), "{plan}");
    }

    #[test]
    fn a_budget_decides_what_is_streamed_and_what_walks_together() {
        let needs = post().needs;
        let within = |gibibytes: u64| needs.within(Memory(gibibytes << 30));
        let (spilled, whole, none) = (within(12), within(64), within(2));
        assert!(!whole.streams && whole.together == 16 && whole.traffic.in_all() == 0, "{whole}");
        assert!(spilled.streams && spilled.together == 16 && spilled.peak <= 12 << 30, "{spilled}");
        assert!(none.together == 0 && none.peak > 2 << 30, "{none}");
        assert!(post().to_string().contains("not enough, a step takes"));
    }

    #[test]
    fn nf4_takes_little_more_than_half_a_byte() {
        // 4096 x 14336: 29,360,128 bytes of codes, 917,504 scales of a byte, 3,584 floats, one offset.
        assert_eq!(memory::nf4_bytes(4096 * 14_336), 29_360_128 + 917_504 + 14_336 + 4);
        assert_eq!(memory::nf4_bytes(1), 1 + 1 + 4 + 4);
    }

    #[test]
    fn a_config_that_is_nowhere_and_a_target_the_model_lacks_are_named() {
        let text = include_str!("../../../finetune/mixtral-8x7b-v100.toml");
        let with = |from: &str, to: &str| {
            let recipe = Recipe::parse(&text.replacen(from, to, 1), "some.toml").unwrap();
            format!("{:#}", plan(&recipe, None, Memory(1 << 30)).unwrap_err())
        };
        let error = with("config = \"mixtral-8x7b-v0.1\"", "config = \"nowhere.json\"");
        assert!(error.contains("nowhere.json") && error.contains("mixtral-8x7b-v0.1"), "{error}");
        assert!(with("config = \"mixtral-8x7b-v0.1\"", "").contains("give the recipe a `config`"));
        let error = with("\"gate\"", "\"gate_proj\"");
        assert!(error.contains("`gate_proj`") && error.contains("w3"), "{error}");
    }

    #[test]
    fn weights_that_are_trained_are_counted_with_their_moments() {
        let text = include_str!("../../../finetune/mixtral-8x7b-v100.toml").replace("\"nf4\"", "\"none\"");
        let (before, after) = (text.find("[lora]").unwrap(), text.find("[optimizer]").unwrap());
        let text = format!("{}[full]\n{}", &text[..before], &text[after..]);
        let plan = plan(&Recipe::parse(&text, "some.toml").unwrap(), None, Memory(1 << 30)).unwrap();
        assert_eq!((plan.trained_parameters(), plan.parameters), (46_702_792_704, 46_702_792_704));
        let counts: HashMap<&str, u64> = plan.trained.iter().copied().collect();
        // Two norms a layer and the last; a router of 8 experts a layer.
        assert_eq!((counts["norms"], counts["gate"]), (65 * 4096, 32 * 8 * 4096));
        assert_eq!((counts["embedding"], counts["head"]), (32_000 * 4096, 32_000 * 4096));
        let full = plan.full.as_ref().unwrap();
        let [here, card] = full.in_all();
        // f32 twice (the decoder's and the run's), a gradient, two moments; on a card f16 and a gradient.
        assert!(here > 20 * plan.parameters && card > 10 * plan.parameters && card < 12 * plan.parameters);
        let shown = plan.to_string();
        assert!(shown.contains("not enough, a step takes") && shown.contains("embedding"), "{shown}");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1_000, 48_000, 242_225_152].map(grouped), ["0", "999", "1,000", "48,000", "242,225,152"]);
    }
}
