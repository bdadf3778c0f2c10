//! A number as it is printed in a cell: what it says, and what its last digit leaves open.

use std::fmt;

/// A score or an average in percent.
#[derive(Clone, Debug, PartialEq)]
pub struct Printed {
    pub percent: f64,
    /// Half of the last printed digit: the unrounded number is no further away.
    pub half: f64,
    /// As it is written.
    text: String,
}

/// What stands in a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// No digit: a dash, nothing, "n/a".
    Empty,
    Number(Printed),
    /// Digits, but not one number that could be a score.
    Unclear,
}

/// Reads `68.42`, `68.42%`, `**68.42**`'s text, `68,42`, `68.42 ±0.5`, `68.42 (+1.2)`, `0.6842`.
pub fn read(cell: &str) -> Cell {
    let Some(start) = cell.find(|c: char| c.is_ascii_digit()) else { return Cell::Empty };
    let (before, number) = cell.split_at(start);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(number.len());
    let (number, after) = number.split_at(end);
    let text = number.trim_end_matches(['.', ',']);
    let after = after.trim_start().trim_start_matches('%').trim_start();
    let told_apart = after.starts_with(['±', '+', '(', '[']) || !after.contains(|c: char| c.is_ascii_digit());
    let alone = told_apart && !before.contains(char::is_alphabetic) && !after.starts_with(char::is_alphabetic);
    match decimal(text) {
        Some((percent, half)) if alone && !before.ends_with(['-', '−']) => {
            Cell::Number(Printed { percent, half, text: text.to_owned() })
        }
        Some(_) | None => Cell::Unclear,
    }
}

/// The value of `68.42` or `68,42` and half of its last digit.
fn decimal(text: &str) -> Option<(f64, f64)> {
    let point = text.replacen(',', ".", 1);
    let decimals = point.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let value = point.parse::<f64>().ok().filter(|value| *value <= 100.0)?;
    Some((value, 0.5 * 10f64.powi(-(decimals as i32))))
}

impl Printed {
    /// The same as a percentage, where it is written as a fraction.
    pub fn of_fraction(self) -> Printed {
        Printed { percent: self.percent * 100.0, half: self.half * 100.0, ..self }
    }

    /// Whether it is another spelling of `percent`, which is known up to `half`.
    pub fn is(&self, percent: f64, half: f64) -> bool {
        (self.percent - percent).abs() <= self.half.max(half) + 1e-9
    }

    /// Whether it may be the mean of `parts` before these were rounded.
    pub fn is_mean(&self, parts: &[&Printed]) -> bool {
        let open = parts.iter().map(|part| part.half).sum::<f64>() / parts.len() as f64;
        (self.percent - mean(parts)).abs() <= self.half + open + 1e-9
    }
}

/// In percent.
pub fn mean(parts: &[&Printed]) -> f64 {
    parts.iter().map(|part| part.percent).sum::<f64>() / parts.len() as f64
}

impl fmt::Display for Printed {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn number(text: &str) -> Printed {
        match read(text) {
            Cell::Number(number) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn cells_hold_numbers_among_signs() {
        let cells = [
            "68.42",
            "68.42%",
            " ⬆️ 68.42 *",
            "68,42",
            "68.42 ±0.5",
            "68.42 (+1.2 ±0.3)",
            "68.42†",
            "68.42 [67, 69]",
            "68.42+1.3",
        ];
        for cell in cells {
            let found = number(cell);
            assert!((found.percent - 68.42).abs() < 1e-12 && (found.half - 0.005).abs() < 1e-12, "{cell}: {found:?}");
        }
        assert_eq!((number("70").half, number("70.").half, number("70.3").half), (0.5, 0.5, 0.05));
        for cell in ["", "-", "n/a", "—"] {
            assert_eq!(read(cell), Cell::Empty, "{cell}");
        }
        for cell in ["68.4/70.2", "7B", "v0.1", "-1.5", "1e-4", "101", "1.2.3", "68.4 → 70", "2024-01-02"] {
            assert_eq!(read(cell), Cell::Unclear, "{cell}");
        }
    }

    #[test]
    fn rounding_leaves_half_a_digit_open() {
        let fraction = number("0.6842").of_fraction();
        assert!(fraction.is(68.42, 0.005) && !fraction.is(68.43, 0.005) && fraction.to_string() == "0.6842");
        assert!(
            number("68.4").is(68.42, 0.005) && number("68.4217").is(68.42, 0.005) && !number("68.4").is(68.46, 0.005)
        );
        let parts = ["66.04", "86.49", "71.82", "46.78", "81.93", "57.47"].map(number);
        let parts: Vec<&Printed> = parts.iter().collect();
        assert!(number("68.42").is_mean(&parts) && number("68.43").is_mean(&parts) && !number("68.41").is_mean(&parts));
        assert!(number("68.4").is_mean(&parts) && !number("68.5").is_mean(&parts));
    }
}
