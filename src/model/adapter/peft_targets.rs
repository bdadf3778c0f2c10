//! Which modules PEFT's settings put a pair on: `target_modules` and what narrows it down.
//!
//! An adapter's tensors are what is applied; the settings are what PEFT would apply. So the two are held against each
//! other: a tensor on a module that is not targeted (PEFT would pass over it), or a targeted module without its tensors
//! where others of its kind have them (a file that is not whole), is an error with the module's name. Source: peft 0.17.1
//! and 0.21.2, `tuners/tuners_utils.py`, `check_target_module_exists`.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Map, Value};

use crate::model::names;

/// The settings that name modules.
#[derive(Debug)]
pub struct Targets {
    modules: Modules,
    excluded: Modules,
    /// `layers_to_transform`.
    layers: Option<Vec<usize>>,
    /// `layers_pattern`: what the list of layers is called.
    lists: Vec<String>,
    /// `target_parameters`: of experts that are one parameter, and routers, in transformers 5.
    parameters: Vec<String>,
}

/// `target_modules` or `exclude_modules`.
#[derive(Debug)]
enum Modules {
    None,
    /// Whole paths, or what a path ends with.
    Listed(Vec<String>),
    /// Fits the whole path.
    Pattern(Regex),
    /// Every linear (`"all-linear"`), or a pattern that only Python's engine can follow: nothing is held against it.
    Any,
}

impl Targets {
    pub fn new(settings: &Map<String, Value>) -> Result<Targets> {
        let value = |key: &str| settings.get(key).unwrap_or(&Value::Null);
        let strings = |key: &str| texts(value(key)).with_context(|| format!("`{key}`"));
        Ok(Targets {
            modules: Modules::new(value("target_modules")).context("`target_modules`")?,
            excluded: Modules::new(value("exclude_modules")).context("`exclude_modules`")?,
            layers: layers(value("layers_to_transform")).context("`layers_to_transform`")?,
            lists: strings("layers_pattern")?,
            parameters: strings("target_parameters")?,
        })
    }

    /// Holds the modules that a file has pairs of against the settings, for a model of so many layers and experts.
    pub fn check(&self, modules: &[&str], layers: usize, experts: usize) -> Result<()> {
        for module in modules {
            ensure!(
                self.may_be(module),
                "`{module}` has a pair, but the config does not target it, so PEFT would pass over it"
            );
        }
        let present: HashSet<&str> = modules.iter().copied().collect();
        let kinds: BTreeSet<String> = modules.iter().map(|module| kind(module)).collect();
        for module in kinds.iter().flat_map(|kind| of_kind(kind, layers, experts)) {
            ensure!(
                present.contains(module.as_str()) || !self.must_be(&module),
                "the config targets `{module}`, but the file has no pair of it; is the file whole?"
            );
        }
        Ok(())
    }

    /// Whether a version of PEFT would put a pair there.
    fn may_be(&self, module: &str) -> bool {
        self.is_parameter(module) || self.names(module) && self.numbers(module).iter().any(|&number| self.has(number))
    }

    /// Whether every version of PEFT would.
    fn must_be(&self, module: &str) -> bool {
        let tells = !matches!(self.modules, Modules::Any) && !matches!(self.excluded, Modules::Any);
        tells && self.names(module) && self.numbers(module).iter().all(|&number| self.has(number))
    }

    fn names(&self, module: &str) -> bool {
        let is_excluded = !matches!(self.excluded, Modules::Any) && self.excluded.fit(module);
        self.modules.fit(module) && !is_excluded
    }

    fn has(&self, layer: Option<usize>) -> bool {
        self.layers.as_ref().is_none_or(|layers| layer.is_some_and(|layer| layers.contains(&layer)))
    }

    /// The number of the module's layer as versions of PEFT find it: behind what `layers_pattern` says; without one, the
    /// last number of the path up to 0.17 (so, in a mixture, an expert's), the first one since.
    fn numbers(&self, module: &str) -> [Option<usize>; 2] {
        let parts: Vec<&str> = module.split('.').collect();
        let number = |at: usize| parts[at].parse::<usize>().ok();
        let mut inner = 1..parts.len().saturating_sub(1);
        if self.lists.is_empty() {
            return [inner.clone().find_map(number), inner.rev().find_map(number)];
        }
        let is_list = |path: String| self.lists.iter().any(|list| path == *list || path.ends_with(&format!(".{list}")));
        let listed = inner.find(|&at| number(at).is_some() && is_list(parts[..at].join("."))).and_then(number);
        [listed; 2]
    }

    fn is_parameter(&self, module: &str) -> bool {
        let parameter = names::weight(module);
        let fused = module.ends_with(".mlp.experts") || module.ends_with(".mlp.experts.base_layer");
        self.parameters.iter().any(|name| match fused {
            true => name.ends_with("gate_up_proj") || name.ends_with("down_proj"),
            false => parameter == *name || parameter.ends_with(&format!(".{name}")),
        })
    }
}

impl Modules {
    fn new(value: &Value) -> Result<Modules> {
        match value {
            Value::Null => Ok(Modules::None),
            Value::String(all) if all.eq_ignore_ascii_case("all-linear") => Ok(Modules::Any),
            // An expression with a look-around compiles in Python alone.
            Value::String(pattern) => {
                Ok(Regex::new(&format!("^(?:{pattern})$")).map_or(Modules::Any, Modules::Pattern))
            }
            listed => texts(listed).map(Modules::Listed),
        }
    }

