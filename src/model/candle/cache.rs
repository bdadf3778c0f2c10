//! Keys and values of one sequence while it is being generated: room for all of it from the start, filled in place.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::model::config::ModelConfig;

/// One sequence's past.
pub struct Cache {
    layers: Vec<Layer>,
}

struct Layer {
    len: usize,
    keys: Tensor,   // (capacity, kv_heads, head_dim)
    values: Tensor, // (capacity, kv_heads, head_dim)
}

impl Cache {
    /// Room for `capacity` tokens.
    pub fn new(config: &ModelConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Cache> {
        let shape = (capacity, config.num_key_value_heads, config.head_dim);
        let layer = || {
            Ok(Layer {
                len: 0,
                keys: Tensor::zeros(shape, dtype, device)?,
                values: Tensor::zeros(shape, dtype, device)?,
            })
        };
        Ok(Cache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()? })
    }

    /// Tokens whose keys and values are here.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a layer's new keys and values, (tokens, kv_heads, head_dim), and returns all of that layer's so far.
    pub fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let layer = &mut self.layers[layer];
        layer.keys.slice_set(&keys.detach().contiguous()?, 0, layer.len)?;
        layer.values.slice_set(&values.detach().contiguous()?, 0, layer.len)?;
        layer.len += keys.dim(0)?;
        Ok((layer.keys.narrow(0, 0, layer.len)?, layer.values.narrow(0, 0, layer.len)?))
    }
}
