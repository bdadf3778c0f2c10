//! `fireval tasks`: the tasks that are built in, one's definition, and their check against reference hashes.

use anyhow::Result;

use super::measure::load_task;
use super::{Exit, Workplace, output, verify};
use crate::protocol::Protocol;
use crate::task::known_tasks;

/// List the tasks, print a task's definition, or verify prompts.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Print this task's definition: a name, or the path of a .toml file (which is checked).
    name: Option<String>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    Verify(verify::Args),
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    match (args.action, args.name) {
        (Some(Action::Verify(args)), _) => return verify::run(place, args),
        (None, Some(name)) => output::print(load_task(place, &name)?.text())?,
        (None, None) => output::print(&list(place)?)?,
    }
    Ok(Exit::Done)
}

fn list(place: &Workplace) -> Result<String> {
    let mut text = String::new();
    for name in known_tasks() {
        let task = load_task(place, &name)?;
        let metric = |protocol| task.metric(protocol).to_owned();
        let (v1, latest) = (metric(Protocol::LeaderboardV1), metric(Protocol::LmEvalLatest));
        let metrics = if v1 == latest { v1 } else { format!("{v1} (lm-eval-latest: {latest})") };
        text.push_str(&format!("{name:<14} {:<11} {:>2}-shot  {metrics}\n", task.title(), task.shots()));
    }
    Ok(text + "suite openllm: all of them\n")
}