    fn fit(&self, module: &str) -> bool {
        match self {
            Modules::None => false,
            Modules::Listed(names) => names.iter().any(|name| module == name || module.ends_with(&format!(".{name}"))),
            Modules::Pattern(pattern) => pattern.is_match(module),
            Modules::Any => true,
        }
    }
}

/// A module's path with its numbers left open: `model.layers.*.block_sparse_moe.experts.*.w1`.
fn kind(module: &str) -> String {
    let open = |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
    module.split('.').map(open).collect::<Vec<_>>().join(".")
}

/// All modules of a kind: the first open number is the layer's, the second the expert's.
fn of_kind(kind: &str, layers: usize, experts: usize) -> Vec<String> {
    let layers = (0..layers).map(|layer| kind.replacen('*', &layer.to_string(), 1));
    let each = |module: String| (0..experts).map(move |expert| module.replacen('*', &expert.to_string(), 1));
    let mut modules: Vec<String> = layers.flat_map(each).collect();
    modules.dedup();
    modules
}

/// One text or several.
pub(super) fn texts(value: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => bail!("{other} is not a name"),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// One layer or several; none listed is all.
fn layers(value: &Value) -> Result<Option<Vec<usize>>> {
    let layer = |value: &Value| {
        let number = value.as_u64().with_context(|| format!("{value} is not the number of a layer"))?;
        Ok(usize::try_from(number)?)
    };
    match value {
        Value::Null => Ok(None),
        Value::Array(items) if items.is_empty() => Ok(None),
        Value::Array(items) => items.iter().map(layer).collect::<Result<_>>().map(Some),
        one => Ok(Some(vec![layer(one)?])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn targets(settings: Value) -> Targets {
        Targets::new(settings.as_object().unwrap()).unwrap()
    }

    fn refusal(settings: Value, modules: &[&str]) -> String {
        targets(settings).check(modules, 2, 2).map_or_else(|error| error.to_string(), |()| String::new())
    }

    const Q: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];

    #[test]
    fn lists_expressions_and_all_linear_target_as_in_peft() {
        for accepted in [
            json!({"target_modules": ["q_proj"]}),
            json!({"target_modules": ["q_proj", "w1"]}),
            json!({"target_modules": r".*\.(q|v)_proj"}),
            json!({"target_modules": "all-linear"}),
            json!({"target_modules": r".*(?<!k)_proj"}), // Python's alone
            json!({"target_modules": ["q_proj"], "exclude_modules": "nothing"}),
            json!({"target_modules": null, "target_parameters": ["q_proj.weight"]}),
        ] {
            assert_eq!(refusal(accepted.clone(), &Q), "", "{accepted}");
        }
        for refused in [
            json!({"target_modules": ["proj"]}),
            json!({"target_modules": "q_proj"}), // an expression fits the whole path or not at all
            json!({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}),
            json!({"target_modules": ["q_proj"], "layers_to_transform": [0]}),
            json!({}),
        ] {
            assert!(refusal(refused.clone(), &Q).contains("does not target it"), "{refused}");
        }
    }

    #[test]
    fn a_missing_pair_is_named() {
        let listed = json!({"target_modules": ["q_proj"]});
        assert!(refusal(listed, &Q[..1]).contains("`model.layers.1.self_attn.q_proj`"));
        for narrower in [
            json!({"target_modules": ["q_proj"], "layers_to_transform": 0}),
            json!({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}),
            json!({"target_modules": r".*layers\.0\..*"}),
            json!({"target_modules": "all-linear"}),
        ] {
            assert_eq!(refusal(narrower.clone(), &Q[..1]), "", "{narrower}");
        }
        let w1 = |layer: usize, expert: usize| format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1");
        let error = refusal(json!({"target_modules": ["w1"]}), &[&w1(0, 0), &w1(0, 1), &w1(1, 0)]);
        assert!(error.contains(&w1(1, 1)), "{error}");
    }

    /// Up to 0.17 PEFT took an expert's number for its layer's; both readings are accepted unless the pattern decides.
    #[test]
    fn a_layer_is_what_its_pattern_says() {
        let (first, second) =
            ("model.layers.0.block_sparse_moe.experts.1.w1", "model.layers.1.block_sparse_moe.experts.0.w1");
        let plain = json!({"target_modules": ["w1"], "layers_to_transform": [0]});
        assert_eq!(refusal(plain, &["model.layers.0.block_sparse_moe.experts.0.w1", first, second]), "");
        let clear = json!({"target_modules": ["w1"], "layers_to_transform": [0], "layers_pattern": "layers"});
        assert!(refusal(clear, &[first, second]).contains(&format!("`{second}` has a pair")));
    }

    #[test]
    fn wrong_kinds_of_values_are_named() {
        for (key, value) in
            [("target_modules", json!(7)), ("layers_to_transform", json!(["x"])), ("exclude_modules", json!([1]))]
        {
            let settings = json!({ key: value });
            let error = format!("{:#}", Targets::new(settings.as_object().unwrap()).unwrap_err());
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }
}
