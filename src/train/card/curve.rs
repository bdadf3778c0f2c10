//! The loss over the steps as a small SVG: a line for the steps, a line with points for the held-out dialogues.
//!
//! A long run is drawn in buckets, each the mean of its steps, so the file stays small; a short one is drawn step by step.

use std::fmt::Write;

use crate::train::log::{Entry, HeldOut, Step};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
/// Of the area in the axes: left, top, right, bottom.
const AREA: [f64; 4] = [52.0, 16.0, 624.0, 244.0];
/// Points of a line, at most.
const POINTS: usize = 400;
/// About so many numbers beside an axis.
const TICKS: f64 = 5.0;

/// Cross-entropy of each step that had one.
pub fn steps(log: &[Entry]) -> Vec<(usize, f64)> {
    let loss = |entry: &Entry| match entry {
        Entry::Step(Step { step, cross_entropy, .. }) => cross_entropy.map(|loss| (*step, loss)),
        Entry::HeldOut(_) => None,
    };
    log.iter().filter_map(loss).collect()
}

/// Held-out losses, by the steps that were done.
pub fn held_out(log: &[Entry]) -> Vec<(usize, f64)> {
    let loss = |entry: &Entry| match entry {
        Entry::Step(_) => None,
        Entry::HeldOut(HeldOut { step, held_out_loss }) => held_out_loss.is_finite().then_some((*step, *held_out_loss)),
    };
    log.iter().filter_map(loss).collect()
}

/// The drawing; nothing where there is no line to draw.
pub fn curve(log: &[Entry]) -> Option<String> {
    let (steps, held_out) = (steps(log), held_out(log));
    let all = || steps.iter().chain(&held_out);
    if steps.len() < 2 {
        return None;
    }
    let last = all().map(|(step, _)| *step).max()? as f64;
    let (low, high) =
        all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
    let margin = (0.05 * (high - low)).max(1e-3);
    let scale = Scale { last, low: low - margin, high: high + margin };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<title>cross-entropy by step</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    axes(&mut svg, &scale);
    line(&mut svg, &scale, &buckets(&steps), "#4878a8");
    line(&mut svg, &scale, &held_out.iter().map(|&(step, loss)| (step as f64, loss)).collect::<Vec<_>>(), "#c05020");
    for &(step, loss) in &held_out {
        let (x, y) = scale.place(step as f64, loss);
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#c05020\"/>");
    }
    legend(&mut svg, !held_out.is_empty());
    svg.push_str("</svg>\n");
    Some(svg)
}

/// From steps and losses to the drawing.
struct Scale {
    last: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn place(&self, step: f64, loss: f64) -> (f64, f64) {
        let [left, top, right, bottom] = AREA;
        let x = left + (right - left) * step / self.last;
        (x, bottom - (bottom - top) * (loss - self.low) / (self.high - self.low))
    }
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

fn line(svg: &mut String, scale: &Scale, points: &[(f64, f64)], colour: &str) {
    if points.len() < 2 {
        return;
    }
    let place = |&(step, loss): &(f64, f64)| {
        let (x, y) = scale.place(step, loss);
        format!("{x:.1},{y:.1}")
    };
    let points: Vec<String> = points.iter().map(place).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
        points.join(" ")
    );
}

fn axes(svg: &mut String, scale: &Scale) {
    let [left, top, right, bottom] = AREA;
    for loss in ticks(scale.low, scale.high) {
        let (_, y) = scale.place(0.0, loss);
        let label = number(loss, scale.high - scale.low);
        let _ = writeln!(svg, "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{label}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    for step in ticks(0.0, scale.last).into_iter().filter(|step| step.fract() == 0.0) {
        let (x, _) = scale.place(step, scale.low);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{step}</text>",
            bottom + 16.0
        );
    }
    let _ = writeln!(svg, "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#888888\"/>");
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">step</text>",
        (left + right) / 2.0,
        HEIGHT - 4.0
    );
}

fn legend(svg: &mut String, has_held_out: bool) {
    let [_, top, right, _] = AREA;
    for (index, (name, colour)) in [("learnt from", "#4878a8"), ("held out", "#c05020")].into_iter().enumerate() {
        if index == 0 || has_held_out {
            let y = top + 14.0 + 15.0 * index as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                right - 6.0
            );
        }
    }
}

/// Round numbers from `low` to `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// With as many places as numbers over that span need.
fn number(value: f64, span: f64) -> String {
    let places = (1.0 - (span / TICKS).log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 24.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(ticks(0.0, 3000.0), [0.0, 1000.0, 2000.0, 3000.0]);
        let labels: Vec<String> = ticks(1.52, 2.31).iter().map(|&tick| number(tick, 0.79)).collect();
        assert_eq!(labels, ["1.6", "1.8", "2", "2.2"]);
        assert_eq!(number(0.0005, 0.001), "0.0005");
    }

    #[test]
    fn long_runs_are_drawn_in_means() {
        let steps: Vec<(usize, f64)> = (1..=3000).map(|step| (step, if step % 2 == 0 { 1.0 } else { 3.0 })).collect();
        let drawn = buckets(&steps);
        assert!(drawn.len() <= POINTS && drawn.len() > POINTS / 2, "{}", drawn.len());
        assert!(drawn.iter().all(|(_, loss)| (loss - 2.0).abs() < 1e-12));
        assert_eq!(buckets(&steps[..3]).len(), 3);
    }
}
