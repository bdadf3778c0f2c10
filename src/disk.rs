//! Files that are whole or not there: written beside their place, flushed, then renamed into it.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

/// Replaces `path` with what `write` puts into the temporary file beside it. After an error the old file is as it was.
pub fn replace_with(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} is not a file's path", path.display()))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let place = || format!("cannot write {}", path.display());
    let written = write(&temporary)
        .and_then(|()| Ok(File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if written.is_err() {
        // Whatever went wrong first is what the user should hear of.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(place)
}

/// Replaces `path` with `bytes`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_with(path, |temporary| Ok(std::fs::write(temporary, bytes)?))
}
