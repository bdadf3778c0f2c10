//! The home on our kernels behind the one trait.

use anyhow::{Result, ensure};

use super::layer::Pairs;
use super::load::rounding;
use super::{CpuDecoder, Hidden, Past};
use crate::kernel::Element;
use crate::kernel::attention::KeyValues;
use crate::kernel::product::padded;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Footprint, Pasts, TokenScore, Wanted};
use crate::model::names;
use crate::model::packed::Packed;

impl<E: Element> Decoder for CpuDecoder<E> {
    type Hidden = Hidden;
    type Past = Past<E>;

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn footprint(&self) -> Footprint {
        let config = &self.config;
        let (hidden, heads, kv_heads) = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads);
        let (width, head_dim) = (4 / E::GROUP, padded::<E>(config.head_dim));
        let row =
            2 * width * hidden + 12 * hidden + 2 * width * heads * head_dim + width * config.widest_feed_forward();
        let past = config.num_hidden_layers * kv_heads * KeyValues::<E>::bytes(config.head_dim, 64) / 64;
        let kept = if self.groups_of_a_layer() > 1 { self.kept_bytes() } else { 0 };
        Footprint {
            fixed: self.weights.bytes() + self.chunk * row,
            per_token: 4 * hidden + 2 * width * kv_heads * head_dim + kept,
            per_past_token: past,
        }
    }

    fn set_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        ensure!(
            adapter.whole.is_empty(),
            "the kernels' home trains LoRA pairs alone: train weights themselves with --decoder candle"
        );
        let mut pairs = adapter.by_module()?;
        let layers: Vec<Vec<names::Linear>> =
            (0..self.config.num_hidden_layers).map(|layer| names::linears(&self.config, layer)).collect();
        let mut found = Vec::with_capacity(layers.len());
        for linears in &layers {
            let of: Vec<_> = linears.iter().map(|linear| pairs.take(&linear.module)).collect();
            let mut both = of.iter().zip(linears).filter_map(|(found, linear)| Some((found.as_ref()?.1, linear)));
            both.try_for_each(|(pair, linear)| pair.check(linear.inputs, linear.outputs))?;
            found.push(of);
        }
        pairs.finish()?;
        // One layer's old pairs go as its new ones come: an adapter is not held a second time.
        for (index, (linears, of)) in layers.iter().zip(found).enumerate() {
            let shapes = linears.iter().map(|linear| [linear.outputs, linear.inputs]);
            let shaped: Vec<_> = shapes.zip(of.iter().map(|found| found.map(|(_, pair)| pair))).collect();
            self.layers[index].pairs = Pairs::new::<E>(&shaped)?;
            self.adapted[index] = of.into_iter().map(|found| found.map(|(index, _)| index)).collect();
        }
        Ok(())
    }

    fn past(&self, capacity: usize) -> Result<Past<E>> {
        Ok(Past::new(&self.config, capacity))
    }

    fn past_len(&self, past: &Past<E>) -> usize {
        past.len()
    }

    fn embed(&self, packed: &Packed) -> Result<Hidden> {
        self.config.check_tokens(packed.ids.iter().copied())?;
        let embedding = self.weights.embedding()?;
        let rounded_to_f16 = self.weights.rounded_to_f16();
        let embedding = embedding.matrix(rounded_to_f16);
        let scale = self.config.embedding_scale.map_or(1.0, rounding::<E>(rounded_to_f16));
        let mut states = vec![0f32; packed.len() * self.width()];
        for (state, &id) in states.chunks_exact_mut(self.width()).zip(&packed.ids) {
            embedding.decode_row(self.kernels.isa, id as usize, 0, state);
            state.iter_mut().for_each(|value| *value = E::from_f32(*value).to_f32() * scale);
        }
        Ok(Hidden { states })
    }

    fn layer(&self, index: usize, hidden: &mut Hidden, packed: &Packed, pasts: &mut Pasts<Past<E>>) -> Result<()> {
        self.visit(index, hidden, packed, pasts)
    }

    fn score(&self, hidden: &Hidden, wanted: &[Wanted]) -> Result<Vec<TokenScore>> {
        self.config.check_tokens(wanted.iter().map(|wanted| wanted.token))?;
        self.score_rows(hidden, wanted)
    }

    fn greedy(&self, hidden: &Hidden, rows: &[usize]) -> Result<Vec<u32>> {
        self.greedy_rows(hidden, rows)
    }

    fn logits(&self, hidden: &Hidden, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logit_rows(hidden, rows)
    }
}
