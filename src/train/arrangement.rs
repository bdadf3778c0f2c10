//! What a run keeps where: layers in memory or streamed from disk, AdamW's moments and the layers' inputs in memory or in
//! files, and how many of a step's micro-batches walk together. (Whether layers are computed again at all is its recipe's.)
//!
//! Of all that fits into the budget, what moves the fewest bytes over the disk is taken; of equals, what spills least and
//! then what lets most walk together. It decides who computes a number when, never which number.

use std::fmt;

use crate::memory::Memory;
use crate::model::training::Keep;

/// Bytes a second that a disk is taken to give, for times in plans: what a plain SSD does, and a mapped or a network disk
/// may not.
pub const DISK: f64 = 1e9;

/// Sizes of a run, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The most there may be.
    pub memory: u64,
    /// In memory whatever else is: program, data, adapter, gradients.
    pub held: u64,
    /// AdamW's moments.
    pub moments: u64,
    /// The model, and what of it stays where its layers are streamed (`None`: they can't be).
    pub whole: u64,
    pub streamed: Option<u64>,
    /// What one way through all streamed layers reads.
    pub layers: u64,
    /// Whether layers are computed again from their inputs.
    pub recompute: bool,
    /// All layers' inputs of one micro-batch, on the disk (`None`: they stay in memory).
    pub inputs: Option<u64>,
    /// Of a step.
    pub micro_batches: usize,
}

/// What is kept where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrangement {
    pub streams: bool,
    pub spills_moments: bool,
    pub keep: Keep,
    /// Micro-batches that walk together; 0: not even one fits.
    pub together: usize,
    /// Of a step.
    pub micro_batches: usize,
    /// The most memory that is used with it, or with one micro-batch where none fits.
    pub peak: u64,
    pub traffic: Traffic,
}

/// Bytes that a step moves over the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Layers read, forwards and backwards, by every group of micro-batches.
    pub layers: u64,
    /// Moments read and written.
    pub moments: u64,
    /// Layers' inputs written and read.
    pub inputs: u64,
}

impl Traffic {
    pub fn in_all(self) -> u64 {
        self.layers + self.moments + self.inputs
    }
}

impl Sizes {
    /// The best arrangement, or where nothing fits the one that takes least. `walk`: bytes that so many micro-batches take
    /// on their way.
    pub fn arrange(&self, walk: impl Fn(usize, Keep) -> u64) -> Arrangement {
        let all: Vec<Arrangement> = self.all().map(|arrangement| self.filled(arrangement, &walk)).collect();
        let spills = |of: &Arrangement| usize::from(of.spills_moments) + usize::from(of.keep == Keep::SpilledInputs);
        let best = all
            .iter()
            .filter(|of| of.together > 0)
            .min_by_key(|of| (of.traffic.in_all(), spills(of), usize::MAX - of.together));
        *best.or(all.iter().min_by_key(|of| of.peak)).expect("keeping everything in memory is one")
    }

    /// What can be kept where, with no micro-batch yet.
    fn all(&self) -> impl Iterator<Item = Arrangement> {
        let streams = if self.streamed.is_some() { &[false, true][..] } else { &[false] };
        let keeps = match (self.recompute, self.inputs) {
            (false, _) => &[Keep::Activations][..],
            (true, None) => &[Keep::Inputs],
            (true, Some(_)) => &[Keep::Inputs, Keep::SpilledInputs],
        };
        streams.iter().flat_map(move |&streams| {
            keeps.iter().flat_map(move |&keep| {
                [false, true].map(|spills_moments| Arrangement {
                    streams,
                    spills_moments,
                    keep,
                    together: 0,
                    micro_batches: self.micro_batches,
                    peak: 0,
                    traffic: Traffic::default(),
                })
            })
        })
    }

    /// With as many micro-batches as fit.
    fn filled(&self, of: Arrangement, walk: impl Fn(usize, Keep) -> u64) -> Arrangement {
        let rest = self.beside_walk(&of);
        let peak = |count: usize| rest + walk(count, of.keep);
        let together = (1..=self.micro_batches).take_while(|&count| peak(count) <= self.memory).last().unwrap_or(0);
        let walks = self.micro_batches.div_ceil(together.max(1)) as u64;
        let traffic = Traffic {
            layers: if of.streams { 2 * walks * self.layers } else { 0 },
            moments: if of.spills_moments { 2 * self.moments } else { 0 },
            inputs: match of.keep {
                Keep::Inputs | Keep::Activations => 0,
                Keep::SpilledInputs => 2 * self.micro_batches as u64 * self.inputs.unwrap_or(0),
            },
        };
        Arrangement { together, peak: peak(together.max(1)), traffic, ..of }
    }

    /// What is in memory beside a walk.
    pub fn beside_walk(&self, of: &Arrangement) -> u64 {
        let model = if of.streams { self.streamed.unwrap_or(self.whole) } else { self.whole };
        self.held + model + if of.spills_moments { 0 } else { self.moments }
    }
}

