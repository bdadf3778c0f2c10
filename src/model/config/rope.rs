//! Rotary embedding: what a config says of it, and the frequencies that follow.
//!
//! Rounded to f32 where transformers rounds (the power, its inverse, the angle): at position 1,000 the last bit of a
//! frequency is worth 1e-4 of a log-likelihood. Source: transformers' `modeling_rope_utils.py`.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

#[cfg(doc)]
use super::ModelConfig;
use super::read::{missing, positive, wrong};

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Its base grows only with a sequence that is longer than `max_position_embeddings` (with which longest sequence of a
    /// process, transformers leaves to chance). None is: scoring cuts there, and training refuses longer ones.
    Dynamic,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): fast pairs turn as trained, slow ones `factor` times slower, a ramp between.
    Yarn {
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Turns within the trained length from which on a pair is fast, and up to which it is slow.
        beta_fast: f64,
        beta_slow: f64,
        /// The ends of the ramp are whole pairs.
        truncate: bool,
        original_max_position_embeddings: usize,
    },
    /// LongRoPE. A sequence that outgrows the trained length takes other factors, from its first token on, as transformers
    /// decides for a batch of one (of several, by the longest, padding counted; here company never matters). So a prefix
    /// that a shorter sequence and a longer one share is computed once for each ([`ModelConfig::short_length`]).
    LongRope {
        /// Divides each frequency, within the trained length and beyond.
        short_factor: Vec<f64>, // (rotary_dim / 2)
        long_factor: Vec<f64>, // (rotary_dim / 2)
        /// Multiplies cosines and sines.
        attention_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// The rotary embedding of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// What the scaling of a config leans on from outside its table.
pub(super) struct Surroundings {
    pub rotary_dim: usize,
    pub max_position_embeddings: usize,
    /// Of Phi-3, beside the table.
    pub original_max_position_embeddings: Option<usize>,
}

impl Rope {
    /// The angle by which each pair of a head's `rotary_dim` rotated numbers turns from one position to the next:
    /// (rotary_dim / 2). `is_long`: in a sequence beyond the trained length, where that matters.
    pub fn inverse_frequencies(&self, rotary_dim: usize, is_long: bool) -> Vec<f32> {
        let power = |pair: usize| self.theta.powf(f64::from((2 * pair) as f32 / rotary_dim as f32)) as f32;
        (0..rotary_dim / 2)
            .map(|pair| match &self.scaling {
                RopeScaling::None | RopeScaling::Dynamic => 1.0 / power(pair),
                RopeScaling::Linear { factor } => (1.0 / power(pair)) / *factor as f32,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    let [factor, low, high] =
                        [*factor, *low_freq_factor, *high_freq_factor].map(|number| number as f32);
                    let original = *original_max_position_embeddings as f32;
                    llama3(1.0 / power(pair), factor, (low, high), original)
                }
                RopeScaling::Yarn { factor, .. } => {
                    let slow = self.slow_part(pair, rotary_dim);
                    let (fast, stretched) = (1.0 / power(pair), 1.0 / (*factor as f32 * power(pair)));
                    stretched * slow + fast * (1.0 - slow)
                }
                RopeScaling::LongRope { short_factor, long_factor, .. } => {
                    let factor = if is_long { long_factor } else { short_factor };
                    1.0 / (factor[pair] as f32 * power(pair))
                }
            })
            .collect()
    }

    /// What cosines and sines are multiplied by.
    pub fn amplitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
        }
    }

    /// How far a pair is on YaRN's ramp from fast (0) to slow (1). Transformers' `_compute_yarn_parameters`.
    fn slow_part(&self, pair: usize, rotary_dim: usize) -> f32 {
        let RopeScaling::Yarn { beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } = self.scaling
        else {
            return 0.0;
        };
        let pair_of = |turns: f64| {
            let waves = original_max_position_embeddings as f64 / (turns * 2.0 * std::f64::consts::PI);
            rotary_dim as f64 * waves.ln() / (2.0 * self.theta.ln())
        };
        let (first, last) = (pair_of(beta_fast), pair_of(beta_slow));
        let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, last) = (first.max(0.0), last.min(rotary_dim as f64 - 1.0));
        let length = if first == last { 0.001 } else { last - first };
        ((pair as f32 - first as f32) / length as f32).clamp(0.0, 1.0)
    }
}

