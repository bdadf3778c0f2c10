//! Numbers that a memory budget has no room for, in a file of their own.
//!
//! The file is made in a folder of the user's choice, its room on the disk taken at once (so a full disk is told before the
//! work begins), and its name removed: whatever ends the process, nothing is left. What is read is compared with a sum over
//! what was written. Records that were never written are zeros.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use crate::memory::Memory;

/// Records of f32 numbers on the disk. Different records may be read and written side by side.
#[derive(Debug)]
pub struct Spill {
    file: File,
    /// The name that the file had.
    path: PathBuf,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    start: u64,
    numbers: usize,
    /// Over its bytes; 0: never written.
    sum: AtomicU64,
}

impl Spill {
    /// A file in `folder` with a record for each of `lengths`, in numbers. `what` is in it, for its name and for errors.
    pub fn create(folder: &Path, what: &str, lengths: impl IntoIterator<Item = usize>) -> Result<Spill> {
        let path = folder.join(format!(".{what}.{}.spill", std::process::id()));
        let (mut records, mut end) = (Vec::new(), 0);
        for numbers in lengths {
            records.push(Record { start: end, numbers, sum: AtomicU64::new(0) });
            end += 4 * numbers as u64;
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = opened.with_context(|| format!("can't make {}", path.display()))?;
        std::fs::remove_file(&path).with_context(|| format!("can't take away the name of {}", path.display()))?;
        take_room(&file, end).with_context(|| {
            let (size, path) = (Memory(end), path.display());
            format!("can't spill {size} to {path}: make room on that disk, or give more with --memory")
        })?;
        Ok(Spill { file, path, records })
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Numbers of a record.
    pub fn numbers(&self, index: usize) -> usize {
        self.records[index].numbers
    }

    /// Writes a whole record.
    pub fn write(&self, index: usize, numbers: &[f32]) -> Result<()> {
        let record = &self.records[index];
        debug_assert_eq!(numbers.len(), record.numbers);
        let written = self.file.write_all_at(bytes(numbers), record.start);
        written.with_context(|| {
            format!("can't write to {}: make room on that disk, or give more with --memory", self.path.display())
        })?;
        record.sum.store(sum(bytes(numbers)), Ordering::Release);
        Ok(())
    }

    /// Reads a whole record. Other bytes than were written are an error.
    pub fn read(&self, index: usize, numbers: &mut [f32]) -> Result<()> {
        let record = &self.records[index];
        debug_assert_eq!(numbers.len(), record.numbers);
        let written = record.sum.load(Ordering::Acquire);
        if written == 0 {
            numbers.fill(0.0);
            return Ok(());
        }
        let read = self.file.read_exact_at(bytes_mut(numbers), record.start);
        read.with_context(|| format!("can't read {}", self.path.display()))?;
        ensure!(
            sum(bytes(numbers)) == written,
            "{}: {} bytes at {} are not those that were written: look after that disk, or give more with --memory",
            self.path.display(),
            4 * record.numbers,
            record.start
        );
        Ok(())
    }
}

/// Makes the file as long as `length`, on the disk and not only by name.
fn take_room(file: &File, length: u64) -> std::io::Result<()> {
    file.set_len(length)?;
    if length == 0 {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let end = i64::try_from(length).map_err(|_| std::io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: the descriptor is open as long as `file` is.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, end) } {
            0 | libc::EOPNOTSUPP => {} // of file systems that can't, some write zeros and some say so
            error => return Err(std::io::Error::from_raw_os_error(error)),
        }
    }
    Ok(())
}

/// Never 0. Words of 8 bytes in turn, so that order counts; made to be fast, not to withstand an enemy.
fn sum(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let whole = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    rest.iter().fold(whole, |sum, byte| mix(sum, u64::from(*byte))).max(1)
}

fn bytes(numbers: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is a byte, and the slice's length in bytes is that of its memory.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

fn bytes_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and any four bytes are an f32.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_to_the_bit_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), "moments", [3, 0, 5]).unwrap();
        assert_eq!((spill.len(), spill.numbers(2)), (3, 5));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "its name is gone");
        let numbers = [f32::NAN, -0.0, 1e-40, f32::MIN, 5.0];
        spill.write(2, &numbers).unwrap();
        spill.write(0, &[1.0, 2.0, 3.0]).unwrap();
        spill.write(1, &[]).unwrap();
        let mut again = [9.0; 5];
        spill.read(2, &mut again).unwrap();
        assert_eq!(again.map(f32::to_bits), numbers.map(f32::to_bits));
        spill.write(0, &[4.0, 5.0, 6.0]).unwrap();
        spill.read(0, &mut again[..3]).unwrap();
        assert_eq!(again[..3], [4.0, 5.0, 6.0]);
    }

    #[test]
    fn what_was_never_written_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let mut numbers = [1.0; 4];
        Spill::create(folder.path(), "moments", [4]).unwrap().read(0, &mut numbers).unwrap();
        assert_eq!(numbers, [0.0; 4]);
    }

    #[test]
    fn other_bytes_than_were_written_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), "layer-inputs", [2, 2]).unwrap();
        spill.write(0, &[1.0, 2.0]).unwrap();
        spill.write(1, &[3.0, 4.0]).unwrap();
        spill.file.write_all_at(&[1], 9).unwrap();
        let mut numbers = [0.0; 2];
        spill.read(0, &mut numbers).unwrap();
        let error = format!("{:#}", spill.read(1, &mut numbers).unwrap_err());
        assert!(error.contains("layer-inputs") && error.contains("8 bytes at 8"), "{error}");
        spill.file.set_len(12).unwrap();
        let error = format!("{:#}", spill.read(1, &mut numbers).unwrap_err());
        assert!(error.contains("can't read") && error.contains("layer-inputs"), "{error}");
    }

    #[test]
    fn a_disk_without_room_is_told_before_the_work_begins() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", Spill::create(folder.path(), "moments", [1 << 58]).unwrap_err());
        assert!(error.contains("can't spill") && error.contains("moments") && error.contains("--memory"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let nowhere = folder.path().join("nowhere");
        assert!(format!("{:#}", Spill::create(&nowhere, "moments", [1]).unwrap_err()).contains("nowhere"));
    }

    #[test]
    fn a_write_that_fails_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("there"), [0; 8]).unwrap();
        let mut spill = Spill::create(folder.path(), "moments", [2]).unwrap();
        spill.file = File::open(folder.path().join("there")).unwrap();
        let error = format!("{:#}", spill.write(0, &[1.0, 2.0]).unwrap_err());
        assert!(error.contains("can't write") && error.contains("moments"), "{error}");
    }

    #[test]
    fn a_sum_knows_order_and_length() {
        let all = [&[][..], &[0], &[0, 0], &[1, 0], &[0, 1], &[0; 8], &[0; 16], &[0, 0, 0, 0, 0, 0, 0, 1, 0]];
        let sums: std::collections::BTreeSet<u64> = all.iter().map(|bytes| sum(bytes)).collect();
        assert_eq!(sums.len(), all.len());
        assert!(!sums.contains(&0));
    }
}
