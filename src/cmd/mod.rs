//! The commands, one a file with its flags. Here: what they share, and how they end.
//!
//! Exit codes are an interface: 0 done, 1 a check found a difference, 2 the program could not do its work (every error,
//! wrong usage too), 3 not enough evidence. A reader that closes the pipe early is no error.

mod baseline;
mod compare;
mod dialogues;
mod dry_run;
mod eval;
mod export;
mod fetch;
mod finetune;
mod flips;
mod gate;
mod import;
mod measure;
mod merge;
mod output;
mod plan_eval;
mod prompts;
mod published;
mod quantize;
mod recipe;
mod report;
mod runs;
mod samples;
mod show;
mod suggest;
mod tasks;
mod upcycle;
mod verify;
mod verify_claim;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::project::Project;
use crate::store::Store;

/// Fine-tunes Mixtral with QLoRA, scores models on the six tasks of the Open LLM Leaderboard exactly as it did, and says
/// whether it helped.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// The project file that names models, data and defaults [default: fireval.toml of the working folder, if there].
    #[arg(long, global = true, value_name = "FILE")]
    project: Option<PathBuf>,
    /// Where runs are kept [default: results beside the project file].
    #[arg(long, global = true, value_name = "DIR")]
    results: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Eval(eval::Args),
    Compare(compare::Args),
    Export(export::Args),
    Report(report::Args),
    Flips(flips::Args),
    Import(import::Args),
    Samples(samples::Args),
    Gate(Box<gate::Args>),
    Baseline(baseline::Args),
    PlanEval(plan_eval::Args),
    Finetune(finetune::Args),
    Recipe(recipe::Args),
    Dialogues(dialogues::Args),
    Upcycle(upcycle::Args),
    Merge(merge::Args),
    Quantize(quantize::Args),
    Fetch(fetch::Args),
    Tasks(tasks::Args),
    Show(show::Args),
    Prompts(prompts::Args),
    Runs(runs::Args),
    Published(published::Args),
    VerifyClaim(verify_claim::Args),
}

/// How a command that did its work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    /// A check found a difference.
    Differs,
    /// A gate found no sign of a difference and no proof of the contrary.
    NotEnough,
}

impl Exit {
    /// The program's exit code; 2 is every error's.
    fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Differs => 1,
            Exit::NotEnough => 3,
        }
    }
}

/// What every command works in.
struct Workplace {
    project: Project,
    /// As `--project` named it.
    project_file: Option<PathBuf>,
    store: Store,
}

impl Workplace {
    /// The options of a command that is to find the project and `store`.
    fn options(&self, store: &Store) -> Vec<String> {
        let elsewhere = Some(store.root()).filter(|root| *root != self.project.results());
        let options = [("--project", self.project_file.as_deref()), ("--results", elsewhere)];
        let typed = options.map(|(option, path)| Some([option.to_owned(), path?.display().to_string()]));
        typed.into_iter().flatten().flatten().collect()
    }
}

/// Runs the command line; the error, if there is one, has been printed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no error; a closed pipe is none either.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<Exit> {
    let project = Project::open(cli.project.as_deref())?;
    let results = cli.results.unwrap_or_else(|| project.results());
    let place = Workplace { store: Store::new(&results), project, project_file: cli.project };
    match cli.command {
        Command::Eval(args) => eval::run(&place, args),
        Command::Compare(args) => compare::run(&place, args),
        Command::Export(args) => export::run(&place, args),
        Command::Report(args) => report::run(&place, args),
        Command::Flips(args) => flips::run(&place, args),
        Command::Import(args) => import::run(&place, args),
        Command::Samples(args) => samples::run(&place, args),
        Command::Gate(args) => gate::run(&place, *args),
        Command::Baseline(args) => baseline::run(&place, args),
        Command::PlanEval(args) => plan_eval::run(&place, args),
        Command::Finetune(args) => finetune::run(&place, args),
        Command::Recipe(args) => recipe::run(&place, args),
        Command::Dialogues(args) => dialogues::run(&place, args),
        Command::Upcycle(args) => upcycle::run(&place, args),
        Command::Merge(args) => merge::run(&place, args),
        Command::Quantize(args) => quantize::run(&place, args),
        Command::Fetch(args) => fetch::run(args),
        Command::Tasks(args) => tasks::run(&place, args),
        Command::Show(args) => show::run(&place, args),
        Command::Prompts(args) => prompts::run(&place, args),
        Command::Runs(args) => runs::run(&place, args),
        Command::Published(args) => published::run(args),
        Command::VerifyClaim(args) => verify_claim::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }
}
