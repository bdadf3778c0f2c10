//! Tensors that are read together: which runs of which files, and where in the buffer each tensor then lies.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, bail};

use super::direct::ALIGNMENT;
use crate::weights::{Checkpoint, Entry, Extent, Stored};

/// Runs that lie no further apart are read as one: about what the disk reads in the time that a request takes.
const GAP: usize = 128 << 10;

/// One run of a file, aligned at both ends, and its place in the buffer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub file: usize,
    pub start: usize,
    /// May lie beyond the end of the file, by less than the alignment.
    pub end: usize,
    /// Where the last tensor ends; so much must be there.
    pub needed: usize,
    /// Place of `start` in the buffer.
    pub at: usize,
}

pub(super) struct Group {
    tensors: BTreeMap<String, Entry>,
    pub runs: Vec<Run>,
}

impl Group {
    pub fn new(checkpoint: &Checkpoint, names: &[String]) -> Result<Group> {
        let mut tensors = BTreeMap::new();
        for name in names {
            tensors.insert(name.clone(), checkpoint.entry(name)?.clone());
        }
        let extents = tensors.values().flat_map(Entry::extents).filter(|extent| extent.start < extent.end).collect();
        Ok(Group { runs: runs(extents), tensors })
    }

    /// Bytes of the buffer it needs.
    pub fn bytes(&self) -> usize {
        self.runs.last().map_or(0, |run| run.at + run.end - run.start)
    }

    /// The tensor of that name in a buffer that was filled.
    pub fn stored<'a>(&self, name: &str, buffer: &'a [u8]) -> Result<Stored<'a>> {
        let Some(entry) = self.tensors.get(name) else { bail!("tensor `{name}` is not in the group that was read") };
        entry.stored(|extent| &buffer[self.place(extent)])
    }

    fn place(&self, extent: Extent) -> Range<usize> {
        let within = |run: &&Run| run.file == extent.file && run.start <= extent.start && extent.end <= run.needed;
        let Some(run) = self.runs.iter().find(within) else { return 0..0 }; // an empty tensor
        let at = run.at + extent.start - run.start;
        at..at + extent.end - extent.start
    }

    /// A run of which only the bytes before `end` of the file were there: an error that names the tensor it cuts.
    pub fn check(&self, run: &Run, end: usize) -> Result<()> {
        if end >= run.needed {
            return Ok(());
        }
        let is_cut = |extent: &Extent| extent.file == run.file && end < extent.end && extent.end <= run.needed;
        let cut = self.tensors.iter().filter(|(_, entry)| entry.extents().iter().any(is_cut));
        let first = cut.min_by_key(|(_, entry)| entry.start);
        let name = first.map_or("", |(name, _)| name);
        bail!("ends at byte {end}, within tensor `{name}`: it has been cut since it was opened; fetch it again")
    }
}

/// The runs that hold `extents`, laid end to end.
fn runs(mut extents: Vec<Extent>) -> Vec<Run> {
    extents.sort_by_key(|extent| (extent.file, extent.start));
    let mut runs: Vec<Run> = Vec::new();
    for Extent { file, start, end } in extents {
        let (aligned_start, aligned_end) = (start - start % ALIGNMENT, end.next_multiple_of(ALIGNMENT));
        match runs.last_mut() {
            Some(run) if run.file == file && start <= run.needed + GAP => {
                run.end = run.end.max(aligned_end);
                run.needed = run.needed.max(end);
            }
            last => {
                let at = last.map_or(0, |run| run.at + run.end - run.start);
                runs.push(Run { file, start: aligned_start, end: aligned_end, needed: end, at });
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_as_one_and_all_runs_are_aligned() {
        let extent = |file, start, end| Extent { file, start, end };
        let far = 5000 + GAP + ALIGNMENT;
        let found = runs(vec![
            extent(0, far, far + 10),
            extent(1, 100, 200),
            extent(0, 100, 5000),
            extent(0, 5000, 5010),
            extent(0, 200, 300),
        ]);
        let first = Run { file: 0, start: 0, end: 8192, needed: 5010, at: 0 };
        let start = far - far % ALIGNMENT;
        let second = Run { file: 0, start, end: start + ALIGNMENT, needed: far + 10, at: 8192 };
        let third = Run { file: 1, start: 0, end: ALIGNMENT, needed: 200, at: 12288 };
        assert_eq!(found, [first, second, third]);
    }
}
