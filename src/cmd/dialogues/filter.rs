//! `fireval dialogues filter IN... --output OUT`: the good dialogues of a large collection, by stated rules.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Print;
use crate::cmd::measure::load_task;
use crate::cmd::{Exit, Workplace, output};
use crate::dialogue::check::percent;
use crate::dialogue::contamination::{Benchmarks, Builder, Document, Named};
use crate::dialogue::filter::{Removed, Report, Rule, Rules, Sink, filter};
use crate::dialogue::refusal::Phrases;
use crate::disk;
use crate::language::Language;
use crate::progress::Progress;
use crate::report::terminal::grid;
use crate::task::{self, DataSource};

/// Choose dialogues by stated rules: length, language, refusals, repetition, contamination with the benchmarks,
/// duplicates. The first rule that speaks removes a dialogue.
#[derive(clap::Args)]
pub struct Args {
    /// Files of dialogues (.jsonl, .json, .parquet), which may be larger than memory.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the rows that stay are written, as they were, a line each.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Write a line for each row that goes: file, line, rule, why.
    #[arg(long, value_name = "FILE")]
    removed: Option<PathBuf>,
    /// Switch these rules off, with commas between.
    #[arg(long, value_name = "RULE,RULE", value_delimiter = ',')]
    without: Vec<Switch>,
    /// length: fewest words of a dialogue.
    #[arg(long, value_name = "N", default_value_t = 20)]
    min_words: usize,
    /// length: most words of a dialogue.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_words: usize,
    /// language: the one to keep, as a code of three letters.
    #[arg(long, value_name = "CODE", default_value = "eng")]
    language: Language,
    /// refusals: a file with a phrase a line instead of the built-in list.
    #[arg(long, value_name = "FILE")]
    phrases: Option<PathBuf>,
    /// repetition: the largest share of an answer's runs of five words that it may have had before.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = share)]
    repetition: f64,
    /// duplicates: from what MinHash similarity on two dialogues are the same.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share)]
    similarity: f64,
    /// contamination: where the benchmarks' rows come from: hub, bundled (a small slice) or a folder [default: hub].
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// contamination: the benchmarks, with commas between [default: the leaderboard's six].
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    tasks: Option<Vec<String>>,
    #[arg(long, default_value = "table")]
    format: Print,
}

/// A rule that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    Length,
    Language,
    Refusals,
    Repetition,
    Contamination,
    Duplicates,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a share from 0 to 1")?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share from 0 to 1".to_owned()) }
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let ending = args.output.extension().and_then(|ending| ending.to_str());
    ensure!(ending == Some("jsonl"), "--output {}: dialogues are written to a .jsonl file", args.output.display());
    let (least, most) = (args.min_words, args.max_words);
    ensure!(least <= most, "--min-words {least} is above --max-words {most}: no dialogue would stay");
    refuse_overwriting(&args)?;
    output::check_writable(Some(&args.output))?;
    output::check_writable(args.removed.as_deref())?;
    let rules = rules(place, &args)?;
    let progress = Progress::new("filter", "B");
    for file in &args.files {
        progress.add_total(std::fs::metadata(file).map_or(0, |metadata| metadata.len()));
    }
    let report = replace(&args, &rules, &progress)?;
    progress.finish();
    let text = match args.format {
        Print::Table => table(&report),
        Print::Json => super::json(&as_json(&report))?,
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

/// An error if a file would be written over one that is read, or over the other that is written.
fn refuse_overwriting(args: &Args) -> Result<()> {
    let mut taken = Vec::new();
    for file in args.files.iter().chain(&args.phrases) {
        taken.push((found_at(file)?, "one of the files that are read"));
    }
    for (flag, file) in [("--output", Some(&args.output)), ("--removed", args.removed.as_ref())] {
        let Some(file) = file else { continue };
        let found = found_at(file)?;
        if let Some((_, what)) = taken.iter().find(|(place, _)| *place == found) {
            bail!("{flag} {} is {what}: write to another file", file.display());
        }
        taken.push((found, "what --output writes"));
    }
    Ok(())
}

/// The one path of a file, which need not be there yet, nor its folders.
fn found_at(file: &Path) -> Result<PathBuf> {
    let mut found = PathBuf::new();
    for part in std::path::absolute(disk::target(file)?)?.components() {
        match part {
            Component::ParentDir => {
                found.pop();
            }
            part => found.push(part),
        }
        // A link is followed before `..` leads out of where it leads to.
        found = found.canonicalize().unwrap_or(found);
    }
    Ok(found)
}

fn rules(place: &Workplace, args: &Args) -> Result<Rules> {
    let on = |rule: Switch| !args.without.contains(&rule);
    let words: RangeInclusive<usize> = args.min_words..=args.max_words;
    let phrases = || args.phrases.as_deref().map_or_else(|| Ok(Phrases::default()), Phrases::read);
    Ok(Rules {
        length: on(Switch::Length).then_some(words),
        language: on(Switch::Language).then_some(args.language),
        refusals: on(Switch::Refusals).then(phrases).transpose()?,
        repetition: on(Switch::Repetition).then_some(args.repetition),
        contamination: on(Switch::Contamination).then(|| benchmarks(place, args)).transpose()?,
        duplicates: on(Switch::Duplicates).then_some(args.similarity),
    })
}

fn benchmarks(place: &Workplace, args: &Args) -> Result<Benchmarks> {
    let asked = args.data.as_deref().map(DataSource::parse);
    let data = asked.or_else(|| place.project.data.clone()).unwrap_or(DataSource::Hub);
    let names = args.tasks.clone().map_or_else(|| Ok(task::suite("openllm")?.tasks), Ok::<_, anyhow::Error>)?;
    let mut builder = Builder::default();
    for name in names {
        let task = load_task(place, name.trim())?;
        let texts = task.texts(&data).context("the benchmarks' documents (or switch off: --without contamination)")?;
        for text in texts {
            let own = text.subtask == task.name() || task.name().ends_with(&format!("/{}", text.subtask));
            let task = if own { task.name().to_owned() } else { format!("{}/{}", task.name(), text.subtask) };
            let name = Named { task, row: text.row };
            builder.add(Document { name, questions: &text.questions, answers: &text.answers });
        }
    }
    Ok(builder.finish())
}

/// Judges all rows; both files are replaced after that, or none. A file that can't be read is no failure to write.
fn replace(args: &Args, rules: &Rules, progress: &Progress) -> Result<Report> {
    let mut judged = None;
    let mut judge = |kept: &Path, removed: Option<&Path>| {
        let report = judged.insert(write(args, rules, kept, removed, progress));
        ensure!(report.is_ok(), "not all rows were judged");
        Ok(())
    };
    let replaced = disk::replace_with(&args.output, |kept| match &args.removed {
        None => judge(kept, None),
        Some(removed) => disk::replace_with(removed, |removed| judge(kept, Some(removed))),
    });
    let report = judged.transpose()?;
    replaced?;
    report.context("a file that was replaced has a report")
}

/// Writes the rows that stay to `kept`, and those that go to `removed`.
fn write(args: &Args, rules: &Rules, kept: &Path, removed: Option<&Path>, progress: &Progress) -> Result<Report> {
    let create = |path: &Path| -> Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(path).with_context(|| format!("can't write {}", path.display()))?))
    };
    let mut files = Files { kept: create(kept)?, removed: removed.map(create).transpose()? };
    let report = filter(&args.files, rules, &mut files, progress)?;
    files.kept.flush().context("can't write the rows that stay")?;
    if let Some(removed) = &mut files.removed {
        removed.flush().context("can't write the rows that go")?;
    }
    Ok(report)
}