/// What it takes from the disk, a line for each, after one on how many walk together. Times are at [`DISK`].
impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traffic { layers, moments, inputs } = self.traffic;
        if !self.streams {
            write!(f, "the whole model in memory, ")?;
        }
        let (together, all) = (self.together, self.micro_batches);
        write!(f, "{together} of a step's {all} micro-batches at a time, peak {}", Memory(self.peak))?;
        for (is_on, what, bytes) in [
            (self.streams, "layers streamed from disk", layers),
            (self.spills_moments, "AdamW's moments spilled to disk", moments),
            (self.keep == Keep::SpilledInputs, "layers' inputs spilled to disk", inputs),
        ] {
            if is_on {
                let (gigabytes, seconds) = (bytes as f64 / 1e9, bytes as f64 / DISK);
                write!(f, "\n  {what:<34}{gigabytes:>8.1} GB a step, {seconds:.0} s at 1 GB/s")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        memory: 0,
        held: 100,
        moments: 50,
        whole: 1000,
        streamed: Some(200),
        layers: 900,
        recompute: true,
        inputs: Some(30),
        micro_batches: 4,
    };

    /// 40 for each micro-batch, or 12 and one with its inputs in a file, or 90 with all activations.
    fn walk(count: usize, keep: Keep) -> u64 {
        match keep {
            Keep::Inputs => 40 * count as u64,
            Keep::SpilledInputs => 12 * count as u64 + 1,
            Keep::Activations => 90 * count as u64,
        }
    }

    fn within(memory: u64) -> Arrangement {
        Sizes { memory, ..SIZES }.arrange(walk)
    }

    fn short(of: &Arrangement) -> (bool, bool, bool, usize, u64) {
        (of.streams, of.spills_moments, of.keep == Keep::SpilledInputs, of.together, of.peak)
    }

    #[test]
    fn nothing_is_on_the_disk_where_everything_fits() {
        let found = within(1150 + 160);
        assert_eq!(short(&found), (false, false, false, 4, 1310));
        assert_eq!(found.traffic.in_all(), 0);
        assert_eq!(short(&within(1150 + 159)), (false, false, false, 3, 1270));
    }

    #[test]
    fn the_fewest_bytes_over_the_disk_decide() {
        // One micro-batch with the moments in a file (100 bytes) before the layers' inputs (240) or the layers (7,200).
        let found = within(1149 + 40 - 1);
        assert_eq!(short(&found), (false, true, false, 2, 1180));
        assert_eq!(found.traffic, Traffic { moments: 100, ..Traffic::default() });
        // Not even that: inputs too.
        assert_eq!(short(&within(1139)), (false, true, true, 3, 1137));
        // Streamed: all four at once are 1,800 bytes of layers, and to have them 240 of inputs are well spent.
        let found = within(350 + 159);
        assert_eq!(short(&found), (true, true, false, 4, 460));
        let found = within(300 + 60);
        assert_eq!(short(&found), (true, true, true, 4, 349));
        assert_eq!(found.traffic, Traffic { layers: 1800, moments: 100, inputs: 240 });
    }

    #[test]
    fn too_little_for_anything_says_what_it_takes() {
        let found = within(312);
        assert_eq!((found.together, found.peak), (0, 313));
        assert_eq!(within(313).together, 1);
    }

    #[test]
    fn a_home_that_keeps_everything_in_memory_is_left_to_it() {
        let fixed = Sizes { streamed: None, inputs: None, ..SIZES };
        assert_eq!(short(&Sizes { memory: 1140, ..fixed }.arrange(walk)), (false, true, false, 1, 1140));
        assert_eq!(Sizes { memory: 1139, ..fixed }.arrange(walk).together, 0);
    }

    #[test]
    fn activations_stay_in_memory() {
        let kept = |memory: u64| Sizes { memory, recompute: false, ..SIZES }.arrange(walk);
        assert_eq!(short(&kept(1150 + 180)), (false, false, false, 2, 1330));
        assert_eq!(kept(1150 + 180).keep, Keep::Activations);
        assert_eq!((kept(389).together, kept(390).together), (0, 1), "streamed, the moments in a file");
    }

    #[test]
    fn it_says_what_it_costs() {
        let giga = |sizes: Sizes| Sizes { moments: 2_000_000_000, layers: 24_000_000_000, ..sizes };
        let text = giga(Sizes { memory: 360, ..SIZES }).arrange(walk).to_string();
        assert!(text.contains("4 of a step's 4 micro-batches at a time"), "{text}");
        assert!(text.contains("layers streamed from disk             48.0 GB a step, 48 s at 1 GB/s"), "{text}");
        assert!(text.contains("moments spilled to disk        4.0 GB a step, 4 s"), "{text}");
        assert!(text.contains("layers' inputs spilled to disk"), "{text}");
        assert!(!within(2000).to_string().contains("disk"));
    }
}
