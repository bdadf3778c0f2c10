//! The loss over the steps as a small SVG: a line for the steps, a line with points for the held-out dialogues.
//!
//! A long run is drawn in buckets, each the mean of its steps, so the file stays small; a short one is drawn step by step.

use anyhow::Result;

use crate::chart::Ink;
use crate::chart::lines::{Line, lines};
use crate::train::log::{Entry, HeldOut, Step};

/// Of the drawing in a card, in pixels.
pub const WIDTH: u32 = 640;
/// Points of a line, at most.
const POINTS: usize = 400;

/// Cross-entropy of each step that had one.
pub fn steps(log: &[Entry]) -> Vec<(usize, f64)> {
    let loss = |entry: &Entry| match entry {
        Entry::Step(Step { step, cross_entropy, .. }) => cross_entropy.map(|loss| (*step, loss)),
        Entry::HeldOut(_) => None,
    };
    log.iter().filter_map(loss).collect()
}

/// Held-out losses that are finite, by the steps that were done.
pub fn held_out(log: &[Entry]) -> Vec<(usize, f64)> {
    let loss = |entry: &Entry| match entry {
        Entry::Step(_) => None,
        Entry::HeldOut(HeldOut { step, held_out_loss }) => held_out_loss.map(|loss| (*step, loss)),
    };
    log.iter().filter_map(loss).collect()
}

/// The drawing, `width` pixels wide; nothing where there is no line to draw.
pub fn curve(log: &[Entry], width: u32) -> Result<Option<String>> {
    let steps = steps(log);
    if steps.len() < 2 {
        return Ok(None);
    }
    let held_out = held_out(log).into_iter().map(|(step, loss)| (step as f64, loss)).collect();
    let learnt = Line { name: "learnt from", points: buckets(&steps), ink: Ink::Series(0), has_dots: false };
    let held_out = Line { name: "held out", points: held_out, ink: Ink::Series(1), has_dots: true };
    lines(&[learnt, held_out], "step", "cross-entropy by step", width)
}

/// Runs of steps that follow each other, as means.
fn buckets(steps: &[(usize, f64)]) -> Vec<(f64, f64)> {
    let mean = |bucket: &[(usize, f64)]| {
        let count = bucket.len() as f64;
        let sum = bucket.iter().fold((0.0, 0.0), |(x, y), (step, loss)| (x + *step as f64, y + loss));
        (sum.0 / count, sum.1 / count)
    };
    steps.chunks(steps.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_drawn_in_means() {
        let steps: Vec<(usize, f64)> = (1..=3000).map(|step| (step, if step % 2 == 0 { 1.0 } else { 3.0 })).collect();
        let drawn = buckets(&steps);
        assert!(drawn.len() <= POINTS && drawn.len() > POINTS / 2, "{}", drawn.len());
        assert!(drawn.iter().all(|(_, loss)| (loss - 2.0).abs() < 1e-12));
        assert_eq!(buckets(&steps[..3]).len(), 3);
    }
}
