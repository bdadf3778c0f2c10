//! What of a run lies on a card of a certain size, and what goes over its link in a step.
//!
//! A card holds embedding and head, adapter, gradients, a micro-batch's layer inputs and its workspace; AdamW's moments are in
//! the host's memory, which costs a step the gradients' way there and the adapter's back. Of the layers as many of the first
//! stay as fit beside room for one of the others, which each micro-batch brings in twice. As `model::candle::residence` does.

use std::fmt;

use super::memory::gibibytes;

/// Bytes a second from host to card (PCIe 3.0 x 16 in practice).
pub const LINK: f64 = 12e9;

/// What a run needs there, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct CardNeeds {
    /// Frozen linears, by layer.
    pub layers: Vec<u64>,
    /// Everything else there.
    pub beside: u64,
    /// Gradients, or as much again as the adapter: what goes each way in a step.
    pub gradients: u64,
    /// Of a step, one after the other.
    pub micro_batches: u64,
}

/// A run on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnCard {
    /// So many of the first layers stay there.
    pub stay: usize,
    pub layers: usize,
    /// Bytes in use there.
    pub peak: u64,
    /// Bytes over the link in a step.
    pub link: u64,
}

impl CardNeeds {
    /// On a card with so many bytes to use; the error is what one layer at a time would take.
    pub fn on(&self, size: u64) -> Result<OnCard, u64> {
        let layers = self.layers.len();
        let peak = |stay: usize| {
            let (staying, others) = self.layers.split_at(stay);
            self.beside + staying.iter().sum::<u64>() + others.iter().max().unwrap_or(&0)
        };
        let stay = (0..=layers).rev().find(|&stay| peak(stay) <= size).ok_or(peak(0))?;
        let waiting: u64 = self.layers[stay..].iter().sum();
        let link = 2 * self.gradients + 2 * self.micro_batches * waiting;
        Ok(OnCard { stay, layers, peak: peak(stay), link })
    }
}

impl fmt::Display for OnCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stay == self.layers {
            true => write!(f, "all layers stay")?,
            false => write!(f, "{} of {} layers stay", self.stay, self.layers)?,
        }
        let (bytes, seconds) = (self.link as f64 / 1e9, self.link as f64 / LINK);
        let peak = gibibytes(self.peak);
        write!(f, ": {peak:.1} GiB, {bytes:.1} GB a step over its link ({seconds:.1} s at {} GB/s)", LINK / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_go_one_by_one() {
        let needs = CardNeeds { layers: vec![10, 10, 12], beside: 20, gradients: 4, micro_batches: 16 };
        let on = |size: u64| needs.on(size).map(|on| (on.stay, on.peak, on.link));
        assert_eq!(on(60), Ok((3, 52, 8)));
        assert_eq!(on(52), Ok((3, 52, 8)));
        // Two stay and the third is brought in: as much as all of them. One and the larger of the others: 42.
        assert_eq!(on(51), Ok((1, 42, 8 + 2 * 16 * 22)));
        assert_eq!(on(41), Ok((0, 32, 8 + 2 * 16 * 32)));
        assert_eq!(on(31), Err(32));
        let text = needs.on(51).unwrap().to_string();
        assert!(text.starts_with("1 of 3 layers stay: "), "{text}");
        assert!(needs.on(60).unwrap().to_string().starts_with("all layers stay: "));
    }
}
