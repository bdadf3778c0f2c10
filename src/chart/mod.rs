//! Charts [plotters], as SVG without a font, a size or a colour of its own: every colour stands for a role ([`Ink`]), so that
//! a page can give each role another colour in the dark ([`Ink::dark`]); on its own a chart is drawn for white paper.
//!
//! A chart is drawn for a width in pixels, since its letters shrink with it otherwise: a page that is read on phones holds it
//! twice.

pub mod forest;
pub mod lines;
pub mod scatter;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// What a colour is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// What everything is drawn on.
    Paper,
    Text,
    /// Numbers beside an axis.
    Faint,
    Grid,
    Axis,
    /// What is only there to be compared with.
    Grey,
    /// The things that are told apart; after the last comes the first again. Okabe and Ito's colours, which readers who
    /// see red and green alike tell apart too.
    Series(usize),
}

const SERIES: [(RGBColor, &str); 6] = [
    (RGBColor(0x00, 0x72, 0xB2), "#62B0E8"),
    (RGBColor(0xC0, 0x50, 0x20), "#F0915C"),
    (RGBColor(0x00, 0x8A, 0x66), "#4CC9A4"),
    (RGBColor(0xA8, 0x50, 0x8C), "#DF9AC6"),
    (RGBColor(0x9A, 0x6F, 0x00), "#E3BB4C"),
    (RGBColor(0x4A, 0x5F, 0xC8), "#9DABF5"),
];

impl Ink {
    /// Every ink, each of its own colour.
    pub fn all() -> Vec<Ink> {
        let series = (0..SERIES.len()).map(Ink::Series);
        [Ink::Paper, Ink::Text, Ink::Faint, Ink::Grid, Ink::Axis, Ink::Grey].into_iter().chain(series).collect()
    }

    /// Which of the colours a series has.
    pub fn series(index: usize) -> usize {
        index % SERIES.len()
    }

    fn colour(self) -> RGBColor {
        match self {
            Ink::Paper => WHITE,
            Ink::Text => RGBColor(0x26, 0x2B, 0x33),
            Ink::Faint => RGBColor(0x59, 0x63, 0x70),
            Ink::Grid => RGBColor(0xE2, 0xE6, 0xEA),
            Ink::Axis => RGBColor(0x8A, 0x94, 0xA0),
            Ink::Grey => RGBColor(0x98, 0xA1, 0xAB),
            Ink::Series(index) => SERIES[index % SERIES.len()].0,
        }
    }

    /// As the chart spells it.
    pub fn light(self) -> String {
        let RGBColor(red, green, blue) = self.colour();
        format!("#{red:02X}{green:02X}{blue:02X}")
    }

    /// On dark paper.
    pub fn dark(self) -> &'static str {
        match self {
            Ink::Paper => "#181C21",
            Ink::Text => "#E6E9ED",
            Ink::Faint => "#A3ADB8",
            Ink::Grid => "#2C333B",
            Ink::Axis => "#6B7682",
            Ink::Grey => "#6F7985",
            Ink::Series(index) => SERIES[index % SERIES.len()].1,
        }
    }
}

type Paper<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Letters in pixels.
const LETTERS: f64 = 12.0;
/// What plotters divides by on the way to the SVG's `font-size`.
const PLOTTERS: f64 = 1.24;
/// How wide a letter of a sans-serif font is, of its height; an estimate that errs upwards.
const LETTER_WIDTH: f64 = 0.58;

/// Draws on a paper, in pixels from its upper left corner.
struct Pen<'a, 'b> {
    paper: &'a Paper<'b>,
}

impl Pen<'_, '_> {
    fn line(&self, from: (i32, i32), to: (i32, i32), ink: Ink, wide: u32) -> Result<()> {
        self.paper.draw(&PathElement::new(vec![from, to], ink.colour().stroke_width(wide))).map_err(broken)
    }

    fn dot(&self, at: (i32, i32), radius: i32, ink: Ink) -> Result<()> {
        self.paper.draw(&Circle::new(at, radius, ink.colour().filled())).map_err(broken)
    }

    /// `text` with its `side` at a place, in the middle of its height.
    fn text(&self, text: &str, at: (i32, i32), ink: Ink, side: HPos) -> Result<()> {
        self.paper.draw(&Text::new(text, at, letters(ink, side))).map_err(broken)
    }
}

