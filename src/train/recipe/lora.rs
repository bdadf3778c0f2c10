//! `[lora]` of a recipe: which linears get a pair, of what rank, with what scale.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{above_zero, within};
use crate::model::adapter::peft::{Own, PeftSettings};
use crate::model::adapter::target::Target;

/// `[lora]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f64,
    #[serde(default)]
    pub dropout: f64,
    pub targets: Vec<Target>,
    /// The layers that get pairs; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// rsLoRA (Kalajdzievski, arXiv 2312.03732): the scale is alpha / sqrt(rank).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rank_stabilized: bool,
    /// Targets with a rank of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<Target, usize>,
    /// Targets with an alpha of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alphas: BTreeMap<Target, f64>,
}

/// Numbers of layers, rising: "0-3, 8" in a recipe, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layers(Vec<usize>);

impl Lora {
    pub fn rank(&self, target: Target) -> usize {
        self.ranks.get(&target).copied().unwrap_or(self.rank)
    }

    pub fn alpha(&self, target: Target) -> f64 {
        self.alphas.get(&target).copied().unwrap_or(self.alpha)
    }

    /// What a pair's product is multiplied by.
    pub fn scale(&self, target: Target) -> f32 {
        let rank = self.rank(target) as f64;
        (self.alpha(target) / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }

    /// Whether the layer gets pairs.
    pub fn has_layer(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.0.contains(&layer))
    }

    /// What `adapter_config.json` says of an adapter of `model` that is trained so.
    pub fn peft_settings(&self, model: &str) -> PeftSettings {
        let target = |&target: &Target| {
            let differs = self.ranks.contains_key(&target) || self.alphas.contains_key(&target);
            (target, differs.then(|| Own { rank: self.rank(target), alpha: self.alpha(target) }))
        };
        PeftSettings {
            base_model: model.to_owned(),
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.iter().map(target).collect(),
            rank_stabilized: self.rank_stabilized,
            layers: self.layers.as_ref().map(|layers| layers.0.clone()),
        }
    }

    /// An error for a layer beyond the model's `count`.
    pub fn check_layers(&self, count: usize) -> Result<()> {
        match self.layers.iter().flat_map(|layers| &layers.0).find(|&&layer| layer >= count) {
            Some(layer) => bail!("`[lora] layers` names layer {layer}, but the model's {count} are numbered from 0"),
            None => Ok(()),
        }
    }

    /// Of a mixture: an error for linears that transformers 5 keeps in one tensor and PEFT can only open together, with
    /// one rank and scale.
    pub fn check_joined(&self) -> Result<()> {
        for [first, second] in [[Target::W1, Target::W3], [Target::Gate, Target::Up]] {
            let [has_first, has_second] = [first, second].map(|target| self.targets.contains(&target));
            let alike = self.rank(first) == self.rank(second) && self.alpha(first) == self.alpha(second);
            ensure!(
                has_first == has_second && (alike || !has_first),
                "`[lora]`: {first} and {second} are one tensor in transformers 5, so PEFT opens an adapter there only if \
                 both are targets, with the same rank and alpha"
            );
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        for rank in self.ranks.values().chain([&self.rank]) {
            within("[lora] rank", *rank, 1, 65_536)?;
        }
        for alpha in self.alphas.values().chain([&self.alpha]) {
            above_zero("[lora] alpha", *alpha, 1e6)?;
        }
        within("[lora] dropout", self.dropout, 0.0, 0.99)?;
        ensure!(!self.targets.is_empty(), "`[lora] targets` is empty");
        let mut sorted = self.targets.clone();
        sorted.sort_unstable();
        sorted.dedup();
        ensure!(sorted.len() == self.targets.len(), "`[lora] targets` names a target twice");
        let own = self.ranks.keys().chain(self.alphas.keys());
        for target in own {
            ensure!(
                self.targets.contains(target),
                "`[lora]` gives `{target}` a rank or alpha of its own, but `targets` does not list it"
            );
        }
        Ok(())
    }
}

impl TryFrom<String> for Layers {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Layers> {
        let mut layers: Vec<usize> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |number: &str| number.trim().parse::<u16>().ok().map(usize::from);
            let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
            let (first, last) = range.with_context(|| {
                format!("`{part}` in layers \"{text}\" is neither a layer's number nor a range like 0-3")
            })?;
            ensure!(layers.last().is_none_or(|&before| before < first), "layers \"{text}\" do not rise at `{part}`");
            layers.extend(first..=last);
        }
        Ok(Layers(layers))
    }
}

impl From<Layers> for String {
    fn from(Layers(layers): Layers) -> String {
        let runs = layers.chunk_by(|&a, &b| a + 1 == b);
        let run = |run: &[usize]| match run {
            [only] => only.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        };
        runs.map(run).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<Layers> {
        Layers::try_from(text.to_owned())
    }

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(layers("0-3, 8,10 - 11").unwrap(), Layers(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(String::from(layers("0, 1,2, 5").unwrap()), "0-2, 5");
        for (wrong, told) in [
            ("", "neither a layer's number"),
            ("1-", "`1-`"),
            ("3-1", "`3-1`"),
            ("-1", "`-1`"),
            ("x", "`x`"),
            ("4, 2", "do not rise at `2`"),
            ("0-3, 3", "do not rise at `3`"),
            ("0-99999999", "0-99999999"),
        ] {
            let error = layers(wrong).unwrap_err().to_string();
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }

    #[test]
    fn scales_follow_each_targets_rank_and_alpha() {
        let mut lora = Lora {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: vec![Target::Query, Target::Value],
            layers: None,
            rank_stabilized: false,
            ranks: BTreeMap::from([(Target::Value, 4)]),
            alphas: BTreeMap::from([(Target::Value, 6.0)]),
        };
        assert_eq!((lora.scale(Target::Query), lora.scale(Target::Value)), (2.0, 1.5));
        lora.rank_stabilized = true;
        assert_eq!((lora.scale(Target::Query), lora.scale(Target::Value)), (8.0, 3.0));
        let settings = lora.peft_settings("base");
        assert_eq!(settings.targets[0], (Target::Query, None));
        assert_eq!(settings.targets[1], (Target::Value, Some(Own { rank: 4, alpha: 6.0 })));
    }
}
