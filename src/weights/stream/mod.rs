//! Weights that do not fit in memory: read layer by layer into buffers that are used again, the next layer while this one
//! is computed with.
//!
//! A walk visits the same groups of tensors (layers, or parts of them) in the same order, again and again. So whenever a
//! buffer is free, one thread reads the group that will be asked for next, in cyclic order from the last one that was.
//! Asking out of order is right too, and waits. With as many buffers as groups everything stays in memory. Reads are
//! direct and large, because mapping cold pages costs more than the disk does.
//!
//! Invariant: a buffer is changed only by the reader and only while its slot says `Reading`; memory is `footprint()` from
//! the beginning and never more.

mod direct;
mod group;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};

use super::{Checkpoint, Stored};
use direct::{Buffer, Source};
use group::Group;

/// Bytes asked for at a time: long enough for the disk's full rate, short enough that dropping a stream is prompt.
const PIECE: usize = 8 << 20;

/// A checkpoint's groups of tensors, each in memory while it is used.
pub struct LayerStream {
    shared: Arc<Shared>,
    /// Held while a group is waited for: one at a time decides what is read next.
    asking: Mutex<()>,
    buffer_bytes: usize,
    reader: Option<JoinHandle<()>>,
}

/// A group in memory; dropping it gives the buffer back.
pub struct Layer<'a> {
    shared: &'a Shared,
    slot: usize,
    group: usize,
    buffer: Option<Buffer>,
}

struct Shared {
    groups: Vec<Group>,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

struct State {
    slots: Vec<Slot>,
    /// The group that is waited for, or will be asked for next if the walk goes on.
    next: usize,
    /// The reader has ended, which it does before it is stopped only if it panicked.
    reader_ended: bool,
}

/// A buffer and what it holds.
struct Slot {
    /// Says nothing while `content` is `Free`.
    group: usize,
    content: Content,
}

enum Content {
    Free(Buffer),
    Reading,
    Ready(Buffer),
    Failed(Buffer, anyhow::Error),
    Lent,
}

impl LayerStream {
    /// `groups`: names of tensors that are read together (a layer's, or where layers are large some of them), in the order
    /// they will be visited. `slots`: buffers, each as large as the largest group; 2 read one group ahead. A tensor that
    /// is missing is an error. The files are open from here on.
    pub fn new(checkpoint: &Checkpoint, groups: &[Vec<String>], slots: usize) -> Result<LayerStream> {
        ensure!(slots > 0, "streaming needs a buffer");
        ensure!(!groups.is_empty(), "{}: no tensors to stream", checkpoint.config_place());
        let groups = groups.iter().map(|names| Group::new(checkpoint, names)).collect::<Result<Vec<_>>>()?;
        let sources = checkpoint.files().into_iter().map(Source::open).collect::<Result<Vec<_>>>()?;
        let buffer_bytes = groups.iter().map(Group::bytes).max().unwrap_or(0);
        let slot = |_| Slot { group: 0, content: Content::Free(Buffer::new(buffer_bytes)) };
        let slots = (0..slots.min(groups.len())).map(slot).collect();
        let state = Mutex::new(State { slots, next: 0, reader_ended: false });
        let shared = Arc::new(Shared { groups, state, changed: Condvar::new(), stopped: AtomicBool::new(false) });
        let reader = Reader { shared: Arc::clone(&shared), sources };
        let reader = std::thread::Builder::new().name("weights".to_owned()).spawn(move || reader.run());
        let reader = Some(reader.context("cannot start the thread that reads weights")?);
        Ok(LayerStream { shared, asking: Mutex::new(()), buffer_bytes, reader })
    }

    /// Group `index`, waited for if need be. A read that fails or comes short is an error that names file and tensor, and
    /// asking again reads again. Asking for a group that is held, or with all buffers held, is an error too.
    pub fn layer(&self, index: usize) -> Result<Layer<'_>> {
        ensure!(index < self.shared.groups.len(), "group {index} of {} is asked for", self.shared.groups.len());
        let _asking = self.asking.lock().unwrap_or_else(|poisoned| poisoned.into_inner()); // guards no data
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = state.take(index) {
                let (slot, buffer) = found?;
                state.next = (index + 1) % self.shared.groups.len();
                self.shared.changed.notify_all();
                return Ok(Layer { shared: &self.shared, slot, group: index, buffer: Some(buffer) });
            }
            ensure!(!state.reader_ended, "the thread that reads weights has ended");
            state.next = index;
            self.shared.changed.notify_all();
            state = self.shared.wait(state);
        }
    }

    /// Bytes of a buffer that is large enough for these tensors. A tensor that is missing is an error.
    pub fn buffer_bytes(checkpoint: &Checkpoint, names: &[String]) -> Result<usize> {
        Ok(Group::new(checkpoint, names)?.bytes() + direct::ALIGNMENT)
    }

    /// Bytes of all buffers.
    pub fn footprint(&self) -> usize {
        self.shared.lock().slots.len() * (self.buffer_bytes + direct::ALIGNMENT)
    }
}

