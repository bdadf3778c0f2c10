//! The binary: memory settings, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    fireval::cmd::main()
}

/// A decoder frees and takes buffers of megabytes thousands of times. glibc gives each back to the system at once and
/// takes it again page by page, which costs up to half of the time; so it is told to keep what was freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    const KEPT_BYTES: libc::c_int = 1 << 30;
    // SAFETY: mallopt only sets two numbers, before any other thread exists; a refusal (0) leaves the defaults.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
