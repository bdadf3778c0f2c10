//! Files that survive a crash: whole replacements, and a log that only grows.
//!
//! A replaced file is the old one or the new one, never a part: written beside its place, flushed, renamed into it. A link
//! stays, and what it leads to is replaced; what is no file, as a pipe or /dev/null, is written as it is. A log
//! holds one JSON object a line, each with a checksum over itself; what a crash leaves half written at the end is dropped
//! at the next opening, anything else that fails its checksum is an error. One process writes a log at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::digest::sha256_hex;

/// How a line's checksum stands at its end: `,"checksum":"0123456789abcdef"}`.
const CHECKSUM_KEY: &str = ",\"checksum\":\"";
const CHECKSUM_DIGITS: usize = 16;

/// How much a power failure may cost. (A killed process loses nothing that was appended.)
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// Replaces `path` with what `write` puts into the temporary file beside it. After an error the old file is as it was.
pub fn replace_with(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = || format!("can't write {}", path.display());
    if is_stream(path) {
        return write(path).with_context(place);
    }
    let target = target(path).with_context(place)?;
    let name = target.file_name().with_context(|| format!("{} is not a file's path", path.display()))?;
    let temporary = target.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = readable_as_made(&temporary, write)
        .and_then(|()| Ok(File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(std::fs::rename(&temporary, &target)?))
        .and_then(|()| sync_folder(&target));
    if written.is_err() {
        // Whatever went wrong first is what the user should hear of.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(place)
}

/// What `write` leaves can be read by whom a new file can: safetensors writes files that are their owner's alone.
fn readable_as_made(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let permissions = File::create(path)?.metadata()?.permissions();
    write(path)?;
    Ok(std::fs::set_permissions(path, permissions)?)
}

/// Keeps others from `path`, a file or a folder that is open as `file`, as long as that is.
pub fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is being written by another fireval; wait until it is done", path.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Replaces `path` with `bytes`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_with(path, |temporary| Ok(std::fs::write(temporary, bytes)?))
}

/// Whether what is at `path` takes bytes and keeps none of them to be replaced: a pipe, a device.
pub fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Where `path` leads if it is a link, also to what is not there yet; else `path`.
pub fn target(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        match std::fs::read_link(&target) {
            // A relative link counts from its own folder.
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(target),
        }
    }
    bail!("its links lead round in a circle")
}

/// Makes `folder` and those above it.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))
}

/// A rename lasts once its folder is flushed.
fn sync_folder(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Ok(File::open(folder)?.sync_all()?),
        Some(_) | None => Ok(File::open(".")?.sync_all()?),
    }
}

/// A log opened for writing, locked against other writers until it is dropped.
pub struct AppendLog {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    synced: Instant,
}

/// What a log's file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The objects of whole lines, without their checksums, each with its line, from 1.
    pub objects: Vec<(usize, String)>,
    /// Lines, from 1, that were changed after they were written.
    pub changed: Vec<usize>,
    /// Bytes of whole lines, changed or not; what follows them is torn.
    pub whole: usize,
    /// Bytes at the end that a crash left half written.
    pub torn: usize,
}

impl AppendLog {
    /// Opens or makes the log at `path`; a torn tail is cut off. Returns the objects it holds, without their checksums.
    pub fn open(path: &Path) -> Result<(AppendLog, Vec<String>)> {
        let place = || format!("can't open {}", path.display());
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(place)?;
        lock(&file, path)?;
        let bytes = std::fs::read(path).with_context(place)?;
        let (objects, whole) = parse(path, &bytes)?;
        if whole < bytes.len() {
            file.set_len(whole as u64).with_context(place)?;
        }
        let log = AppendLog { path: path.to_owned(), file, length: whole as u64, synced: Instant::now() };
        Ok((log, objects))
    }

    /// Appends `object`, the text of one JSON object with at least one key, on one line. After an error (a full disk)
    /// the log is as it was.
    pub fn append(&mut self, object: &str) -> Result<()> {
        let line = with_checksum(object)?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line must not stand before the next; where even this fails it is a torn tail.
            let _ = self.file.set_len(self.length);
            return Err(error).with_context(|| format!("can't append to {}", self.path.display()));
        }
        self.length += line.len() as u64;
        if self.synced.elapsed() > SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Returns once everything appended is on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file.sync_data().with_context(|| format!("can't flush {}", self.path.display()))
    }
}

