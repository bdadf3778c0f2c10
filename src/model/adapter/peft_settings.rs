//! `adapter_config.json` as it is written: keys that PEFT has known since 0.7, so that old and new versions read it.
//!
//! The file names modules as transformers 4 has them. Newer PEFT converts them for transformers 5, where w1 and w3 are one
//! parameter and so are all experts, but its patterns do not follow (`_convert_peft_config_moe`, peft 0.21.2: the rank of
//! `gate_up_proj` is twice the default one whatever `rank_pattern` says of w1, and under rsLoRA twice the rank and twice
//! alpha are another scale). So what differs from the default is written under the new names too, ahead of what is added
//! there: the first match wins.

use serde_json::{Map, Value, json};

use super::target::Target;

/// What is written beside the numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftSettings {
    /// `base_model_name_or_path`: where PEFT looks for the frozen model.
    pub base_model: String,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// What has a pair, with its own rank and alpha where it has these.
    pub targets: Vec<(Target, Option<Own>)>,
    /// rsLoRA: the scale is alpha / sqrt(rank), not alpha / rank.
    pub rank_stabilized: bool,
    /// The layers that have pairs; absent: all.
    pub layers: Option<Vec<usize>>,
}

/// A target's own rank and alpha.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Own {
    pub rank: usize,
    pub alpha: f64,
}

impl PeftSettings {
    /// The file's content, for an adapter of a mixture or of a dense model.
    pub fn to_json(&self, is_mixture: bool) -> Map<String, Value> {
        let mut targets: Vec<&str> = self.targets.iter().map(|(target, _)| target.name()).collect();
        targets.sort_unstable();
        let (ranks, alphas) = self.patterns(is_mixture);
        // The name of the list keeps PEFT up to 0.17 from taking an expert's number for its layer's.
        let list = self.layers.as_ref().map(|_| "layers");
        let fields = [
            ("alpha_pattern", Value::Object(alphas)),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layers_pattern", json!(list)),
            ("layers_to_transform", json!(self.layers)),
            ("lora_alpha", number(self.alpha)),
            ("lora_dropout", json!(self.dropout)),
            ("modules_to_save", Value::Null),
            ("peft_type", json!("LORA")),
            ("r", json!(self.rank)),
            ("rank_pattern", Value::Object(ranks)),
            ("revision", Value::Null),
            ("target_modules", json!(targets)),
            ("task_type", json!("CAUSAL_LM")),
            ("use_rslora", json!(self.rank_stabilized)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// `rank_pattern` and `alpha_pattern`.
    fn patterns(&self, is_mixture: bool) -> (Map<String, Value>, Map<String, Value>) {
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for &(target, own) in &self.targets {
            let Own { rank, alpha } = own.unwrap_or(Own { rank: self.rank, alpha: self.alpha });
            let (parameter, parts) = parameter(target);
            if own.is_some() {
                ranks.insert(target.name().to_owned(), json!(rank));
                alphas.insert(target.name().to_owned(), number(alpha));
            }
            let differs = own.is_some() || (self.rank_stabilized && parts > 1);
            if let Some(parameter) = parameter.filter(|_| is_mixture && differs) {
                let scaled = alpha * if self.rank_stabilized { (parts as f64).sqrt() } else { parts as f64 };
                ranks.insert(parameter.to_owned(), json!(rank * parts));
                alphas.insert(parameter.to_owned(), number(scaled));
            }
        }
        (ranks, alphas)
    }
}

/// The parameter that holds the target in transformers 5's mixtures, and how many targets share it.
fn parameter(target: Target) -> (Option<&'static str>, usize) {
    match target {
        Target::Query | Target::Key | Target::Value | Target::Output => (None, 1),
        Target::Router => (Some("gate.weight"), 1),
        Target::W1 | Target::W3 | Target::Gate | Target::Up => (Some("gate_up_proj"), 2),
        Target::W2 | Target::Down => (Some("down_proj"), 1),
    }
}

/// Whole numbers as such.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_case_has_no_patterns() {
        let targets = [Target::W1, Target::W3, Target::Query].map(|target| (target, None)).to_vec();
        let json = PeftSettings { rank: 16, alpha: 16.0, targets, ..PeftSettings::default() }.to_json(true);
        assert_eq!((&json["rank_pattern"], &json["alpha_pattern"]), (&json!({}), &json!({})));
        assert_eq!((&json["layers_to_transform"], &json["layers_pattern"]), (&Value::Null, &Value::Null));
        assert_eq!(json["target_modules"], json!(["q_proj", "w1", "w3"]));
    }

    #[test]
    fn what_differs_is_written_under_old_and_new_names() {
        let own = Some(Own { rank: 8, alpha: 4.5 });
        let settings = PeftSettings {
            rank: 16,
            alpha: 16.0,
            targets: vec![(Target::Query, None), (Target::W1, own), (Target::W3, own), (Target::Router, own)],
            layers: Some(vec![1, 2]),
            ..PeftSettings::default()
        };
        let json = settings.to_json(true);
        assert_eq!(json["rank_pattern"], json!({"w1": 8, "gate_up_proj": 16, "w3": 8, "gate": 8, "gate.weight": 8}));
        let alphas = json!({"w1": 4.5, "gate_up_proj": 9, "w3": 4.5, "gate": 4.5, "gate.weight": 4.5});
        assert_eq!(json["alpha_pattern"], alphas);
        assert_eq!((&json["layers_to_transform"], &json["layers_pattern"]), (&json!([1, 2]), &json!("layers")));
        let dense = PeftSettings { targets: vec![(Target::Up, own)], ..settings }.to_json(false);
        assert_eq!(
            (&dense["rank_pattern"], &dense["alpha_pattern"]),
            (&json!({"up_proj": 8}), &json!({"up_proj": 4.5}))
        );
    }

    #[test]
    fn under_rslora_a_doubled_rank_keeps_its_scale() {
        let targets = [Target::W1, Target::W3].map(|target| (target, None)).to_vec();
        let settings = PeftSettings { rank: 8, alpha: 16.0, rank_stabilized: true, targets, ..PeftSettings::default() };
        let json = settings.to_json(true);
        assert_eq!(json["rank_pattern"], json!({"gate_up_proj": 16}));
        let alpha = json["alpha_pattern"]["gate_up_proj"].as_f64().unwrap();
        assert!((alpha / 16f64.sqrt() - 16.0 / 8f64.sqrt()).abs() < 1e-12, "{alpha}");
    }
}
