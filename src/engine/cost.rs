//! What computing costs: floating-point operations of a model, and how many of them this machine does in a second.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Pasts};
use crate::model::names::{self, ATTENTION_LINEARS};
use crate::model::packed::{Packed, Segment};
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
    last: Last,
}

/// What the last layer spares of a token that is not read.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Last {
    /// Its linears but q, k and v.
    per_token: f64,
    /// How far back it sees, and its attention to one of the tokens there.
    window: usize,
    per_key: f64,
}

impl Cost {
    pub fn of(config: &ModelConfig) -> Cost {
        let used = config.mixture.map_or(1.0, |mixture| mixture.top_k as f64 / mixture.experts as f64);
        let weights = |linear: &names::Linear| {
            let share = if linear.module.contains(".experts.") { used } else { 1.0 };
            share * (linear.outputs * linear.inputs) as f64
        };
        let of = |layer: usize, from: usize| names::linears(config, layer)[from..].iter().map(weights).sum::<f64>();
        let last = config.num_hidden_layers - 1;
        Cost {
            per_token: 2.0 * (0..=last).map(|layer| of(layer, 0)).sum::<f64>(),
            per_key: per_key(config),
            per_row: 2.0 * (config.hidden_size * config.vocab_size) as f64,
            last: Last {
                per_token: 2.0 * of(last, ATTENTION_LINEARS - 1),
                window: config.window(last).unwrap_or(usize::MAX),
                per_key: key_of_a_layer(config),
            },
        }
    }

    /// Tokens walked together, and `rows` of them through the head.
    pub fn walk(&self, packed: &Packed, rows: usize) -> f64 {
        let is_read = |row: usize| packed.read.as_ref().is_none_or(|read| read.binary_search(&row).is_ok());
        let of_segment = |segment: &Segment| -> f64 {
            let tokens = (0..segment.len).map(|at| (segment.start + at, segment.position + at));
            let token = |(row, at)| self.token(at) - if is_read(row) { 0.0 } else { self.last.of(at) };
            tokens.map(token).sum()
        };
        packed.segments.iter().map(of_segment).sum::<f64>() + self.per_row * rows as f64
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

impl Last {
    fn of(&self, position: usize) -> f64 {
        self.per_token + self.per_key * (position + 1).min(self.window) as f64
    }
}

/// A token's attention to one token in a layer.
fn key_of_a_layer(config: &ModelConfig) -> f64 {
    4.0 * (config.num_attention_heads * config.head_dim) as f64
}

fn per_key(config: &ModelConfig) -> Vec<(usize, f64)> {
    let layer = key_of_a_layer(config);
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
        // Of the last one a token that is not read spares o and the three, and the scores and mix of two heads.
        let last = Last { per_token: 2.0 * (16.0 + 96.0), window: usize::MAX, per_key: 16.0 };
        assert_eq!(dense, Cost { per_token: 864.0, per_key: vec![(usize::MAX, 48.0)], per_row: 80.0, last });
        let mut packed = Packed::default();
        let prefix = packed.push(&[1, 2], None);
        packed.push(&[3], Some(prefix));
        assert_eq!(dense.walk(&packed, 2), 3.0 * 864.0 + (1.0 + 2.0 + 3.0) * 48.0 + 2.0 * 80.0);
        let all = dense.walk(&packed, 1);
        packed.read_only(vec![2, 2]);
        assert_eq!(dense.walk(&packed, 1), all - 2.0 * 224.0 - (1.0 + 2.0) * 16.0);
        packed.read = None;
        // Of three new tokens the first comes with the prompt; the others follow positions 5 and 6.
        assert_eq!(dense.generation(5, 3), 2.0 * (864.0 + 80.0) + (6.0 + 7.0) * 48.0);
        json["model_type"] = json!("mixtral");
        json["num_local_experts"] = json!(4);
        json["num_experts_per_tok"] = json!(1);
        json["sliding_window"] = json!(2);
        let mixture = Cost::of(&ModelConfig::from_json(&json, "config.json").unwrap());
        // One of four experts, and the router of 4 x 4.
        let last = Last { per_token: 2.0 * (16.0 + 16.0 + 96.0), window: 2, per_key: 16.0 };
        assert_eq!(mixture, Cost { per_token: 960.0, per_key: vec![(2, 48.0)], per_row: 80.0, last });
        assert_eq!(mixture.walk(&packed, 0), 3.0 * 960.0 + (1.0 + 2.0 + 2.0) * 48.0);
    }
}
