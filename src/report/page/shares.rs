//! What each difference is made of: tasks, and the subjects below them.

use serde::Serialize;

use super::super::{signed, why};
use crate::compare::why::{Origins, Share};

#[derive(Serialize)]
pub struct View<'a> {
    model: &'a str,
    change: String,
    tasks: Vec<Task<'a>>,
}

#[derive(Serialize)]
struct Task<'a> {
    line: Line<'a>,
    subjects: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    adds: String,
    /// In percent of the change.
    part: String,
    flips: String,
    /// A bar from the middle of a line 100 wide: where it begins, and how long it is.
    bar: (f64, f64),
    is_loss: bool,
}

pub fn views(origins: &[Origins]) -> Vec<View<'_>> {
    origins.iter().map(view).collect()
}

fn view(origins: &Origins) -> View<'_> {
    let Origins { model, change, tasks, subtasks } = origins;
    let widest = largest(tasks.iter());
    let task = |share| -> Task<'_> {
        let subjects = || subtasks.iter().filter(move |subject| belongs(subject, share));
        let widest_subject = largest(subjects());

        Task {
            line: line(share, *change, widest),
            subjects: subjects().map(|subject| line(subject, *change, widest_subject)).collect(),
        }
    };
    View { model, change: signed(*change), tasks: tasks.iter().map(task).collect() }
}

fn largest<'a>(shares: impl Iterator<Item = &'a Share>) -> f64 {
    shares.map(|share| share.change.abs()).fold(f64::MIN_POSITIVE, f64::max)
}

fn belongs(subject: &Share, task: &Share) -> bool {
    subject.name.split_once('/').is_some_and(|(name, _)| name == task.name)
}

/// A subject stands below its task, whose name it need not repeat.
fn line(share: &Share, change: f64, largest: f64) -> Line<'_> {
    let length = (50.0 * share.change.abs() / largest * 10.0).round() / 10.0;
    let is_loss = share.change < 0.0;
    Line {
        name: share.name.split_once('/').map_or(share.name.as_str(), |(_, name)| name),
        adds: signed(share.change),
        part: why::part(share.change, change),
        flips: why::flips(share),
        bar: (if is_loss { 50.0 - length } else { 50.0 }, length),
        is_loss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_stand_below_their_task_and_bars_go_both_ways() {
        let share = |name: &str, change| Share { name: name.to_owned(), change, flips: Some((2, 1)) };
        let origins = Origins {
            model: "ft".to_owned(),
            change: 0.01,
            tasks: vec![share("mmlu", 0.02), share("arc", -0.01)],
            subtasks: vec![share("mmlu/law", 0.03), share("mmlu/art", -0.01)],
        };
        let view = view(&origins);
        assert_eq!((view.change.as_str(), view.tasks.len()), ("+1.00", 2));
        assert_eq!((view.tasks[0].line.bar, view.tasks[1].line.bar), ((50.0, 50.0), (25.0, 25.0)));
        let subjects: Vec<(&str, &str)> =
            view.tasks[0].subjects.iter().map(|line| (line.name, line.adds.as_str())).collect();
        assert_eq!(subjects, [("law", "+3.00"), ("art", "-1.00")]);
        assert_eq!((view.tasks[0].line.part.as_str(), view.tasks[0].line.flips.as_str()), ("200 %", "+2 -1"));
        assert!(view.tasks[1].subjects.is_empty() && view.tasks[1].line.is_loss);
    }
}
