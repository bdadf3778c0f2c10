//! Where text goes: standard output, a file that is replaced whole, or a pipe or device.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::disk;
use crate::report::Format;

/// Prints `text`. A closed pipe is an error that `is_broken_pipe` knows.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("can't write to standard output")
}

/// Writes `text` to `file`, or prints it.
pub fn deliver(text: &str, file: Option<&Path>) -> Result<()> {
    match file {
        Some(file) => disk::replace(file, text.as_bytes()),
        None => print(text),
    }
}

/// Whether the reader of standard output went away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe))
}

/// Makes `file`'s folder, and fails where `file` can't be written later, before hours of work went into what it is to
/// hold.
pub fn check_writable(file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let place = || format!("can't write {}", file.display());
    ensure!(!file.is_dir(), "{}: it is a folder", place());
    let is_named = file.file_name().is_some() && !file.as_os_str().as_encoded_bytes().ends_with(b"/");
    ensure!(is_named, "can't write {file:?}: a file's name is missing at its end");
    if disk::is_stream(file) {
        return Ok(());
    }
    let target = disk::target(file).with_context(place)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk::make_folder(folder).with_context(place)?;
    let probe = folder.join(format!(".fireval.{}.tmp", std::process::id()));
    std::fs::write(&probe, b"").with_context(place)?;
    std::fs::remove_file(&probe).with_context(|| format!("can't remove {}", probe.display()))
}

/// Columns of the terminal that standard output is, if it is one.
pub fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    // SAFETY: the kernel fills a plain struct of four numbers, whose zeros are valid too.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
    };
    size.map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

/// The format that was asked for, or that the file's ending says.
pub fn format(asked: Option<Format>, file: Option<&Path>) -> Format {
    let ending = file.and_then(|file| file.extension()).and_then(|ending| ending.to_str());
    match (asked, ending) {
        (Some(format), _) => format,
        (None, Some("md")) => Format::Markdown,
        (None, Some("csv")) => Format::Csv,
        (None, Some("json")) => Format::Json,
        (None, Some("tex")) => Format::Latex,
        (None, Some("html" | "htm")) => Format::Html,
        (None, _) => Format::Table,
    }
}
