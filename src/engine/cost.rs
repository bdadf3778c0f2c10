//! What computing costs: floating-point operations of a model, and how many of them this machine does in a second.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Pasts};
use crate::model::names;
use crate::model::packed::Packed;
use crate::random::Random;

/// Operations (a multiplication and its addition are two) that a model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// A token through all linears of all layers, of a mixture only those experts that it uses.
    per_token: f64,
    /// A token's attention to one token, in all layers that see equally far back, and how far that is.
    per_key: Vec<(usize, f64)>,
    /// A row through the head.
    per_row: f64,
}

impl Cost {
    pub fn of(config: &ModelConfig) -> Cost {
        let used = config.mixture.map_or(1.0, |mixture| mixture.top_k as f64 / mixture.experts as f64);
        let weights = |linear: &names::Linear| {
            let share = if linear.module.contains(".experts.") { used } else { 1.0 };
            share * (linear.outputs * linear.inputs) as f64
        };
        let linears = (0..config.num_hidden_layers).flat_map(|layer| names::linears(config, layer));
        Cost {
            per_token: 2.0 * linears.map(|linear| weights(&linear)).sum::<f64>(),
            per_key: per_key(config),
            per_row: 2.0 * (config.hidden_size * config.vocab_size) as f64,
        }
    }

    /// Tokens walked together, and `rows` of them through the head.
    pub fn walk(&self, packed: &Packed, rows: usize) -> f64 {
        let positions = packed.segments.iter().flat_map(|segment| segment.position..segment.position + segment.len);
        let layers: f64 = positions.map(|position| self.token(position)).sum();
        layers + self.per_row * rows as f64
    }

    /// `new` tokens generated one by one after `prompt`, beyond reading the prompt and taking the first of them.
    pub fn generation(&self, prompt: usize, new: usize) -> f64 {
        (prompt..prompt + new.saturating_sub(1)).map(|position| self.token(position) + self.per_row).sum()
    }

    fn token(&self, position: usize) -> f64 {
        let keys = self.per_key.iter().map(|&(window, per_key)| per_key * (position + 1).min(window) as f64);
        self.per_token + keys.sum::<f64>()
    }
}

fn per_key(config: &ModelConfig) -> Vec<(usize, f64)> {
    let layer = 4.0 * (config.num_attention_heads * config.head_dim) as f64;
    let mut per_key: Vec<(usize, f64)> = Vec::new();
    for window in (0..config.num_hidden_layers).map(|layer| config.window(layer).unwrap_or(usize::MAX)) {
        match per_key.iter_mut().find(|(known, _)| *known == window) {
            Some((_, sum)) => *sum += layer,
            None => per_key.push((window, layer)),
        }
    }
    per_key
}

/// Sequences and tokens of each that are walked to time a decoder.
const SEQUENCES: usize = 4;
const LENGTH: usize = 128;
const AT_LEAST: Duration = Duration::from_millis(500);

/// Operations a second of `decoder` on this machine as it is now, over half a second of walks.
pub fn speed<D: Decoder>(decoder: &D) -> Result<f64> {
    let mut random = Random::new(0);
    let mut sequence = || (0..LENGTH).map(|_| random.below(decoder.config().vocab_size) as u32).collect::<Vec<u32>>();
    let packed = Packed::rows(&(0..SEQUENCES).map(|_| sequence()).collect::<Vec<_>>());
    decoder.walk(&packed, Pasts::None)?; // the first one takes memory and wakes threads
    let (start, mut walks) = (Instant::now(), 0);
    while walks == 0 || start.elapsed() < AT_LEAST {
        decoder.walk(&packed, Pasts::None)?;
        walks += 1;
    }
    Ok(Cost::of(decoder.config()).walk(&packed, 0) * f64::from(walks) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_are_counted_as_by_hand() {
        let mut json = json!({
            "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 10,
        });
        let dense = Cost::of(&ModelConfig::from_json(&json, "config.json").unwrap());
        // A layer: q and o 4 x 4, k and v 2 x 4, and three of 4 x 8: 48 + 96 weights.
        assert_eq!(dense, Cost { per_token: 864.0, per_key: vec![(usize::MAX, 48.0)], per_row: 80.0 });
        let mut packed = Packed::default();
        let prefix = packed.push(&[1, 2], None);
        packed.push(&[3], Some(prefix));
        assert_eq!(dense.walk(&packed, 2), 3.0 * 864.0 + (1.0 + 2.0 + 3.0) * 48.0 + 2.0 * 80.0);
        // Of three new tokens the first comes with the prompt; the others follow positions 5 and 6.
        assert_eq!(dense.generation(5, 3), 2.0 * (864.0 + 80.0) + (6.0 + 7.0) * 48.0);
        json["model_type"] = json!("mixtral");
        json["num_local_experts"] = json!(4);
        json["num_experts_per_tok"] = json!(1);
        json["sliding_window"] = json!(2);
        let mixture = Cost::of(&ModelConfig::from_json(&json, "config.json").unwrap());
        // One of four experts, and the router of 4 x 4.
        assert_eq!(mixture, Cost { per_token: 960.0, per_key: vec![(2, 48.0)], per_row: 80.0 });
        assert_eq!(mixture.walk(&packed, 0), 3.0 * 960.0 + (1.0 + 2.0 + 2.0) * 48.0);
    }
}
