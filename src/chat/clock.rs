//! `strftime_now` for templates that tell the model the date. In UTC, with the directives templates use; any other is an
//! error rather than a wrong date. Days to a calendar date: Howard Hinnant, "chrono-Compatible Low-Level Date
//! Algorithms", `civil_from_days`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Seconds since 1970 began (a clock set before it reads 0).
pub fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// `format` with Python's directives filled in for that second of UTC.
pub fn strftime(format: &str, seconds: u64) -> Result<String> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(month_name),
            Some('b') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(day_name),
            Some('a') => text.push_str(&day_name[..3]),
            Some('H') => text.push_str(&format!("{hour:02}")),
            Some('I') => text.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('M') => text.push_str(&format!("{minute:02}")),
            Some('S') => text.push_str(&format!("{:02}", seconds % 60)),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => text.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => text.push_str(&format!("{hour:02}:{minute:02}:{:02}", seconds % 60)),
            Some('%') => text.push('%'),
            Some(other) => bail!("strftime_now: unknown directive `%{other}` in `{format}`"),
            None => bail!("strftime_now: `{format}` ends in a lone `%`"),
        }
    }
    Ok(text)
}

/// Year, month and day of the month, both from 1, of a day counted from 1 January 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 1 March of the year 0
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%Y-%m-%d %A", 0).unwrap(), "1970-01-01 Thursday");
        // `date -u -d @951782400` and `@1721952000`
        assert_eq!(strftime("%d %b %Y", 951_782_400).unwrap(), "29 Feb 2000");
        assert_eq!(strftime("%d %B %y, %a %T", 1_721_952_000 + 45_296).unwrap(), "26 July 24, Fri 12:34:56");
        assert_eq!(strftime("%F %I %p 100%%", 1_704_067_199).unwrap(), "2023-12-31 11 PM 100%");
    }

    #[test]
    fn an_unknown_directive_is_named() {
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("`%Q`"));
        assert!(strftime("50%", 0).unwrap_err().to_string().contains("lone `%`"));
    }
}
