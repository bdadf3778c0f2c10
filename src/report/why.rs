//! Where a difference comes from, as text: shares of the average's change, and flipped documents one below the other.

use super::{Format, markdown, one_line, percent, signed, terminal};
use crate::compare::why::{Flip, Origins, Share};
use crate::eval::Run;
use crate::task::{Document, Shown};

/// Subjects shown, those with the largest shares.
const SUBTASKS: usize = 10;

/// Characters of a question or an answer that are shown; a document of many pages is not.
const LONGEST: usize = 600;

/// A flipped document.
pub struct FlipText {
    pub place: String,
    /// Fractions before and now.
    pub scores: [f64; 2],
    pub shown: Shown,
    /// What each model chose.
    pub picks: [String; 2],
}

impl FlipText {
    /// `flip` of the two runs' `document`.
    pub fn of(flip: &Flip, runs: [&Run; 2], document: &Document) -> FlipText {
        let picked = |run: &Run| document.picked(&runs[0].manifest.metric, &run.scores[flip.index]);
        FlipText {
            place: format!("{} document {}", document.subtask, document.row),
            scores: [flip.before, flip.now],
            shown: document.shown(),
            picks: runs.map(picked),
        }
    }
}

/// A table for each model: what tasks and subjects added to the average.
pub fn print(origins: &[Origins], format: Format, width: Option<usize>) -> String {
    let mut text = String::new();
    for Origins { model, change, tasks, subtasks } in origins {
        let model = words(model, format);
        text.push_str(&format!("\n{model}: {} on the average, by task\n\n", signed(*change)));
        text.push_str(&grid(tasks, *change, format, width));
        if !subtasks.is_empty() {
            let shown = subtasks.len().min(SUBTASKS);
            text.push_str(&format!(
                "\n{model}: the {shown} of {} subjects with the largest shares\n\n",
                subtasks.len()
            ));
            text.push_str(&grid(&subtasks[..shown], *change, format, width));
        }
    }
    text
}

fn grid(shares: &[Share], change: f64, format: Format, width: Option<usize>) -> String {
    let head = ["Task", "Adds", "Of the change", "Flips"].map(str::to_owned).to_vec();
    let line =
        |share: &Share| vec![one_line(&share.name), signed(share.change), part(share.change, change), flips(share)];
    let lines: Vec<Vec<String>> = [head].into_iter().chain(shares.iter().map(line)).collect();
    match format {
        Format::Markdown => markdown::grid(&lines, 1),
        Format::Table | Format::Csv | Format::Json | Format::Latex | Format::Html => {
            terminal::grid(lines, 1, width) + "\n"
        }
    }
}

/// What `share` is of `change`, in whole percent; empty where nothing changed.
pub fn part(share: f64, change: f64) -> String {
    if change == 0.0 { String::new() } else { format!("{:.0} %", share / change * 100.0) }
}

/// `+3 -2`; empty where answers are neither right nor wrong.
pub fn flips(share: &Share) -> String {
    share.flips.map(|(gained, lost)| format!("+{gained} -{lost}")).unwrap_or_default()
}

/// Flips `skip..` of `all` between two models on a task.
pub struct FlipPage<'a> {
    pub task: &'a str,
    pub models: [&'a str; 2],
    pub flips: &'a [FlipText],
    pub skip: usize,
    pub all: usize,
    /// What shows the first of them, and with `--skip` the next.
    pub command: &'a str,
}

impl FlipPage<'_> {
    /// What others wrote is text in a terminal, and in Markdown a block of code.
    pub fn print(&self, format: Format) -> String {
        let FlipPage { task, models, flips, skip, all, command } = self;
        let [first, other] = models.map(|model| words(model, format));
        let mut text =
            format!("\n{}: {all} documents scored differently by {first} and {other}\n", words(task, format));
        for (index, flip) in flips.iter().enumerate() {
            let ([before, now], place) = (flip.scores.map(percent), words(&flip.place, format));
            text.push_str(&format!("\n{}. {place}: {before} -> {now}\n", skip + index + 1));
            let body = flip.body(*models);
            text.push_str(&if format == Format::Markdown { markdown::fenced(&body) } else { body });
        }
        let end = skip + flips.len();
        if !flips.is_empty() && end < *all {
            text.push_str(&format!("\n{} more: {} --skip {end}\n", all - end, words(command, format)));
        }
        text
    }
}

impl FlipText {
    /// Question, options, the right one, and what each model chose.
    fn body(&self, models: [&str; 2]) -> String {
        let FlipText { shown, picks, .. } = self;
        let mut text = String::new();
        if !shown.question.is_empty() {
            text.push_str(&format!("{}\n", short(&shown.question)));
        }
        text.extend(shown.options.iter().map(|option| format!("  - {}\n", short(option))));
        text.push_str(&format!("  right: {}\n", short(&shown.right)));
        let picks = models.into_iter().zip(picks);
        text.extend(picks.map(|(model, pick)| format!("  {}: {}\n", one_line(model), short(pick))));
        text
    }
}

/// A name in a line of text, which it may begin.
fn words(name: &str, format: Format) -> String {
    match format {
        Format::Markdown => {
            let escaped = markdown::escape(name);
            // Else it would begin a heading, a list or a quotation.
            if escaped.starts_with(['#', '-', '+', '>', '=']) { format!("\\{escaped}") } else { escaped }
        }
        Format::Table | Format::Csv | Format::Json | Format::Latex | Format::Html => one_line(name),
    }
}

/// One line or several, without control characters that a terminal would obey, cut after [`LONGEST`] characters.
fn short(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    let kept: String = text.trim().chars().take(LONGEST).map(plain).collect();
    if text.trim().chars().count() > LONGEST { kept + " …" } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, change: f64, flips: Option<(usize, usize)>) -> Share {
        Share { name: name.to_owned(), change, flips }
    }

    #[test]
    fn shares_say_what_the_average_is_made_of() {
        let origins = Origins {
            model: "ft".to_owned(),
            change: 0.0192,
            tasks: vec![share("truthfulqa", 0.0142, None), share("hellaswag", -0.0012, Some((27, 100)))],
            subtasks: Vec::new(),
        };
        let text = print(&[origins], Format::Markdown, None);
        assert!(text.contains("ft: +1.92 on the average"), "{text}");
        assert!(text.contains("| truthfulqa | +1.42 | 74 % |  |"), "{text}");
        assert!(text.contains("| hellaswag | -0.12 | -6 % | +27 -100 |"), "{text}");
        assert!(!text.contains("subjects"), "{text}");
    }

    #[test]
    fn a_page_says_where_the_next_begins_and_hides_what_a_terminal_obeys() {
        let flip = FlipText {
            place: "t document 4".to_owned(),
            scores: [0.0, 1.0],
            shown: Shown {
                question: "Why\u{1b}[2J?".to_owned(),
                options: vec!["x".repeat(700)],
                right: "r".to_owned(),
            },
            picks: ["p".to_owned(), "q".to_owned()],
        };
        let command = "fireval flips t a b --data d";
        let page = FlipPage { task: "t", models: ["a", "b"], flips: &[flip], skip: 3, all: 9, command };
        let text = page.print(Format::Table);
        assert!(text.contains("4. t document 4: 0.00 -> 100.00"), "{text}");
        assert!(text.contains("a: p") && text.contains("b: q") && text.contains("right: r"), "{text}");
        assert!(text.contains("5 more: fireval flips t a b --data d --skip 4"), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains(&format!("{} …", "x".repeat(600))), "{text}");
        assert!(FlipPage { flips: &[], skip: 0, all: 0, ..page }.print(Format::Table).contains("0 documents"));
    }
}
