//! `fireval published`: the old leaderboard's rows, and whether they hold together.

use std::path::PathBuf;

use anyhow::Result;

use super::{Exit, output};
use crate::published::averages::{self, Averages};
use crate::published::{Published, rows_of, size};
use crate::report::one_line;

/// Check the old leaderboard's rows.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    Check(CheckArgs),
}

/// Say whether each average is what its six scores make it, and whether scores are counts of right answers.
///
/// The leaderboard averaged unrounded scores, so an average may be another hundredth than the mean of the six rounded ones,
/// but never more than 0.01 away from it. Exit code 1 if one is, or if a score of ARC, HellaSwag, Winogrande or GSM8K is no
/// count of right answers; these rows are listed.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// A CSV file with the columns model, precision, average, arc, hellaswag, mmlu, truthfulqa, winogrande and gsm8k, and any
    /// others [default: the rows that are built in].
    file: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Exit> {
    let Action::Check(CheckArgs { file }) = args.action;
    let (place, rows) = rows_of(file.as_deref())?;
    let found = averages::check(&rows);
    output::print(&text(&place, rows.len(), &found))?;
    let holds = found.rest.is_empty() && found.impossible.is_empty();
    Ok(if holds { Exit::Done } else { Exit::Differs })
}

fn text(place: &str, rows: usize, found: &Averages) -> String {
    let Averages { equal, explained, rest, furthest, impossible } = found;
    let mut text = format!(
        "{rows} rows of {place}\n\
         {equal:>6} averages are the mean of their six rounded scores, rounded\n\
         {explained:>6} are another hundredth, within what the rounding of the scores can explain\n\
         {:>6} are neither\n\
         The furthest is {furthest:.4} from the mean of its scores; rounding explains 0.01.\n\
         {:>6} scores of ARC, HellaSwag, Winogrande and GSM8K are no count of right answers\n",
        rest.len(),
        impossible.len()
    );
    let named = |row: &Published| format!("line {}: {} ({})", row.line, one_line(&row.model), row.precision.name());
    for row in rest {
        text.push_str(&format!(
            "{}: average {:.2}, the mean of its scores is {:.4}\n",
            named(row),
            row.average,
            averages::mean(row)
        ));
    }
    for (row, task) in impossible {
        text.push_str(&format!(
            "{}: {task} {:.2} is no count of {} documents\n",
            named(row),
            row.score(task).unwrap_or_default(),
            size(task).map_or(0, |size| size.documents)
        ));
    }
    text
}
