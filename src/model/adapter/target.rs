//! The linears of a model that LoRA can be put on, in the order of the layers.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::model::config::{Mixture, ModelConfig};
use crate::model::names;

/// What a linear does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    Query,
    Key,
    Value,
    Output,
    /// The mixture's router.
    Router,
    W1,
    W2,
    W3,
    /// A dense layer's gate, up and down.
    Gate,
    Up,
    Down,
}

/// One linear of a model: `outputs x inputs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Module path as the checkpoint spells it.
    pub module: String,
    pub target: Target,
    pub inputs: usize,
    pub outputs: usize,
}

impl Target {
    pub const ALL: [Target; 11] = [
        Target::Query,
        Target::Key,
        Target::Value,
        Target::Output,
        Target::Router,
        Target::W1,
        Target::W2,
        Target::W3,
        Target::Gate,
        Target::Up,
        Target::Down,
    ];

    /// The last part of the module path, as PEFT's `target_modules` lists it.
    pub fn name(self) -> &'static str {
        match self {
            Target::Query => "q_proj",
            Target::Key => "k_proj",
            Target::Value => "v_proj",
            Target::Output => "o_proj",
            Target::Router => "gate",
            Target::W1 => "w1",
            Target::W2 => "w2",
            Target::W3 => "w3",
            Target::Gate => "gate_proj",
            Target::Up => "up_proj",
            Target::Down => "down_proj",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Target> {
        match Target::ALL.into_iter().find(|target| target.name() == name) {
            Some(target) => Ok(target),
            None => bail!("unknown target `{name}` (known: {})", Target::ALL.map(Target::name).join(", ")),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Target> {
        name.parse()
    }
}

/// Every linear of the layers: attention, then the router and each expert, or the dense feed-forward.
pub fn sites(config: &ModelConfig) -> Vec<Site> {
    (0..config.num_hidden_layers).flat_map(|layer| layer_sites(config, layer)).collect()
}

fn layer_sites(config: &ModelConfig, layer: usize) -> Vec<Site> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let site = |module: String, target, inputs, outputs| Site { module, target, inputs, outputs };
    let mut sites = vec![
        site(names::q_proj(layer), Target::Query, hidden, queries),
        site(names::k_proj(layer), Target::Key, hidden, keys),
        site(names::v_proj(layer), Target::Value, hidden, keys),
        site(names::o_proj(layer), Target::Output, queries, hidden),
    ];
    match config.mixture {
        Some(Mixture { experts, .. }) => {
            sites.push(site(names::router(layer), Target::Router, hidden, experts));
            for expert in 0..experts {
                sites.push(site(names::w1(layer, expert), Target::W1, hidden, wide));
                sites.push(site(names::w2(layer, expert), Target::W2, wide, hidden));
                sites.push(site(names::w3(layer, expert), Target::W3, hidden, wide));
            }
        }
        None => {
            sites.push(site(names::gate_proj(layer), Target::Gate, hidden, wide));
            sites.push(site(names::up_proj(layer), Target::Up, hidden, wide));
            sites.push(site(names::down_proj(layer), Target::Down, wide, hidden));
        }
    }
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_named_as_its_module_ends() {
        for target in Target::ALL {
            assert_eq!(target.name().parse::<Target>().unwrap(), target);
        }
        assert!("w4".parse::<Target>().unwrap_err().to_string().contains("`w4`"));
    }
}
