//! Points over a logarithmic axis, named where their names find room.

use anyhow::Result;
use plotters::style::text_anchor::HPos;

use super::{Ink, LETTERS, Pen, fitted, number, svg, ticks, width_of};

pub struct Point {
    /// Above zero.
    pub x: f64,
    pub y: f64,
    /// The ends of an interval of `y`, where it is known.
    pub ends: Option<(f64, f64)>,
    pub name: String,
    pub ink: Ink,
}

/// What the numbers beside the axes are.
pub struct Axes<'a> {
    pub x: &'a str,
    pub y: &'a str,
}

const HEIGHT: u32 = 380;
/// The area in the axes: left, top, and from the right and the bottom.
const MARGINS: (i32, i32, i32, i32) = (40, 26, 14, 46);
/// Names are cut at this share of the width.
const NAME: f64 = 0.45;

/// The drawing, `width` pixels wide. Names of earlier points come first where two would stand on each other.
pub fn scatter(points: &[Point], axes: &Axes, title: &str, width: u32) -> Result<String> {
    let scale = Scale::of(points, width);
    svg((width, HEIGHT), title, |pen| {
        draw_axes(pen, &scale, axes)?;
        // The first points are drawn over the others.
        for point in points.iter().rev() {
            let (x, y) = (scale.h(point.x), scale.v(point.y));
            if let Some((low, high)) = point.ends {
                pen.line((x, scale.v(low)), (x, scale.v(high)), point.ink, 2)?;
            }
            pen.dot((x, y), if point.ink == Ink::Grey { 4 } else { 6 }, point.ink)?;
        }
        let names = names(points, &scale, f64::from(width) * NAME);
        names.iter().try_for_each(|(name, place, side, ink)| pen.text(name, *place, *ink, *side))
    })
}

fn draw_axes(pen: &Pen, scale: &Scale, axes: &Axes) -> Result<()> {
    let Scale { left, right, top, bottom, .. } = *scale;
    for y in ticks(scale.y.0, scale.y.1, 6.0) {
        pen.line((left, scale.v(y)), (right, scale.v(y)), Ink::Grid, 1)?;
        pen.text(&number(y), (left - 6, scale.v(y)), Ink::Faint, HPos::Right)?;
    }
    for x in decades(scale.x.0, scale.x.1) {
        pen.line((scale.h(x), top), (scale.h(x), bottom), Ink::Grid, 1)?;
        pen.text(&number(x), (scale.h(x), bottom + 13), Ink::Faint, HPos::Center)?;
    }
    pen.line((left, bottom), (right, bottom), Ink::Axis, 1)?;
    pen.text(axes.x, ((left + right) / 2, HEIGHT as i32 - 12), Ink::Faint, HPos::Center)?;
    pen.text(axes.y, (4, 10), Ink::Faint, HPos::Left)
}

/// From values to pixels.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl Scale {
    fn of(points: &[Point], width: u32) -> Scale {
        let span = |values: Vec<f64>| {
            values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (x_low, x_high) = span(points.iter().map(|point| point.x).collect());
        let ends = points.iter().flat_map(|point| {
            let (low, high) = point.ends.unwrap_or((point.y, point.y));
            [low, high]
        });
        let (y_low, y_high) = span(ends.collect());
        let room = (0.06 * (y_high - y_low)).max(0.5);
        let (left, top, from_right, from_bottom) = MARGINS;
        Scale {
            x: (x_low / 1.5, x_high * 1.5),
            y: (y_low - room, y_high + room),
            left,
            top,
            right: width as i32 - from_right,
            bottom: HEIGHT as i32 - from_bottom,
        }
    }

    fn h(&self, x: f64) -> i32 {
        let part = (x / self.x.0).ln() / (self.x.1 / self.x.0).ln();
        self.left + (part * f64::from(self.right - self.left)).round() as i32
    }

    fn v(&self, y: f64) -> i32 {
        let part = (y - self.y.0) / (self.y.1 - self.y.0);
        self.bottom - (part * f64::from(self.bottom - self.top)).round() as i32
    }
}

/// 1, 2 and 5 times powers of ten between `low` and `high`; over many decades the powers alone.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high / low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    all.filter(|&x| low <= x && x <= high).collect()
}

type Name = (String, (i32, i32), HPos, Ink);

/// Names at the right of their points, or at the left, where no other name and no point stands.
fn names(points: &[Point], scale: &Scale, widest: f64) -> Vec<Name> {
    let place = |point: &Point| (scale.h(point.x), scale.v(point.y));
    let mut taken: Vec<[i32; 4]> = points
        .iter()
        .map(|point| {
            let (x, y) = place(point);
            [x - 5, y - 5, x + 5, y + 5]
        })
        .collect();
    let mut names = Vec::new();
    for point in points {
        let (x, y) = place(point);
        let name = fitted(&point.name, widest);
        let (width, half) = (width_of(&name) as i32, LETTERS as i32 / 2 + 1);
        let sides = [(HPos::Left, x + 9, x + 9 + width), (HPos::Right, x - 9, x - 9 - width)];
        let free = sides.into_iter().find(|&(_, from, to)| {
            let (from, to) = (from.min(to), from.max(to));
            let overlaps =
                |other: &[i32; 4]| from < other[2] && other[0] < to && y - half < other[3] && other[1] < y + half;
            from >= scale.left && to <= scale.right + MARGINS.2 && !taken.iter().any(overlaps)
        });
        if let Some((side, from, to)) = free {
            taken.push([from.min(to), y - half, from.max(to), y + half]);
            let ink = if point.ink == Ink::Grey { Ink::Faint } else { point.ink };
            names.push((name, (from, y), side, ink));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::is_well_formed;

    fn point(x: f64, y: f64, name: &str) -> Point {
        Point { x, y, ends: Some((y - 1.0, y + 1.0)), name: name.to_owned(), ink: Ink::Grey }
    }

    #[test]
    fn ten_times_is_the_same_way_everywhere() {
        let points = [point(0.1, 40.0, "a"), point(1.0, 50.0, "b"), point(10.0, 60.0, "c")];
        let svg = scatter(&points, &Axes { x: "billions", y: "average" }, "t", 600).unwrap();
        assert!(is_well_formed(&svg), "{svg}");
        let scale = Scale::of(&points, 600);
        let ways = [scale.h(1.0) - scale.h(0.1), scale.h(10.0) - scale.h(1.0)];
        assert!((ways[0] - ways[1]).abs() <= 1 && ways[0] > 100, "{ways:?}");
        assert!(scale.v(60.0) < scale.v(50.0) && scale.v(61.0) > scale.top && scale.v(39.0) < scale.bottom);
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(decades(0.7, 12.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(decades(0.09, 150.0), [0.1, 1.0, 10.0, 100.0]);
    }

    #[test]
    fn a_name_that_finds_no_room_is_left_out_and_the_first_stays() {
        let points = [point(10.0, 50.0, "the first"), point(10.5, 50.1, "the second"), point(10.8, 50.05, "the third")];
        let found = names(&points, &Scale::of(&points, 300), 200.0);
        assert!(found.iter().any(|(name, ..)| name == "the first") && found.len() < 3);
        let alone = [point(13.0, 50.0, "alone")];
        let svg = scatter(&alone, &Axes { x: "x", y: "y" }, "t", 300).unwrap();
        assert!(svg.contains("alone") && !svg.contains("NaN"), "{svg}");
    }
}
