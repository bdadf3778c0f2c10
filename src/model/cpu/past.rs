//! Keys and values of one sequence in all layers, as panels, so that a step of generation packs nothing again.

use crate::kernel::Element;
use crate::kernel::attention::KeyValues;
use crate::model::config::ModelConfig;

/// One sequence's past.
pub struct Past<E> {
    /// One for each key-value head of each layer.
    layers: Vec<Vec<KeyValues<E>>>,
}

impl<E: Element> Past<E> {
    /// Room for `capacity` tokens.
    pub fn new(config: &ModelConfig, capacity: usize) -> Past<E> {
        let head = || {
            let mut head = KeyValues::new(config.head_dim);
            head.reserve(capacity);
            head
        };
        let layer = || (0..config.num_key_value_heads).map(|_| head()).collect();
        Past { layers: (0..config.num_hidden_layers).map(|_| layer()).collect() }
    }

    /// Tokens that all layers have seen. (While a step runs, layers are one token apart.)
    pub fn len(&self) -> usize {
        self.layers.last().and_then(|heads| heads.first()).map_or(0, KeyValues::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The heads of a layer.
    pub fn layer_mut(&mut self, layer: usize) -> &mut [KeyValues<E>] {
        &mut self.layers[layer]
    }
}
