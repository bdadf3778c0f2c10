//! Rotary embedding's angles, with the scalings `linear` and `llama3`.
//!
//! Rounded to f32 where transformers rounds (the power, its inverse, the angle): at position 1,000 the last bit of a
//! frequency is worth 1e-4 of a log-likelihood.

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::model::config::{ModelConfig, RopeScaling};
use crate::model::packed::Packed;

/// Inverse frequencies of a model, one per pair of a head's numbers.
pub struct Rotary {
    inverse_frequencies: Vec<f32>, // (head_dim / 2)
}

impl Rotary {
    pub fn new(config: &ModelConfig) -> Rotary {
        let plain = (0..config.head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / config.head_dim as f32;
            1.0 / config.rope_theta.powf(f64::from(exponent)) as f32
        });
        let inverse_frequencies = plain.map(|frequency| scaled(frequency, config.rope_scaling)).collect();
        Rotary { inverse_frequencies }
    }

    /// Cosines and sines of every token: two of (tokens, head_dim / 2).
    pub fn angles(&self, packed: &Packed, device: &Device) -> Result<(Tensor, Tensor)> {
        let positions = packed.segments.iter().flat_map(|segment| segment.position..segment.position + segment.len);
        let angles: Vec<f32> = positions
            .flat_map(|position| self.inverse_frequencies.iter().map(move |frequency| position as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, (packed.len(), self.inverse_frequencies.len()), device)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}

/// transformers' `_compute_linear_scaling_rope_parameters` and `_compute_llama3_parameters`.
fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let [factor, low, high] = [factor, low_freq_factor, high_freq_factor].map(|number| number as f32);
            let original = original_max_position_embeddings as f32;
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
    }
}
