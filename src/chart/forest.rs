//! A forest plot: an interval a line, beside a line at no difference.

use anyhow::Result;
use plotters::style::text_anchor::HPos;

use super::{Ink, Pen, fitted, number, svg, ticks, width_of};

/// Intervals under one name.
pub struct Group {
    pub name: String,
    /// Set apart from the others, as an average is.
    pub is_sum: bool,
    pub marks: Vec<Mark>,
}

/// An interval.
pub struct Mark {
    pub value: f64,
    /// Its ends; none where only the value is known.
    pub ends: Option<(f64, f64)>,
    /// In words, at the right where there is room.
    pub text: String,
    pub ink: Ink,
}

/// Pixels between lines of a group, and more between groups.
const LINE: i32 = 20;
const BETWEEN: i32 = 10;
/// Pixels that stay free at the left and the right.
const EDGE: i32 = 8;
/// Of the numbers below.
const FOOT: i32 = 44;
/// From this width on there is room for words at the right.
const ROOMY: u32 = 560;
/// Least pixels between two numbers below.
const TICK: f64 = 60.0;

/// The drawing, `width` pixels wide; `axis` says what the numbers are.
pub fn forest(groups: &[Group], axis: &str, title: &str, width: u32) -> Result<String> {
    let marks = || groups.iter().flat_map(|group| &group.marks);
    let longest = |texts: Vec<f64>| texts.into_iter().fold(0.0, f64::max);
    let left = longest(groups.iter().map(|group| width_of(&group.name)).collect()).min(0.3 * f64::from(width)) + 16.0;
    let words = longest(marks().map(|mark| width_of(&mark.text)).collect());
    let right = if width >= ROOMY { words + 18.0 } else { 10.0 };
    let scale = Scale::of(marks(), left, f64::from(width) - right);
    let bottom = BETWEEN + groups.iter().map(Group::height).sum::<i32>();
    svg((width, (bottom + FOOT) as u32), title, |pen| {
        draw_axis(pen, &scale, bottom, axis)?;
        let mut y = BETWEEN;
        for group in groups {
            draw_group(pen, group, &scale, y, width)?;
            y += group.height();
        }
        Ok(())
    })
}

impl Group {
    fn height(&self) -> i32 {
        LINE * self.marks.len() as i32 + BETWEEN
    }
}

fn draw_axis(pen: &Pen, scale: &Scale, bottom: i32, axis: &str) -> Result<()> {
    for tick in ticks(scale.low, scale.high, ((scale.right - scale.left) / TICK).max(1.0)) {
        let x = scale.x(tick);
        pen.line((x, 6), (x, bottom), if tick == 0.0 { Ink::Axis } else { Ink::Grid }, 1)?;
        pen.text(&number(tick), (x, bottom + 13), Ink::Faint, HPos::Center)?;
    }
    let middle = ((scale.left + scale.right) / 2.0) as i32;
    pen.text(axis, (middle, bottom + 32), Ink::Faint, HPos::Center)
}

/// A group whose first line begins at `y`.
fn draw_group(pen: &Pen, group: &Group, scale: &Scale, y: i32, width: u32) -> Result<()> {
    let end = width as i32 - EDGE;
    if group.is_sum {
        pen.line((EDGE, y - BETWEEN / 2), (end, y - BETWEEN / 2), Ink::Axis, 1)?;
    }
    let name = fitted(&group.name, scale.left - 16.0);
    pen.text(&name, (EDGE, y + LINE * group.marks.len() as i32 / 2), Ink::Text, HPos::Left)?;
    for (mark, line) in group.marks.iter().zip(0..) {
        let middle = y + LINE * line + LINE / 2;
        if let Some((low, high)) = mark.ends {
            pen.line((scale.x(low), middle), (scale.x(high), middle), mark.ink, 2)?;
        }
        pen.dot((scale.x(mark.value), middle), if group.is_sum { 6 } else { 4 }, mark.ink)?;
        if width >= ROOMY {
            pen.text(&mark.text, (end, middle), mark.ink, HPos::Right)?;
        }
    }
    Ok(())
}

/// From values to pixels.
struct Scale {
    low: f64,
    high: f64,
    left: f64,
    right: f64,
}

impl Scale {
    /// All of `marks` and zero, with some room on both sides.
    fn of<'a>(marks: impl Iterator<Item = &'a Mark>, left: f64, right: f64) -> Scale {
        let ends = marks.map(|mark| mark.ends.unwrap_or((mark.value, mark.value)));
        let (low, high) = ends.fold((0f64, 0f64), |(low, high), (from, to)| (low.min(from), high.max(to)));
        let room = (0.04 * (high - low)).max(0.05);
        Scale { low: low - room, high: high + room, left, right }
    }

    fn x(&self, value: f64) -> i32 {
        let part = (value - self.low) / (self.high - self.low);
        (self.left + part * (self.right - self.left)).round() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::is_well_formed;

    fn mark(value: f64, ends: Option<(f64, f64)>) -> Mark {
        Mark { value, ends, text: "words".to_owned(), ink: Ink::Series(1) }
    }

    fn groups() -> Vec<Group> {
        vec![
            Group {
                name: "ARC & <co>".to_owned(),
                is_sum: false,
                marks: vec![mark(1.0, Some((-1.0, 3.0))), mark(-2.0, None)],
            },
            Group { name: "Average".to_owned(), is_sum: true, marks: vec![mark(0.5, Some((0.25, 0.75)))] },
        ]
    }

    /// The numbers of an attribute of every tag that has it.
    fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
        let start = format!(" {attribute}=\"");
        svg.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn values_stand_in_order_and_inside() {
        for width in [340, 720] {
            let svg = forest(&groups(), "points", "t", width).unwrap();
            assert!(is_well_formed(&svg), "{svg}");
            let x = numbers(&svg, "cx");
            assert!(x.len() == 3 && x[1] < x[2] && x[2] < x[0], "-2 < 0.5 < 1: {x:?}");
            assert!(x.iter().all(|&x| x > 0.0 && x < f64::from(width)));
            assert_eq!(svg.contains("words"), width == 720, "words where there is room");
            assert!(svg.contains("ARC &amp; &lt;co&gt;"), "{svg}");
        }
    }

    #[test]
    fn nothing_but_zeros_is_drawn_too() {
        let same = [Group { name: "x".to_owned(), is_sum: false, marks: vec![mark(0.0, Some((0.0, 0.0)))] }];
        let svg = forest(&same, "points", "t", 400).unwrap();
        assert!(is_well_formed(&svg) && !svg.contains("NaN"), "{svg}");
    }
}