/// transformers' `_compute_llama3_parameters`.
fn llama3(frequency: f32, factor: f32, (low, high): (f32, f32), original: f32) -> f32 {
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Of a `rope_scaling` or `rope_parameters` table.
pub(super) fn scaling(fields: &Map<String, Value>, around: &Surroundings) -> Result<RopeScaling> {
    let kind = fields.get("rope_type").or(fields.get("type")).filter(|kind| !kind.is_null());
    let number = |key: &str| positive(fields, key)?.ok_or_else(|| missing(key));
    match kind.map(|kind| kind.as_str().ok_or_else(|| wrong("rope_type", kind, "text"))).transpose()? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            ensure!(low < high, "low_freq_factor {low} is not below high_freq_factor {high}");
            Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
            })
        }
        Some("dynamic") => number("factor").map(|_| RopeScaling::Dynamic),
        Some("yarn") => yarn(fields, around),
        Some("longrope" | "su") => long_rope(fields, around),
        Some(other) => bail!(
            "rope type `{other}` does not open; `default`, `linear`, `dynamic`, `llama3`, `yarn` and `longrope` do"
        ),
    }
}

/// transformers' `_compute_yarn_parameters`.
fn yarn(fields: &Map<String, Value>, around: &Surroundings) -> Result<RopeScaling> {
    let number = |key: &str| positive(fields, key);
    let factor = number("factor")?.ok_or_else(|| missing("factor"))?;
    let (beta_fast, beta_slow) = (number("beta_fast")?.unwrap_or(32.0), number("beta_slow")?.unwrap_or(1.0));
    ensure!(beta_slow <= beta_fast, "beta_slow {beta_slow} is above beta_fast {beta_fast}");
    let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor = match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
        (Some(stated), _, _) => stated,
        (None, Some(mscale), Some(all)) => grown(mscale) / grown(all),
        (None, _, _) => grown(1.0),
    };
    let truncate = match fields.get("truncate") {
        None => true,
        Some(value) => value.as_bool().ok_or_else(|| wrong("truncate", value, "true or false"))?,
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate,
        original_max_position_embeddings: original_length(fields, around)?,
    })
}

/// transformers' `_compute_longrope_parameters`.
fn long_rope(fields: &Map<String, Value>, around: &Surroundings) -> Result<RopeScaling> {
    let short_factor = factors(fields, "short_factor", around.rotary_dim / 2)?;
    let long_factor = factors(fields, "long_factor", around.rotary_dim / 2)?;
    let length = original_length(fields, around)?;
    let original = length as f64;
    let factor = positive(fields, "factor")?.unwrap_or(around.max_position_embeddings as f64 / original);
    let attention_factor = match positive(fields, "attention_factor")? {
        Some(stated) => stated,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings: length })
}

/// The trained length that YaRN and LongRoPE stretch.
fn original_length(fields: &Map<String, Value>, around: &Surroundings) -> Result<usize> {
    let key = "original_max_position_embeddings";
    let inner = positive(fields, key)?.map(|number| number as usize);
    let length = around.original_max_position_embeddings.or(inner).unwrap_or(around.max_position_embeddings);
    ensure!(length > 1, "`{key}` is {length}; expected a length of 2 or more");
    Ok(length)
}

fn factors(fields: &Map<String, Value>, key: &str, count: usize) -> Result<Vec<f64>> {
    let value = fields.get(key).ok_or_else(|| missing(key))?;
    let items = value.as_array().ok_or_else(|| wrong(key, value, "a list of numbers"))?;
    ensure!(items.len() == count, "`{key}` has {} numbers; {} rotated ones need {count}", items.len(), 2 * count);
    let number = |item: &Value| item.as_f64().filter(|number| number.is_finite() && *number > 0.0);
    items.iter().map(number).collect::<Option<_>>().ok_or_else(|| anyhow!("`{key}`: expected numbers above 0"))
}

/// A table of a config, or an error that names it.
pub(super) fn table<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    value.as_object().map(Some).ok_or_else(|| wrong(key, value, "a table"))
}
