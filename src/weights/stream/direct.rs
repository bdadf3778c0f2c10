//! Direct reads: from the disk into memory of our own, past the page cache, whose cold pages cost more than the disk.
//!
//! The kernel asks that offset, length and address be aligned; where a file system refuses direct reads all the same
//! (EINVAL), the file is read plainly.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What offsets, lengths and addresses are multiples of: a page, of which every disk's block is a part.
pub(super) const ALIGNMENT: usize = 4096;

/// Memory that begins at a multiple of [`ALIGNMENT`].
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Untouched pages of it take no memory yet.
    pub fn new(length: usize) -> Buffer {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer { memory, start, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.length]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}

/// A file to read from.
pub(super) struct Source {
    pub path: PathBuf,
    plain: File,
    /// `None` where direct reads were refused.
    direct: Option<File>,
}

impl Source {
    pub fn open(path: &Path) -> Result<Source> {
        let plain = File::open(path).with_context(|| path.display().to_string())?;
        let direct = open_direct(path).ok(); // the plain one is open, so only direct reads can be what is refused
        Ok(Source { path: path.to_owned(), plain, direct })
    }

    /// Fills `out` from `offset` on and returns how many bytes were there: fewer only at the end of the file.
    pub fn read(&mut self, offset: usize, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            let file = self.direct.as_ref().unwrap_or(&self.plain);
            let count = match file.read_at(&mut out[done..], (offset + done) as u64) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if self.direct.is_some() && error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Direct reads go on at a multiple of the alignment; what then comes in less is the end of the file.
            let whole = if self.direct.is_some() { count - count % ALIGNMENT } else { count };
            if whole == 0 {
                return Ok(done + count);
            }
            done += whole;
        }
        Ok(done)
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `length` bytes that tell their places.
    fn file(length: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..length).map(|place| (place * 31 + place / 256) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        (folder, path, bytes)
    }

    #[test]
    fn a_read_ends_at_the_end_of_the_file() {
        let (_folder, path, bytes) = file(3 * ALIGNMENT + 100);
        let mut buffer = Buffer::new(4 * ALIGNMENT);
        let mut direct = Source::open(&path).unwrap();
        let mut plain = Source { direct: None, ..Source::open(&path).unwrap() };
        for source in [&mut direct, &mut plain] {
            for (offset, length, expected) in [(0, 2, 2), (0, 4, 4), (1, 3, 3), (3, 1, 1), (4, 1, 0), (9, 1, 0)] {
                let (offset, length) = (offset * ALIGNMENT, length * ALIGNMENT);
                buffer.bytes_mut().fill(0);
                let count = source.read(offset, &mut buffer.bytes_mut()[..length]).unwrap();
                let end = (offset + expected * ALIGNMENT).min(bytes.len());
                assert_eq!(count, end.saturating_sub(offset), "{offset} {length}");
                assert_eq!(buffer.bytes()[..count], bytes[bytes.len().min(offset)..][..count], "{offset} {length}");
            }
        }
    }

    #[test]
    fn what_is_refused_directly_is_read_plainly() {
        let (_folder, path, bytes) = file(3 * ALIGNMENT);
        let mut buffer = Buffer::new(2 * ALIGNMENT);
        let mut source = Source::open(&path).unwrap();
        // Nothing of this is aligned, so a file system that reads directly refuses it.
        assert_eq!(source.read(77, &mut buffer.bytes_mut()[3..4000]).unwrap(), 3997);
        assert_eq!(buffer.bytes()[3..4000], bytes[77..4074]);
        assert!(source.direct.is_none(), "refused once, never tried again");
        assert_eq!(source.read(0, buffer.bytes_mut()).unwrap(), 2 * ALIGNMENT);
        assert_eq!(buffer.bytes(), &bytes[..2 * ALIGNMENT]);
    }
}
