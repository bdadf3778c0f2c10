//! Grouped-query attention over packed segments: each attends to its ancestors whole and to itself causally.
//!
//! Queries go in blocks, each against the keys it can see and no others: half of the square is never computed, and no
//! score tensor outgrows the cache.

use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

use super::cache::Cache;
use super::linear::{Linear, Mode};
use super::ops::{Visible, causal_softmax, rms_norm, rotate, softcap};
use super::rotary::Angles;
use crate::model::config::ModelConfig;
use crate::model::decoder::Pasts;
use crate::model::packed::Packed;

/// Query rows per block and head.
const BLOCK: usize = 128;

#[derive(Clone)]
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub head_norms: Option<HeadNorms>,
}

/// Weights of the norms over each head of queries and of keys.
#[derive(Clone)]
pub struct HeadNorms {
    pub q: Tensor, // (head_dim)
    pub k: Tensor, // (head_dim)
}

/// What all layers of one pass share: the layout and its rotary angles.
#[derive(Clone)]
pub struct Pass<'a> {
    pub packed: &'a Packed,
    /// Of each of the model's rotary embeddings.
    pub angles: Vec<Angles>,
    pub mode: Mode<'a>,
}

/// What is a layer's own of a pass.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub config: &'a ModelConfig,
    pub angles: &'a Angles,
    pub window: Option<usize>,
}

/// The layer that is running, and what it does with keys and values.
pub struct Recall<'a, 'p> {
    pub layer: usize,
    pub pasts: &'a mut Pasts<'p, Cache>,
}

/// One layer's keys and values.
struct KeysValues {
    keys: Tensor,   // (tokens, kv_heads, head_dim)
    values: Tensor, // (tokens, kv_heads, head_dim)
}

impl Attention {
    /// `x`: (tokens, hidden) -> (tokens, hidden).
    pub fn forward(&self, x: &Tensor, pass: &Pass, place: &Place, recall: Option<Recall>) -> Result<Tensor> {
        let Place { config, angles, .. } = *place;
        let heads = |linear: &Linear, count: usize| -> Result<Tensor> {
            Ok(linear.forward(x, pass.mode)?.reshape((pass.packed.len(), count, config.head_dim))?)
        };
        let mut queries = heads(&self.q, config.num_attention_heads)?;
        let mut keys = heads(&self.k, config.num_key_value_heads)?;
        if let Some(norms) = &self.head_norms {
            queries = rms_norm(&queries, &norms.q, config.rms_norm_eps)?;
            keys = rms_norm(&keys, &norms.k, config.rms_norm_eps)?;
        }
        let (queries, keys) = (rotate(&queries, &angles.cos, &angles.sin)?, rotate(&keys, &angles.cos, &angles.sin)?);
        let own = KeysValues { keys, values: heads(&self.v, config.num_key_value_heads)? };
        let seen = match recall {
            None => own.seen_by_all(pass.packed)?,
            Some(recall) => own.remembered(pass.packed, recall)?,
        };
        let mixed = attend(&queries, &seen, pass.packed, place)?;
        self.o.forward(&mixed, pass.mode)
    }
}

impl KeysValues {
    fn seen_by_all(&self, packed: &Packed) -> Result<Vec<KeysValues>> {
        (0..packed.segments.len()).map(|index| self.seen_by(packed, index)).collect()
    }

