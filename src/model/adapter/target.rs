//! The kinds of linears that LoRA can be put on.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// What a linear does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

    /// What the linear `module` is: its path's last part says so.
    pub fn of(module: &str) -> Result<Target> {
        module.rsplit('.').next().unwrap_or(module).parse()
    }

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

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.name().to_owned()
    }
}

impl TryFrom<String> for Target {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Target> {
        name.parse()
    }
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
