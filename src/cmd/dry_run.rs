//! `fireval eval MODEL --dry-run`: what an evaluation comes to, before it is begun.

use anyhow::Result;

use super::measure::Measurement;
use super::{Exit, output};
use crate::engine::Work;
use crate::engine::budget::{Limits, Room};
use crate::engine::cost::Cost;
use crate::engine::open::Probe;
use crate::engine::plan::{Plan, Planner};
use crate::engine::tokens::Encoder;
use crate::eval::TaskDocuments;
use crate::memory::Memory;
use crate::model::config::ModelConfig;
use crate::progress::Progress;
use crate::project::ModelSpec;
use crate::protocol::Protocol;
use crate::report::terminal;
use crate::request::Request;

/// Counts and prints.
pub fn run(measurement: &mut Measurement, spec: &ModelSpec) -> Result<Exit> {
    let (config, tokenizer) = (spec.config()?, spec.tokenizer()?);
    let (protocol, memory) = (measurement.conditions.protocol, spec.home.memory(measurement.memory()));
    let questions = measurement.questions(spec)?;
    let probe = spec.probe(memory)?;
    let progress = Progress::new(&spec.name, "documents");
    let encoder =
        Encoder { tokenizer: &tokenizer, protocol: Some(protocol), max_length: config.max_position_embeddings };
    let (plans, room) = count(questions, encoder, &config, protocol, &probe, memory, &progress)?;
    progress.finish();
    output::print(&shown(questions, &plans, protocol, &probe, &room))?;
    Ok(Exit::Done)
}

/// A plan for each of `questions`.
fn count(
    questions: &[TaskDocuments],
    encoder: Encoder,
    config: &ModelConfig,
    protocol: Protocol,
    probe: &Probe,
    memory: Memory,
    progress: &Progress,
) -> Result<(Vec<Plan>, Room)> {
    let of_task = |(task, questions): (usize, &TaskDocuments)| vec![task; questions.documents.len()];
    let task_of: Vec<usize> = questions.iter().enumerate().flat_map(of_task).collect();
    let documents: Vec<&[Request]> =
        questions.iter().flat_map(|questions| &questions.documents).map(|document| &document.requests[..]).collect();
    progress.add_total(documents.len() as u64);
    let work = Work { documents: &documents, protocol: Some(protocol), sampling: None, progress: progress.clone() };
    let room = Room::planned(probe.footprint, &work, Limits::of(memory))?.apart_after(config.short_length());
    let planner = Planner { encoder, cost: Cost::of(config), protocol, room };
    Ok((planner.count(&work, &task_of, questions.len())?, room))
}

fn shown(questions: &[TaskDocuments], plans: &[Plan], protocol: Protocol, probe: &Probe, room: &Room) -> String {
    let all = plans.iter().fold(Plan::default(), |all, &plan| all.plus(plan));
    let head = ["Task", "Documents", "Requests", "Harness\ntokens", "Distinct\ntokens", "Computed\ntokens"];
    let head = head.into_iter().chain(["Computed\nagain", "New tokens\nat most", "TFLOP", "Time"]);
    let mut lines = vec![head.map(str::to_owned).collect()];
    lines.extend(questions.iter().zip(plans).map(|(asked, plan)| line(asked.task.title(), plan, probe)));
    lines.push(line("all", &all, probe));
    let grid = terminal::grid(lines, 1, output::terminal_width());
    let threads = rayon::current_num_threads();
    let factor = all.harness_tokens as f64 / all.computed_tokens.max(1) as f64;
    format!(
        "{grid}\n\
         harness tokens: what {} sends through the model, {factor:.1} times what is computed here\n\
         time: at {:.0} GFLOP/s, timed just now on one layer of the model with {threads} threads; whatever else runs here \
         moves it, and answers that end early make it shorter\n\
         memory: up to {} of the {} allowed, with waves of {} tokens\n",
        protocol.name(),
        probe.speed / 1e9,
        peak(&all, room),
        room.limits.memory,
        room.wave_tokens(),
    )
}

fn line(title: &str, plan: &Plan, probe: &Probe) -> Vec<String> {
    let counts = [plan.documents, plan.requests, plan.harness_tokens, plan.distinct_tokens, plan.computed_tokens];
    let mut line = vec![title.to_owned()];
    line.extend(counts.map(grouped));
    line.push(format!("{:.2} %", 100.0 * plan.overhead()));
    line.push(grouped(plan.most_new_tokens));
    line.push(format!("{:.3}", plan.operations / 1e12));
    line.push(duration(plan.operations / probe.speed));
    line
}

/// The most that is held at once: a wave, or, while prompts are read, as many pasts beside it as there is room for.
fn peak(all: &Plan, room: &Room) -> Memory {
    room.peak(all.prompts.min(room.limits.running), all.longest_generation)
}

/// Digits in threes.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && index % 3 == first {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 99.5 => format!("{seconds:.0} s"),
        seconds if seconds < 5970.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        let groups = [0, 7, 123, 1234, 82_900_000].map(grouped);
        assert_eq!(groups, ["0", "7", "123", "1,234", "82,900,000"]);
        assert_eq!([0.4, 99.4, 99.6, 7200.0].map(duration), ["0 s", "99 s", "2 min", "2.0 h"]);
    }
}
