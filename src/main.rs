//! The binary: memory settings, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    leave_elementwise_work_on_its_thread();
    fireval::cmd::main()
}

/// A decoder frees and takes buffers of megabytes thousands of times. glibc gives each back to the system at once and
/// takes it again page by page, which costs up to half of the time; so all of it comes from one heap that only grows.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    // SAFETY: mallopt only sets numbers, before any other thread exists; a refusal (0) leaves the defaults.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// candle spreads each elementwise operation over a pool whose threads spin at a barrier. On a machine that does anything
/// else the wait for a thread that is not scheduled took 45 % of a training step; products are spread all the same.
fn leave_elementwise_work_on_its_thread() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: no other thread exists yet that could read the environment.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