/// The objects of a log that nobody has to be writing; none if there is no such file.
pub fn read_log(path: &Path) -> Result<Vec<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(parse(path, &bytes)?.0),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

/// All that is right and wrong with the log at `path`.
pub fn inspect_log(path: &Path) -> Result<Inspection> {
    let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(inspect(&bytes))
}

fn with_checksum(object: &str) -> Result<String> {
    let inner = object.strip_suffix('}').filter(|inner| inner.len() > 1 && !object.contains('\n'));
    let inner = inner.context("a line of a log is a JSON object on one line")?;
    Ok(format!("{inner}{CHECKSUM_KEY}{}\"}}\n", &sha256_hex(object.as_bytes())[..CHECKSUM_DIGITS]))
}

/// The object of a line, if its checksum is right.
fn without_checksum(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_suffix("\"}")?;
    let at = rest.len().checked_sub(CHECKSUM_DIGITS).filter(|&at| rest.is_char_boundary(at))?;
    let (before, checksum) = rest.split_at(at);
    let object = format!("{}}}", before.strip_suffix(CHECKSUM_KEY)?);
    (sha256_hex(object.as_bytes())[..CHECKSUM_DIGITS] == *checksum).then_some(object)
}

/// The objects and how many bytes of whole lines hold them; a changed line is an error.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<String>, usize)> {
    let Inspection { objects, changed, whole, torn: _ } = inspect(bytes);
    if let Some(line) = changed.first() {
        bail!(
            "{}, line {line}: the checksum is wrong, so the line was changed after it was written (its line end counts too); \
             put it back, or delete it (its document is then scored again)",
            path.display()
        );
    }
    Ok((objects.into_iter().map(|(_, object)| object).collect(), whole))
}