/// An SVG of `size` that `draw` fills; `title` is what it shows, for whoever does not see it.
fn svg(size: (u32, u32), title: &str, draw: impl FnOnce(&Pen) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let paper = SVGBackend::with_string(&mut text, size).into_drawing_area();
        paper.fill(&Ink::Paper.colour()).map_err(broken)?;
        draw(&Pen { paper: &paper })?;
        paper.present().map_err(broken)?;
    }
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replacen('>', &format!(" role=\"img\">\n<title>{title}</title>"), 1))
}

/// An error of a drawing into memory, which plotters can't have and its types allow.
fn broken(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("can't draw a chart: {error}")
}

fn letters<'a>(ink: Ink, from: HPos) -> TextStyle<'a> {
    let font = ("sans-serif", LETTERS * PLOTTERS).into_font();
    TextStyle { font, color: ink.colour().to_backend_color(), pos: Pos::new(from, VPos::Center) }
}

/// About how wide `text` will be, in pixels.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * LETTERS * LETTER_WIDTH
}

/// `text`, cut so that it takes at most `width` pixels.
fn fitted(text: &str, width: f64) -> String {
    let fits = (width / (LETTERS * LETTER_WIDTH)).floor() as usize;
    if text.chars().count() <= fits {
        return text.to_owned();
    }
    let kept: String = text.chars().take(fits.saturating_sub(1)).collect();
    kept + "…"
}

/// About so many round numbers from `low` to `high`.
fn ticks(low: f64, high: f64, about: f64) -> Vec<f64> {
    let rough = (high - low) / about;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// With as few places as it needs.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.replace('-', "−") }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const XML_ENTITIES: [&str; 5] = ["amp", "lt", "gt", "quot", "apos"];

    /// Whether every tag is closed in turn and every attribute quoted, and nothing stands raw that XML reserves; for tests
    /// of drawings.
    pub fn is_well_formed(text: &str) -> bool {
        let mut open = Vec::new();
        for part in text.split('<').skip(1) {
            let Some((tag, content)) = part.split_once('>') else { return false };
            let quotes = tag.matches('"').count();
            let assigned = tag.matches('=').count();
            let is_entity = |rest: &str| rest.split_once(';').is_some_and(|(name, _)| XML_ENTITIES.contains(&name));
            if content.contains('>')
                || !content.split('&').skip(1).all(is_entity)
                || (!tag.starts_with('/') && quotes != 2 * assigned)
            {
                return false;
            }
            match (tag.strip_prefix('/'), tag.ends_with('/')) {
                (Some(name), _) if open.pop() != Some(name) => return false,
                (Some(_), _) | (None, true) => {}
                (None, false) => open.push(tag.split_whitespace().next().unwrap_or_default()),
            }
        }
        open.is_empty()
    }

    #[test]
    fn ticks_are_round() {
        let labels = |low, high| ticks(low, high, 5.0).into_iter().map(number).collect::<Vec<String>>();
        assert_eq!(labels(0.0, 24.0), ["0", "5", "10", "15", "20"]);
        assert_eq!(labels(0.0, 3000.0), ["0", "1000", "2000", "3000"]);
        assert_eq!(labels(1.52, 2.31), ["1.6", "1.8", "2", "2.2"]);
        assert_eq!(labels(-2.5, 1.0), ["−2", "−1", "0", "1"]);
        assert_eq!(number(0.0005), "0.0005");
    }

    #[test]
    fn every_ink_has_a_colour_of_its_own_on_both_papers() {
        let distinct = |colours: Vec<String>| colours.into_iter().collect::<std::collections::BTreeSet<_>>().len();
        let inks = Ink::all();
        assert_eq!(distinct(inks.iter().map(|ink| ink.light()).collect()), inks.len());
        assert_eq!(distinct(inks.iter().map(|ink| ink.dark().to_owned()).collect()), inks.len());
        assert_eq!(Ink::Series(0).light(), Ink::Series(SERIES.len()).light());
    }

    #[test]
    fn text_is_cut_to_its_place_and_can_t_become_a_tag() {
        assert_eq!((fitted("short", 60.0).as_str(), fitted("long name", 36.0).as_str()), ("short", "long…"));
        let drawn = svg((100, 40), "a<b>&c", |pen| pen.text("<script>", (5, 5), Ink::Text, HPos::Left)).unwrap();
        assert!(is_well_formed(&drawn) && !is_well_formed(&drawn.replace("</svg>", "")), "{drawn}");
        assert!(drawn.contains("<title>a&lt;b&gt;&amp;c</title>") && drawn.contains("&lt;script&gt;"), "{drawn}");
    }
}