    /// What segment `index` attends to: its ancestors' rows and its own.
    fn seen_by(&self, packed: &Packed, index: usize) -> Result<KeysValues> {
        let chain: Vec<usize> = packed.ancestors(index).into_iter().chain([index]).collect();
        let gather = |tensor: &Tensor| -> Result<Tensor> {
            let parts: Result<Vec<Tensor>> = chain
                .iter()
                .map(|&part| Ok(tensor.narrow(0, packed.segments[part].start, packed.segments[part].len)?))
                .collect();
            let parts = parts?;
            Ok(if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(&parts, 0)? })
        };
        Ok(KeysValues { keys: gather(&self.keys)?, values: gather(&self.values)? })
    }

    fn remembered(&self, packed: &Packed, recall: Recall) -> Result<Vec<KeysValues>> {
        let Recall { layer, pasts } = recall;
        match pasts {
            Pasts::None => self.seen_by_all(packed),
            Pasts::Continue(caches) => self.append_to(packed, layer, caches),
            Pasts::Begin { pasts, leaves } => {
                let seen = self.seen_by_all(packed)?;
                for (cache, &leaf) in pasts.iter_mut().zip(*leaves) {
                    cache.append(layer, &seen[leaf].keys, &seen[leaf].values)?;
                }
                Ok(seen)
            }
        }
    }

    fn append_to(&self, packed: &Packed, layer: usize, caches: &mut [Cache]) -> Result<Vec<KeysValues>> {
        let append = |(segment, cache): (&crate::model::packed::Segment, &mut Cache)| {
            let keys = self.keys.narrow(0, segment.start, segment.len)?;
            let values = self.values.narrow(0, segment.start, segment.len)?;
            let (keys, values) = cache.append(layer, &keys, &values)?;
            Ok(KeysValues { keys, values })
        };
        packed.segments.iter().zip(caches).map(append).collect()
    }
}

/// All segments' queries against what each sees: (tokens, heads, head_dim) -> (tokens, heads * head_dim).
fn attend(queries: &Tensor, seen: &[KeysValues], packed: &Packed, place: &Place) -> Result<Tensor> {
    let blocks: Vec<(usize, usize)> = packed
        .segments
        .iter()
        .enumerate()
        .flat_map(|(index, segment)| (0..segment.len).step_by(BLOCK).map(move |start| (index, start)))
        .collect();
    let attend = |&(index, start): &(usize, usize)| {
        let segment = &packed.segments[index];
        let count = BLOCK.min(segment.len - start);
        let past = seen[index].keys.dim(0)? - segment.len;
        let block = queries.narrow(0, segment.start + start, count)?;
        attend_block(&block, &seen[index], past + start, place)
    };
    // A card takes one after the other, and has one block's scores in its memory.
    let outputs: Result<Vec<Tensor>> = match queries.device().is_cpu() {
        true => blocks.par_iter().map(attend).collect(),
        false => blocks.iter().map(attend).collect(),
    };
    Ok(Tensor::cat(&outputs?, 0)?)
}

/// One block of queries, the first of which sees `past` keys before its own. -> (queries, heads * head_dim)
fn attend_block(queries: &Tensor, seen: &KeysValues, past: usize, place: &Place) -> Result<Tensor> {
    let Place { config, window, .. } = *place;
    let (count, heads, head_dim) = queries.dims3()?;
    let (kv_heads, group) = (config.num_key_value_heads, heads / config.num_key_value_heads);
    // (kv_heads, keys, head_dim), laid out so since cuBLAS takes no other strides
    let heads_first = |tensor: &Tensor| tensor.narrow(0, 0, past + count)?.transpose(0, 1)?.contiguous();
    let queries = queries
        .reshape((count, kv_heads, group, head_dim))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * count, head_dim))?;
    let scores = queries.matmul(&heads_first(&seen.keys)?.t()?)?; // (kv_heads, group * queries, keys)
    let visible = Visible { queries: count, first: past + 1, window };
    let weights = match config.attention_softcap {
        None => causal_softmax(&scores, config.attention_scale, visible)?,
        cap => causal_softmax(&softcap(&(scores * config.attention_scale)?, cap)?, 1.0, visible)?,
    };
    let mixed = weights.matmul(&heads_first(&seen.values)?)?; // (kv_heads, group * queries, head_dim)
    let mixed = mixed.reshape((kv_heads, group, count, head_dim))?.permute((2, 0, 1, 3))?;
    Ok(mixed.contiguous()?.reshape((count, heads * head_dim))?)
}
