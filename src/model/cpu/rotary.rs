//! Rotary embedding's cosines and sines by position, made once for as many positions as any wave has had.
//!
//! Angles are rounded to f32 where transformers rounds (the power, its inverse, the angle): at position 1,000 the last bit
//! of a frequency is worth 1e-4 of a log-likelihood.

use std::sync::{Arc, Mutex};

use crate::model::config::{ModelConfig, Rope};

/// The rotary embeddings of a model: most have one, Gemma 3 another for its local layers.
pub struct Rotary {
    tables: Vec<Table>,
    /// The table of each layer.
    of_layer: Vec<usize>,
}

struct Table {
    rope: Rope,
    inverse_frequencies: Vec<f32>, // (rotary_dim / 2)
    /// Of sequences beyond the trained length, where theirs are others.
    long: Option<Vec<f32>>, // (rotary_dim / 2)
    angles: Mutex<Arc<Angles>>,
}

/// Cosines and sines of positions 0, 1, 2, ..., and where long sequences have their own, of these once more.
#[derive(Default)]
pub struct Angles {
    cosines: Vec<f32>, // (positions, half), once or twice
    sines: Vec<f32>,   // (positions, half), once or twice
    half: usize,
    positions: usize,
}

impl Rotary {
    pub fn new(config: &ModelConfig) -> Rotary {
        let mut rotary = Rotary { tables: Vec::new(), of_layer: Vec::new() };
        for layer in 0..config.num_hidden_layers {
            let rope = config.rope(layer);
            let known = rotary.tables.iter().position(|table| table.rope == rope);
            rotary.of_layer.push(known.unwrap_or(rotary.tables.len()));
            if known.is_none() {
                let inverse_frequencies = |is_long| rope.inverse_frequencies(config.rotary_dim, is_long);
                let long = (config.short_length() < usize::MAX).then(|| inverse_frequencies(true));
                let inverse_frequencies = inverse_frequencies(false);
                rotary.tables.push(Table { rope, inverse_frequencies, long, angles: Mutex::default() });
            }
        }
        rotary
    }

    /// The angles of a layer for positions below `positions`.
    pub fn angles(&self, layer: usize, positions: usize) -> Arc<Angles> {
        let table = &self.tables[self.of_layer[layer]];
        let mut angles = table.angles.lock().expect("making angles does not panic");
        if angles.positions < positions {
            *angles = Arc::new(table.make(positions.next_power_of_two()));
        }
        angles.clone()
    }
}

impl Table {
    fn make(&self, positions: usize) -> Angles {
        let amplitude = self.rope.amplitude();
        let angles: Vec<f32> = std::iter::once(&self.inverse_frequencies)
            .chain(&self.long)
            .flat_map(|of| (0..positions).flat_map(|position| of.iter().map(move |of| position as f32 * of)))
            .collect();
        let table = |function: fn(f32) -> f32| angles.iter().map(|&angle| function(angle) * amplitude).collect();
        Angles { cosines: table(f32::cos), sines: table(f32::sin), half: self.inverse_frequencies.len(), positions }
    }
}

impl Angles {
    /// Where the angles of a position stand.
    pub fn place(&self, position: usize, is_long: bool) -> usize {
        if is_long { self.positions + position } else { position }
    }

    /// Cosines and sines at a place, (half) each.
    pub fn at(&self, place: usize) -> (&[f32], &[f32]) {
        let range = place * self.half..(place + 1) * self.half;
        (&self.cosines[range.clone()], &self.sines[range])
    }
}
