//! Rotary embedding's angles for the tokens of a pass.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::model::config::{ModelConfig, Rope};
use crate::model::packed::Packed;

/// The rotary embeddings of a model: most have one, Gemma 3 another for its local layers.
pub struct Rotary {
    tables: Vec<Table>,
    /// The table of each layer.
    layers: Vec<usize>,
}

struct Table {
    rope: Rope,
    inverse_frequencies: Vec<f32>, // (rotary_dim / 2)
    /// Of sequences of more than `short_length` tokens.
    long: Vec<f32>, // (rotary_dim / 2)
    short_length: usize,
}

/// Cosines and sines of every token of a pass.
#[derive(Clone)]
pub struct Angles {
    pub cos: Tensor, // (tokens, rotary_dim / 2)
    pub sin: Tensor, // (tokens, rotary_dim / 2)
}

impl Rotary {
    pub fn new(config: &ModelConfig) -> Rotary {
        let mut rotary = Rotary { tables: Vec::new(), layers: Vec::new() };
        for layer in 0..config.num_hidden_layers {
            let rope = config.rope(layer);
            let known = rotary.tables.iter().position(|table| table.rope == rope);
            rotary.layers.push(known.unwrap_or(rotary.tables.len()));
            if known.is_none() {
                let frequencies = |is_long| rope.inverse_frequencies(config.rotary_dim, is_long);
                let (inverse_frequencies, long) = (frequencies(false), frequencies(true));
                rotary.tables.push(Table { rope, inverse_frequencies, long, short_length: config.short_length() });
            }
        }
        rotary
    }

    /// The angles of all tables, for [`Rotary::of`].
    pub fn angles(&self, packed: &Packed, dtype: DType, device: &Device) -> Result<Vec<Angles>> {
        self.tables.iter().map(|table| table.angles(packed, dtype, device)).collect()
    }

    /// Of `angles` those of a layer.
    pub fn of<'a>(&self, angles: &'a [Angles], layer: usize) -> &'a Angles {
        &angles[self.layers[layer]]
    }
}

impl Table {
    fn angles(&self, packed: &Packed, dtype: DType, device: &Device) -> Result<Angles> {
        let segments = packed.segments.iter().zip(packed.longer_than(self.short_length));
        let positions = segments.flat_map(|(segment, is_long)| {
            let frequencies = if is_long { &self.long } else { &self.inverse_frequencies };
            (segment.position..segment.position + segment.len).map(move |position| (position, frequencies))
        });
        let angles: Vec<f32> = positions
            .flat_map(|(position, frequencies)| frequencies.iter().map(move |frequency| position as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, (packed.len(), self.inverse_frequencies.len()), device)?;
        let amplitude = f64::from(self.rope.amplitude());
        let scaled = |tensor: Tensor| -> Result<Tensor> {
            Ok(if amplitude == 1.0 { tensor } else { (tensor * amplitude)? }.to_dtype(dtype)?)
        };
        Ok(Angles { cos: scaled(angles.cos()?)?, sin: scaled(angles.sin()?)? })
    }
}