struct Files {
    kept: BufWriter<File>,
    removed: Option<BufWriter<File>>,
}

impl Sink for Files {
    fn keep(&mut self, row: &[u8]) -> Result<()> {
        self.kept.write_all(row).and_then(|()| self.kept.write_all(b"\n")).context("can't write the rows that stay")
    }

    fn remove(&mut self, removed: &Removed) -> Result<()> {
        let Some(file) = &mut self.removed else { return Ok(()) };
        let Removed { file: from, line, rule, why } = removed;
        let row = json!({"file": from, "line": line, "rule": rule, "why": why});
        writeln!(file, "{row}").context("can't write the rows that go")
    }
}

/// Contaminated dialogues that the table lists.
const LISTED: usize = 20;

fn table(report: &Report) -> String {
    let mut rows = vec![["rule", "what goes", "rows", "share", "the first"].map(str::to_owned).to_vec()];
    let share = |count: usize| percent(count as f64 / report.rows.max(1) as f64);
    for (rule, setting) in &report.settings {
        let removed = report.removed(*rule);
        let first = report.first.get(rule).and_then(|first| first.first());
        let first = first.map(|(place, why)| format!("{place}: {}", shortened(why))).unwrap_or_default();
        rows.push(vec![rule.name().to_owned(), setting.clone(), removed.to_string(), share(removed), first]);
    }
    let width = output::terminal_width();
    let kept =
        format!("{} of {} rows stay ({}), {} words\n", report.kept, report.rows, share(report.kept), report.words);
    let mut text = format!("{}\n{kept}", grid(rows, 2, width));
    if !report.contaminated.is_empty() {
        text.push_str("\ndialogues with a benchmark's document:\n");
    }
    for found in report.contaminated.iter().take(LISTED) {
        let Named { task, row } = &found.document;
        let (place, runs, shared) = (&found.place, found.runs, shortened(&found.text));
        text.push_str(&format!("  {place}: {task} document {row}, {runs} runs of words: \"{shared}\"\n"));
    }
    let more = report.contaminated.len().saturating_sub(LISTED);
    text + &if more > 0 { format!("  and {more} more (--format json, --removed FILE)\n") } else { String::new() }
}

/// At most 80 characters, on one line.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn as_json(report: &Report) -> Value {
    let rule = |(rule, setting): &(Rule, String)| {
        let first = report.first.get(rule).map(Vec::as_slice).unwrap_or_default();
        let first: Vec<Value> = first.iter().map(|(place, why)| json!({"place": place, "why": why})).collect();
        json!({"rule": rule.name(), "what": setting, "rows": report.removed(*rule), "first": first})
    };
    let contaminated: Vec<Value> = report
        .contaminated
        .iter()
        .map(|found| {
            let Named { task, row } = &found.document;
            json!({"place": found.place, "task": task, "document": row, "runs": found.runs, "text": found.text})
        })
        .collect();
    json!({
        "files": report.files,
        "rows": report.rows,
        "kept": report.kept,
        "words": report.words,
        "rules": report.settings.iter().map(rule).collect::<Vec<_>>(),
        "contaminated": contaminated,
    })
}
