//! Lines over steps.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Ink, broken, letters, number, svg};

pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    pub ink: Ink,
    /// Whether each point is marked.
    pub has_dots: bool,
}

const HEIGHT: u32 = 280;
/// Of the axis at the left, and of that below.
const LEFT: u32 = 48;
const BELOW: u32 = 24;

/// The drawing, `width` pixels wide; nothing where there is no line to draw. `axis` says what is counted below.
pub fn lines(lines: &[Line], axis: &str, title: &str, width: u32) -> Result<Option<String>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let last = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let (low, high) =
        points().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    if last <= 0.0 || lines.iter().all(|line| line.points.len() < 2) {
        return Ok(None);
    }
    let room = (0.05 * (high - low)).max(1e-3);
    let (low, high) = (low - room, high + room);
    let drawn = svg((width, HEIGHT), title, |pen| {
        let mut chart = ChartBuilder::on(pen.paper)
            .margin(12)
            .margin_bottom(20)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, BELOW)
            .build_cartesian_2d(0.0..last, low..high)
            .map_err(broken)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.colour())
            .axis_style(Ink::Axis.colour())
            .label_style(letters(Ink::Faint, HPos::Center))
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|x| if x.fract() == 0.0 { number(*x) } else { String::new() })
            .y_label_formatter(&|y| number(*y))
            .draw()
            .map_err(broken)?;
        for line in lines {
            let style = line.ink.colour().stroke_width(2);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style)).map_err(broken)?;
            let dots = line.points.iter().filter(|_| line.has_dots);
            let dots = dots.map(|&point| Circle::new(point, 3, line.ink.colour().filled()));
            chart.draw_series(dots).map_err(broken)?;
        }
        pen.text(axis, ((width + LEFT) as i32 / 2, HEIGHT as i32 - 9), Ink::Faint, HPos::Center)?;
        let named = lines.iter().filter(|line| !line.points.is_empty());
        for (index, line) in named.enumerate() {
            pen.text(line.name, (width as i32 - 18, 22 + 16 * index as i32), line.ink, HPos::Right)?;
        }
        Ok(())
    })?;
    Ok(Some(drawn))
}
