//! Rotary scaling as `config.json` states it, found again from metadata and tensors of factors.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::Metadata;
use crate::weights::decode;
use crate::weights::gguf::Place;

pub(super) fn scaling(metadata: &Metadata, config: &Map<String, Value>) -> Result<Value> {
    let tensors = &metadata.gguf.tensors;
    if let Some(place) = tensors.get("rope_freqs.weight") {
        return llama3_scaling(metadata, config, place).context("tensor `rope_freqs.weight`");
    }
    if let Some(long) = tensors.get("rope_factors_long.weight") {
        return long_rope(metadata, long).context("tensors `rope_factors_short.weight` and `rope_factors_long.weight`");
    }
    let factor = match metadata.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => metadata.number("rope.scale_linear")?, // its older name
    };
    let key = metadata.key("rope.scaling.type");
    match (metadata.gguf.text(&key)?, factor) {
        (None | Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (None | Some("none"), _) => Ok(Value::Null),
        (Some("yarn"), Some(factor)) => yarn(metadata, factor),
        (Some(kind @ ("linear" | "yarn")), None) => bail!("`{key}` is {kind}, but its factor is missing"),
        (Some(other), _) => {
            bail!("rope scaling `{other}` does not open; `linear`, `yarn`, LongRoPE's and Llama 3's do")
        }
    }
}

fn factors(metadata: &Metadata, place: &Place) -> Result<Vec<f32>> {
    decode::to_f32(place.format, &place.shape, &metadata.gguf.mapped.map[place.start..place.end])
}

/// YaRN's, under the keys that llama.cpp's `conversion/base.py` writes. What is not stated is what `config.json` would
/// leave out too: the trained length is then the whole context.
fn yarn(metadata: &Metadata, factor: f64) -> Result<Value> {
    let extrapolation = "rope.scaling.yarn_ext_factor";
    // Below zero llama.cpp takes its own choice, which is 1.
    if let Some(share) = metadata.number(extrapolation)?.filter(|share| *share >= 0.0 && *share != 1.0) {
        bail!("`{}` is {share}; only 1 opens", metadata.key(extrapolation));
    }
    let mut table = Map::from_iter([("rope_type".to_owned(), json!("yarn")), ("factor".to_owned(), json!(factor))]);
    let mut state = |name: &str, value: Option<f64>| table.extend(value.map(|value| (name.to_owned(), json!(value))));
    for (name, key) in [
        ("attention_factor", "rope.scaling.yarn_attn_factor"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ] {
        state(name, metadata.number(key)?);
    }
    if let Some(all) = metadata.number("rope.scaling.yarn_log_multiplier")?.filter(|all| *all != 0.0) {
        state("mscale", Some(1.0));
        state("mscale_all_dim", Some(all));
    }
    Ok(Value::Object(table))
}

/// Phi-3's. Factors are written as the hub's config has them, in f32.
fn long_rope(metadata: &Metadata, long: &Place) -> Result<Value> {
    let Some(short) = metadata.gguf.tensors.get("rope_factors_short.weight") else {
        bail!("only the factors for long texts are there; convert the model again")
    };
    let mut table = json!({
        "rope_type": "longrope",
        "short_factor": factors(metadata, short)?,
        "long_factor": factors(metadata, long)?,
    });
    if let Some(factor) = metadata.number("rope.scaling.attn_factor")? {
        table["attention_factor"] = json!(factor);
    }
    Ok(table)
}

/// Llama 3's parameters found again from the factor of each frequency. Every published model of that kind has
/// low_freq_factor 1, high_freq_factor 4 and 8192 original positions; the factors must come out of these.
fn llama3_scaling(metadata: &Metadata, config: &Map<String, Value>, place: &Place) -> Result<Value> {
    let stored = factors(metadata, place)?;
    if stored.iter().all(|factor| *factor == 1.0) {
        return Ok(Value::Null);
    }
    let original = metadata.count("rope.scaling.original_context_length")?.unwrap_or(8192);
    let largest = stored.iter().copied().fold(0.0, f32::max);
    let theta = config["rope_theta"].as_f64().expect("set from a finite number");
    let head_dim = 2 * stored.len();
    let agrees = stored.iter().enumerate().all(|(index, factor)| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * index as f64 / head_dim as f64);
        let expected = llama3_factor(wavelength, largest.into(), original as f64);
        (f64::from(*factor) / expected - 1.0).abs() < 1e-3
    });
    ensure!(
        agrees,
        "these factors are not Llama 3's (low 1, high 4, {original} positions); such scaling does not open"
    );
    Ok(json!({
        "rope_type": "llama3",
        "factor": f64::from(largest),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }))
}

/// What a frequency of that wavelength is divided by (transformers' `_compute_llama3_parameters`).
fn llama3_factor(wavelength: f64, factor: f64, original: f64) -> f64 {
    let (low, high) = (1.0, 4.0);
    let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_factors_by_hand() {
        // Short waves stay, long ones are stretched 8 times, and halfway (8192 / 2.5 positions) smooth is 0.5.
        assert_eq!(llama3_factor(100.0, 8.0, 8192.0), 1.0);
        assert_eq!(llama3_factor(9000.0, 8.0, 8192.0), 8.0);
        let halfway = llama3_factor(8192.0 / 2.5, 8.0, 8192.0);
        assert!((halfway - 1.0 / (0.5 / 8.0 + 0.5)).abs() < 1e-12);
    }
}
