//! Where a verdict goes: standard output or a file, and, on GitHub, the job's summary and its log.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::super::output;
use crate::gate::Verdict;
use crate::report::verdict::{self, Page};
use crate::report::{github, junit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GateFormat {
    Text,
    Json,
    /// XML that CI shows as test results.
    Junit,
}

/// All outputs, each known to be writable.
pub struct Outputs {
    format: GateFormat,
    file: Option<PathBuf>,
    /// `$GITHUB_STEP_SUMMARY`, opened to append.
    summary: Option<(PathBuf, File)>,
    /// Whether GitHub's runner reads what is printed.
    commands: bool,
}

impl Outputs {
    /// Fails where something can't be written later, before hours of work go into what it is to hold.
    pub fn prepare(format: Option<GateFormat>, file: Option<PathBuf>) -> Result<Outputs> {
        output::check_writable(file.as_deref())?;
        let summary = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()).map(PathBuf::from);
        let summary = summary.map(|path| {
            let file = OpenOptions::new().append(true).create(true).open(&path);
            let file = file.with_context(|| format!("can't write $GITHUB_STEP_SUMMARY, {}", path.display()))?;
            Ok::<_, anyhow::Error>((path, file))
        });
        let commands = std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
        let format = format.unwrap_or_else(|| by_ending(file.as_deref()));
        Ok(Outputs { format, file, summary: summary.transpose()?, commands })
    }

    /// Writes all of them. A reader that went away changes no verdict.
    pub fn deliver(mut self, verdict: &Verdict, page: &Page) -> Result<()> {
        let text = match self.format {
            GateFormat::Text => page.text(),
            GateFormat::Json => verdict::json(verdict),
            GateFormat::Junit => junit::print(page),
        };
        if self.file.is_some() {
            output::deliver(&text, self.file.as_deref())?;
        }
        if let Some((path, file)) = &mut self.summary {
            let written = file.write_all(github::summary(page).as_bytes());
            written.with_context(|| format!("can't write {}", path.display()))?;
        }
        if self.commands {
            // The runner reads standard error too; so what a program reads from standard output stays whole.
            let _ = std::io::stderr().write_all(github::commands(page).as_bytes());
        }
        let shown = if self.file.is_some() { page.text() } else { text };
        match output::print(&shown) {
            Err(error) if output::is_broken_pipe(&error) => Ok(()),
            printed => printed,
        }
    }
}

fn by_ending(file: Option<&Path>) -> GateFormat {
    match file.and_then(|file| file.extension()).and_then(|ending| ending.to_str()) {
        Some("json") => GateFormat::Json,
        Some("xml") => GateFormat::Junit,
        _ => GateFormat::Text,
    }
}
