//! `[full]` of a recipe, in place of `[lora]`: the weights themselves are trained, all or some of them.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::model::config::ModelConfig;
use crate::model::names;

/// `[full]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Full {
    /// Names of the tensors that are trained, `*` standing for anything (`model.layers.3.*`); absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<String>>,
}

impl Full {
    /// The tensors that are trained, with their shapes, in the order a decoder walks them. A name that stands for none of
    /// the model's is an error.
    pub fn tensors(&self, config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>> {
        let mut tensors = names::tensors(config);
        let Some(patterns) = &self.tensors else { return Ok(tensors) };
        for pattern in patterns {
            ensure!(
                tensors.iter().any(|(name, _)| stands_for(pattern, name)),
                "`[full] tensors` names `{pattern}`, which is no tensor of this model (they are called like {} and {})",
                names::EMBEDDING,
                names::input_norm(0)
            );
        }
        tensors.retain(|(name, _)| patterns.iter().any(|pattern| stands_for(pattern, name)));
        Ok(tensors)
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.tensors.as_ref().is_none_or(|tensors| !tensors.is_empty()),
            "`[full] tensors` is empty (leave it out to train all)"
        );
        Ok(())
    }
}

/// Whether `name` is `pattern`, in which each `*` may be any text.
fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter().any(|at| stands_for(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        let name = "model.layers.12.mlp.up_proj.weight";
        for pattern in ["*", name, "model.layers.12.*", "*.up_proj.*", "model.layers.*.mlp.*.weight", "*t"] {
            assert!(stands_for(pattern, name), "{pattern}");
        }
        for pattern in ["", "model.layers.1.*", "up_proj", "*.down_proj.*", "model.layers.12", "*.weight.*"] {
            assert!(!stands_for(pattern, name), "{pattern}");
        }
    }
}