/// A crash leaves a line without its end, a power failure also zeros in place of bytes that did not come to the disk. Where
/// nothing whole follows, that is a torn tail; every other bad line was changed by someone.
fn inspect(bytes: &[u8]) -> Inspection {
    let mut found = Inspection::default();
    let mut torn = Vec::new();
    let mut end = 0;
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        end += line.len();
        let object = line.strip_suffix(b"\n").and_then(without_checksum);
        if object.is_none() && (!line.ends_with(b"\n") || line.contains(&0)) {
            torn.push(index + 1);
            continue;
        }
        found.changed.append(&mut torn);
        match object {
            Some(object) => found.objects.push((index + 1, object)),
            None => found.changed.push(index + 1),
        }
        found.whole = end;
    }
    found.torn = end - found.whole;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path) -> PathBuf {
        folder.join("deep/log.jsonl")
    }

    fn written(path: &Path, objects: &[&str]) {
        let (mut log, _) = AppendLog::open(path).unwrap();
        objects.iter().for_each(|object| log.append(object).unwrap());
        log.sync().unwrap();
    }

    #[test]
    fn a_file_that_was_its_owner_s_alone_is_read_as_others_are() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        let (plain, kept) = (folder.path().join("plain"), folder.path().join("kept"));
        std::fs::write(&plain, "a").unwrap();
        let written = replace_with(&kept, |path| {
            let temporary = tempfile::NamedTempFile::new_in(folder.path())?;
            Ok(temporary.persist(path).map(drop)?) // as safetensors does
        });
        written.unwrap();
        assert_eq!(mode(&kept), mode(&plain));
    }

    #[test]
    fn a_folder_is_locked_as_long_as_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let first = open();
        lock(&first, folder.path()).unwrap();
        let error = lock(&open(), folder.path()).unwrap_err().to_string();
        assert!(error.contains("is being written by another fireval"), "{error}");
        drop(first);
        lock(&open(), folder.path()).unwrap();
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let objects = ["{\"a\":1}", "{\"text\":\"é \\n \\\"}\"}"];
        written(&path, &objects);
        assert_eq!(AppendLog::open(&path).unwrap().1, objects);
        assert_eq!(read_log(&path).unwrap(), objects);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).unwrap().is_object()));
        assert!(read_log(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_log_cut_at_any_byte_loses_the_cut_line_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        written(&path, &["{\"a\":1}", "{\"b\":\"é\"}"]);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, objects) = AppendLog::open(&path).unwrap();
            assert_eq!(objects.len(), usize::from(cut >= first), "cut at {cut}");
            log.append("{\"c\":3}").unwrap();
            drop(log);
            assert_eq!(read_log(&path).unwrap().last().unwrap(), "{\"c\":3}");
        }
    }

    #[test]
    fn a_changed_line_is_an_error_and_not_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        written(&path, &["{\"a\":1}", "{\"b\":2}"]);
        let changed = std::fs::read_to_string(&path).unwrap().replace("\"a\":1", "\"a\":7");
        std::fs::write(&path, changed).unwrap();
        let error = AppendLog::open(&path).err().unwrap().to_string();
        assert!(error.contains("log.jsonl, line 1") && error.contains("checksum"), "{error}");
    }

    #[test]
    fn whole_lines_at_the_end_are_changed_and_not_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        written(&path, &["{\"a\":1}", "{\"b\":2}"]);
        let text = std::fs::read_to_string(&path).unwrap();
        // As an editor on Windows saves them; a number; a blank line that was added; and all that with a torn tail after it.
        for (changed, line) in [
            (text.replace('\n', "\r\n"), 1),
            (text.replace("\"b\":2", "\"b\":7"), 2),
            (text.clone() + "\n", 3),
            (text.replace("\"b\":2", "\"b\":7") + "{\"c\"", 2),
        ] {
            std::fs::write(&path, &changed).unwrap();
            let error = AppendLog::open(&path).err().unwrap().to_string();
            assert!(error.contains(&format!("log.jsonl, line {line}: the checksum is wrong")), "{error}");
            assert!(read_log(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), changed, "nothing is touched");
        }
    }

    #[test]
    fn zeros_after_a_power_failure_are_a_torn_tail() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        written(&path, &["{\"a\":1}", "{\"b\":2}"]);
        let whole = std::fs::read(&path).unwrap();
        for tail in [&b"\0\0\0"[..], b"\0\0\0\"checksum\":\"0123456789abcdef\"}\n", b"{\"c\0\0\n\0"] {
            std::fs::write(&path, [&whole[..], tail].concat()).unwrap();
            assert_eq!(AppendLog::open(&path).unwrap().1.len(), 2);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        std::fs::write(&path, [&vec![0; first - 1][..], &whole[first - 1..]].concat()).unwrap();
        assert_eq!(inspect_log(&path).unwrap().changed, [1], "a whole line follows");
    }

    #[test]
    fn all_changed_lines_are_listed_and_a_torn_tail_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        written(&path, &["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"a\":1", "\"a\":7").replace("\"b\":2", "\"b\":7") + "{\"d\"").unwrap();
        let found = inspect_log(&path).unwrap();
        assert_eq!(found.objects, [(3, "{\"c\":3}".to_owned())]);
        assert_eq!((found.changed, found.whole, found.torn), (vec![1, 2], text.len(), 4));
    }

    #[test]
    fn two_do_not_write_one_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let first = AppendLog::open(&path).unwrap();
        assert!(AppendLog::open(&path).err().unwrap().to_string().contains("another fireval"));
        drop(first);
        assert!(AppendLog::open(&path).is_ok());
    }

    #[test]
    fn a_line_is_an_object_on_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = AppendLog::open(&log(folder.path())).unwrap();
        assert!(log.append("[1]").is_err() && log.append("{\n}").is_err() && log.append("{}").is_err());
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"old").unwrap();
        let failed = replace_with(&path, |temporary| {
            std::fs::write(temporary, b"half")?;
            bail!("the disk is full")
        });
        let error = format!("{:#}", failed.unwrap_err());
        assert!(error.contains("the disk is full") && error.contains("file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        assert!(replace(&folder.path().join("no/such/folder"), b"").is_err());
    }

    #[test]
    fn a_link_stays_and_its_target_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("deep")).unwrap();
        symlink("deep/later", path("link")).unwrap();
        symlink(path("link"), path("link to it")).unwrap();
        for text in ["not there before", "and replaced"] {
            replace(&path("link to it"), text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(path("deep/later")).unwrap(), text);
        }
        assert!(path("link").is_symlink() && path("link to it").is_symlink());
        symlink("round", path("round")).unwrap();
        assert!(format!("{:#}", replace(&path("round"), b"").unwrap_err()).contains("in a circle"));
    }

    #[test]
    fn a_pipe_is_written_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a system call that reads a string, which ends in a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let reader = path.clone();
        let reader = std::thread::spawn(move || std::fs::read(reader).unwrap());
        replace(&path, b"through").unwrap();
        assert!(is_stream(&path), "it is still there");
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(is_stream(Path::new("/dev/null")) && !is_stream(folder.path()) && !is_stream(Path::new("/no/such")));
    }
}
