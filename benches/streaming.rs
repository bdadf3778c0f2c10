//! Streamed against mapped weights: GB/s over all layers of a checkpoint that is not in the page cache.
//!
//! cargo bench --bench streaming -- MODEL   (a folder larger than a few GB; `examples/generate_mixtral.rs` makes one)
//!
//! Each way goes through all layers twice and looks at every cache line, so that mapped pages are really there. Between
//! the ways the files are dropped from the page cache, without which mapping would be timed warm (as its second pass is,
//! where the model fits in memory).

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use fireval::model::config::ModelConfig;
use fireval::model::names;
use fireval::weights::stream::LayerStream;
use fireval::weights::{Checkpoint, Stored};

fn main() -> Result<()> {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let Some(path) = path.map(PathBuf::from) else {
        println!("streaming: give a model's folder");
        return Ok(());
    };
    let files: Vec<PathBuf> = Checkpoint::open(&path)?.files().into_iter().map(PathBuf::from).collect();
    forget(&files)?;
    let begun = Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    println!("opened cold in {:.3} s", begun.elapsed().as_secs_f64());
    let config = ModelConfig::of(&checkpoint)?;
    let layers: Vec<Vec<String>> = (0..config.num_hidden_layers)
        .map(|layer| names::linears(&config, layer).iter().map(|linear| names::weight(&linear.module)).collect())
        .collect();
    let bytes = |name: &String| anyhow::Ok(checkpoint.stored(name)?.bytes.len() as f64);
    let total: f64 = layers.iter().flatten().map(bytes).sum::<Result<f64>>()?;

    for slots in [1, 2] {
        forget(&files)?;
        let stream = LayerStream::new(&checkpoint, &layers, slots)?;
        let footprint = stream.footprint() as f64 / 1e9;
        time(&format!("streamed, {slots} buffers ({footprint:.2} GB)"), total, || {
            for (index, names) in layers.iter().enumerate() {
                let layer = stream.layer(index)?;
                for name in names {
                    touch(&layer.stored(name)?);
                }
            }
            Ok(())
        })?;
    }
    forget(&files)?;
    let checkpoint = Checkpoint::open(&path)?; // mapped anew, with no page in place
    time("mapped, cold", total, || {
        for name in layers.iter().flatten() {
            touch(&checkpoint.stored(name)?);
        }
        Ok(())
    })
}

/// Twice, because the first time fresh pages of the buffers are paid for too.
fn time(what: &str, bytes: f64, mut pass: impl FnMut() -> Result<()>) -> Result<()> {
    for number in ["first", "second"] {
        let begun = Instant::now();
        pass()?;
        println!("{what}, {number} pass: {:.2} GB/s", bytes / begun.elapsed().as_secs_f64() / 1e9);
    }
    Ok(())
}

/// Reads one byte of each cache line.
fn touch(stored: &Stored) {
    let sum = stored.bytes.iter().step_by(64).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    std::hint::black_box(sum);
}

/// Drops the files from the page cache, but for pages that are mapped.
fn forget(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        // SAFETY: an open file; the advice is taken or not.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    Ok(())
}
