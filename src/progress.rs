//! The progress bar [indicatif]: tokens done, tokens per second, time left. Silent where standard error is no terminal.

use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};

/// A counter that can be handed to workers; clones count together.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar named `label`, counting `unit` ("tok") up to a total set later.
    pub fn new(label: &str, unit: &str) -> Progress {
        let bar = ProgressBar::new(0);
        let template = format!("{{prefix}} {{bar:30}} {{pos}}/{{len}} {unit} {{per_sec}} eta {{eta}} {{msg}}");
        bar.set_style(ProgressStyle::with_template(&template).expect("the template is a constant"));
        bar.set_prefix(label.to_owned());
        Progress(bar)
    }

    /// Counts without showing anything.
    pub fn hidden() -> Progress {
        Progress(ProgressBar::hidden())
    }

    pub fn add_total(&self, more: u64) {
        self.0.inc_length(more);
    }

    /// Replaces the total, where it was a guess.
    pub fn set_total(&self, total: u64) {
        self.0.set_length(total);
    }

    /// The total as far as it is known.
    pub fn total(&self) -> u64 {
        self.0.length().unwrap_or(0)
    }

    pub fn advance(&self, done: u64) {
        self.0.inc(done);
    }

    /// How much was counted so far.
    pub fn done(&self) -> u64 {
        self.0.position()
    }

    pub fn message(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }

    /// Prints a line above the bar. Where nobody reads it any more the work goes on.
    pub fn line(&self, text: &str) {
        let _ = self.0.suspend(|| writeln!(std::io::stderr(), "{text}"));
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