impl Drop for LayerStream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        drop(self.shared.lock()); // whoever found it running is waiting by now
        self.shared.changed.notify_all();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join(); // a panic has been printed, and there is nobody left to tell
        }
    }
}

impl Layer<'_> {
    /// The tensor of that name, in its shape as `Checkpoint::stored` gives it.
    pub fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let buffer = self.buffer.as_ref().expect("there until it is dropped");
        self.shared.groups[self.group].stored(name, buffer.bytes())
    }
}

impl Drop for Layer<'_> {
    fn drop(&mut self) {
        let buffer = self.buffer.take().expect("there until it is dropped");
        self.shared.lock().slots[self.slot].content = Content::Ready(buffer);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// The state is whole between any two statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The slot and buffer of group `index` if it is there, lent from now on; `None` if it must be waited for.
    fn take(&mut self, index: usize) -> Option<Result<(usize, Buffer)>> {
        let Some(slot) = self.slots.iter().position(|slot| slot.holds(index)) else {
            let all_lent = self.slots.iter().all(|slot| matches!(slot.content, Content::Lent));
            return all_lent.then(|| Err(anyhow::anyhow!("group {index} is asked for while all buffers are held")));
        };
        let content = &mut self.slots[slot].content;
        match std::mem::replace(content, Content::Lent) {
            Content::Ready(buffer) => Some(Ok((slot, buffer))),
            Content::Failed(buffer, error) => {
                *content = Content::Free(buffer);
                Some(Err(error))
            }
            Content::Reading => {
                *content = Content::Reading;
                None
            }
            Content::Lent | Content::Free(_) => Some(Err(anyhow::anyhow!("group {index} is held already"))),
        }
    }

    /// What to read now: the first of the groups that come next which no buffer holds, and a buffer for it.
    fn job(&mut self, groups: usize) -> Option<(usize, usize, Buffer)> {
        let ahead: Vec<usize> = (0..self.slots.len()).map(|ahead| (self.next + ahead) % groups).collect();
        let group = *ahead.iter().find(|group| !self.slots.iter().any(|slot| slot.holds(**group)))?;
        let slot = self.slots.iter().position(|slot| match slot.content {
            Content::Free(_) => true,
            Content::Ready(_) | Content::Failed(..) => !ahead.contains(&slot.group),
            Content::Reading | Content::Lent => false,
        })?;
        match std::mem::replace(&mut self.slots[slot], Slot { group, content: Content::Reading }).content {
            Content::Free(buffer) | Content::Ready(buffer) | Content::Failed(buffer, _) => Some((slot, group, buffer)),
            Content::Reading | Content::Lent => None, // not chosen above
        }
    }
}

impl Slot {
    fn holds(&self, group: usize) -> bool {
        self.group == group && !matches!(self.content, Content::Free(_))
    }
}

/// The thread that reads.
struct Reader {
    shared: Arc<Shared>,
    sources: Vec<Source>,
}

impl Reader {
    fn run(mut self) {
        while let Some((slot, group, mut buffer)) = self.next_job() {
            let read = self.read(group, &mut buffer);
            let mut state = self.shared.lock();
            state.slots[slot].content = match read {
                Ok(()) => Content::Ready(buffer),
                Err(error) => Content::Failed(buffer, error),
            };
            self.shared.changed.notify_all();
        }
    }

    /// Waits for something to read; `None` when the stream is dropped.
    fn next_job(&self) -> Option<(usize, usize, Buffer)> {
        let mut state = self.shared.lock();
        loop {
            if self.shared.stopped.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(job) = state.job(self.shared.groups.len()) {
                return Some(job);
            }
            state = self.shared.wait(state);
        }
    }

    fn read(&mut self, group: usize, buffer: &mut Buffer) -> Result<()> {
        let group = &self.shared.groups[group];
        for run in &group.runs {
            let source = &mut self.sources[run.file];
            let out = &mut buffer.bytes_mut()[run.at..][..run.end - run.start];
            let mut end = run.start;
            for piece in out.chunks_mut(PIECE) {
                if self.shared.stopped.load(Ordering::Relaxed) {
                    bail!("stopped");
                }
                let count = source.read(end, piece).with_context(|| source.path.display().to_string())?;
                end += count;
                if count < piece.len() {
                    break;
                }
            }
            group.check(run, end).with_context(|| source.path.display().to_string())?;
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock().reader_ended = true;
        self.shared.changed.notify_all();
    }
}
