//! How streamed layers are cut: whole where two at a time fit, else into groups of which the next is read while one is
//! computed with.
//!
//! A group is a run of a layer's linears and begins and ends with whole parts: attention with the router, an expert, a
//! dense feed-forward. All of a wave goes through a group before the next is taken, so what the experts read is kept
//! between them (`workspace::ExpertInput`).

use std::ops::Range;

use anyhow::Result;

use crate::model::config::ModelConfig;
use crate::model::names::{self, ATTENTION_LINEARS, EXPERT_LINEARS};

/// The groups of every layer: ranges of places in the order of [`names::linears`].
pub struct Groups {
    layers: Vec<Vec<Range<usize>>>,
    /// Bytes of the largest; of no meaning where nothing is streamed.
    pub largest: usize,
}

impl Groups {
    /// Every layer whole.
    pub fn whole(config: &ModelConfig) -> Groups {
        let layer = |layer| std::iter::once(0..names::linears(config, layer).len()).collect();
        Groups { layers: (0..config.num_hidden_layers).map(layer).collect(), largest: 0 }
    }

    /// The largest groups that `limit` bytes hold, as even as they can be; the smallest there are where nothing fits.
    /// `bytes` says what a layer's places need.
    pub fn within(
        limit: usize,
        config: &ModelConfig,
        bytes: impl Fn(usize, &Range<usize>) -> Result<usize>,
    ) -> Result<Groups> {
        let mut groups = Groups { layers: Vec::new(), largest: 0 };
        for layer in 0..config.num_hidden_layers {
            let parts = parts(names::linears(config, layer).len(), config.sandwich_norms);
            let (found, largest) = cut(&parts, limit, |places| bytes(layer, places))?;
            groups.layers.push(found);
            groups.largest = groups.largest.max(largest);
        }
        Ok(groups)
    }

    /// Of a layer, in the order a wave goes through them.
    pub fn of(&self, layer: usize) -> &[Range<usize>] {
        &self.layers[layer]
    }

    /// The number of a layer's group among all groups.
    pub fn index(&self, layer: usize, group: usize) -> usize {
        self.layers[..layer].iter().map(Vec::len).sum::<usize>() + group
    }

    /// Groups of the layer that has most.
    pub fn most(&self) -> usize {
        self.layers.iter().map(Vec::len).max().unwrap_or(1)
    }
}

/// The parts of a layer of so many linears. What three times any number leaves beside attention is the router. A norm of
/// the feed-forward's output needs all of that at once, and so keeps it whole.
fn parts(linears: usize, whole_feed_forward: bool) -> Vec<Range<usize>> {
    let first = ATTENTION_LINEARS + (linears - ATTENTION_LINEARS) % EXPERT_LINEARS;
    let step = if whole_feed_forward { linears - first } else { EXPERT_LINEARS };
    std::iter::once(0..first).chain((first..linears).step_by(step).map(|start| start..start + step)).collect()
}

/// The fewest groups of at most `limit` bytes, and the bytes of the largest.
fn cut(
    parts: &[Range<usize>],
    limit: usize,
    bytes: impl Fn(&Range<usize>) -> Result<usize>,
) -> Result<(Vec<Range<usize>>, usize)> {
    let join = |parts: &[Range<usize>]| parts[0].start..parts[parts.len() - 1].end;
    let mut count = 1;
    loop {
        let groups: Vec<Range<usize>> = parts.chunks(parts.len().div_ceil(count)).map(join).collect();
        let sizes = groups.iter().map(&bytes).collect::<Result<Vec<usize>>>()?;
        let largest = sizes.into_iter().max().unwrap_or(0);
        if largest <= limit || count == parts.len() {
            return Ok((groups, largest));
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_attention_with_its_router_and_experts() {
        assert_eq!(parts(7, false), [0..4, 4..7]);
        assert_eq!(parts(7, true), [0..4, 4..7]);
        assert_eq!(parts(5 + 9, false), [0..5, 5..8, 8..11, 11..14]);
        assert_eq!(parts(5 + 9, true), [0..5, 5..14]);
    }

    #[test]
    fn groups_are_as_few_as_fit_and_even() {
        let parts = parts(5 + 8 * 3, false); // nine parts
        let ends = |limit: usize| {
            let (groups, largest) = cut(&parts, limit, |places| Ok(places.len())).unwrap();
            assert!(groups.iter().all(|group| group.len() <= largest));
            (groups.iter().map(|group| group.end).collect::<Vec<_>>(), largest)
        };
        assert_eq!(ends(29), (vec![29], 29));
        assert_eq!(ends(28), (vec![17, 29], 17));
        assert_eq!(ends(16), (vec![11, 20, 29], 11));
        assert_eq!(ends(9), (vec![8, 14, 20, 26, 29], 8));
        assert_eq!(ends(0), (vec![5, 8, 11, 14, 17, 20, 23, 26, 29], 5), "the smallest there are");
    }
}
