//! The home on candle tensors behind the one trait.

use anyhow::Result;
use candle_core::Tensor;

use super::attention::Recall;
use super::cache::Cache;
use super::footprint::token_numbers;
use super::linear::{Lora, Mode};
use super::{CandleDecoder, Layer};
use crate::memory::Memory;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Footprint, Pasts, TokenScore, Wanted};
use crate::model::packed::Packed;

impl Decoder for CandleDecoder {
    type Hidden = Tensor; // (tokens, hidden)
    type Past = Cache;

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Of the memory that tokens are in, a device's too; a token's share is that of the widest layer's products, each a tensor
    /// of its own.
    fn footprint(&self) -> Footprint {
        let config = &self.config;
        let width = self.dtype.size_in_bytes();
        let past = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
        Footprint {
            fixed: self.bytes_beside_tokens(),
            per_token: token_numbers(config) * width,
            per_past_token: past * width,
        }
    }

    fn held(&self) -> Option<Memory> {
        match self.device.is_cpu() {
            true => Memory::resident(),
            false => None,
        }
    }

    fn set_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        let mut pairs = adapter.by_module()?;
        for linear in self.layers.iter_mut().flat_map(Layer::linears_mut) {
            linear.lora = match pairs.take(&linear.module) {
                Some((_, pair)) => Some(Lora::new(pair, linear.inputs, linear.outputs, self.dtype, &self.device)?),
                None => None,
            };
        }
        pairs.finish()?;
        self.adapted = adapter.pairs.iter().map(|pair| pair.module.clone()).collect();
        self.lay_in(&adapter.whole)
    }

    fn past(&self, capacity: usize) -> Result<Cache> {
        Cache::new(&self.config, capacity, self.dtype, &self.device)
    }

    fn past_len(&self, past: &Cache) -> usize {
        past.len()
    }

    fn embed(&self, packed: &Packed) -> Result<Tensor> {
        self.config.check_tokens(packed.ids.iter().copied())?;
        let ids = Tensor::from_slice(&packed.ids, packed.len(), &self.device)?;
        let embedded = self.embedding.index_select(&ids, 0)?;
        match self.embedding_scale {
            Some(scale) => Ok((embedded * scale)?),
            None => Ok(embedded),
        }
    }

    fn layer(&self, index: usize, hidden: &mut Tensor, packed: &Packed, pasts: &mut Pasts<Cache>) -> Result<()> {
        let pass = self.pass(packed, Mode::default())?;
        *hidden = self.run_layer(index, hidden, &pass, Some(Recall { layer: index, pasts }))?.hidden.detach();
        Ok(())
    }

    fn score(&self, hidden: &Tensor, wanted: &[Wanted]) -> Result<Vec<TokenScore>> {
        self.config.check_tokens(wanted.iter().map(|wanted| wanted.token))?;
        self.score_rows(hidden, wanted)
    }

    fn greedy(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<u32>> {
        self.greedy_rows(hidden, rows)
    }

    fn logits(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logit_rows(hidden, rows)
    }
}
