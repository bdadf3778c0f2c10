//! Whether the statistics keep their promises: whole comparisons of the six tasks are simulated, and it is counted how often
//! equal models are called different, how often the intervals hold the truth, and how often a loss is found.
//!
//!     cargo bench --bench statistics            # 10,000 comparisons
//!     cargo bench --bench statistics -- 500     # fewer
//!
//! A document flips with a probability as two fine-tunes of one model show, and is answered alike else; MMLU's subjects
//! have its sizes and accuracies of their own; mc2's differences are a skewed mixture. The table is in `results/README.md`.

use fireval::published::MMLU_SUBJECTS;
use fireval::random::Random;
use fireval::stats::bootstrap::{self, Bootstrap};
use fireval::stats::paired::{Flips, p_value_of};
use fireval::stats::strata::{Part, Weighing, interval_of_difference, joined};
use fireval::stats::{Estimate, Interval, LEVEL, Z, holm, power, proportion};
use rayon::prelude::*;

/// Documents, and how often two models answer them differently.
const COUNTED: [(&str, usize, f64); 4] =
    [("ARC", 1_172, 0.08), ("HellaSwag", 10_042, 0.04), ("Winogrande", 1_267, 0.10), ("GSM8K", 1_319, 0.20)];

/// How often both are right where they agree.
const AGREED: f64 = 0.7;

const MMLU_FLIPS: f64 = 0.10;

const TRUTHFULQA: usize = 817;
/// Resamples of a simulated comparison; a report takes ten times as many.
const RESAMPLES: usize = 1_000;

/// What one task of one simulated comparison found.
struct Found {
    difference: f64,
    interval: Interval,
    p_value: f64,
    /// Whether the score's own interval holds the score's truth.
    score_held: bool,
}

/// One document: (right before, right now). `loss`: how much less often it is right now.
fn answers(random: &mut Random, flips: f64, agreed: f64, loss: f64) -> (bool, bool) {
    let at = random.uniform();
    match at {
        _ if at < (flips - loss) / 2.0 => (false, true),
        _ if at < flips => (true, false),
        _ => {
            let right = random.uniform() < agreed;
            (right, right)
        }
    }
}

fn counted(random: &mut Random, (n, flips): (usize, f64), loss: f64) -> Found {
    let table = Flips::of((0..n).map(|_| answers(random, flips, AGREED, loss)));
    let now = (table.both + table.gained) as f64 / n as f64;
    let truth = (flips - loss) / 2.0 + (1.0 - flips) * AGREED;
    Found {
        difference: (table.gained as f64 - table.lost as f64) / n as f64,
        interval: table.interval(Z),
        p_value: table.p_value(),
        score_held: proportion::wilson(now, n as f64, Z).contains(truth),
    }
}

/// From 0.3 in the hardest subject to 0.9 in the easiest.
fn agreed_in(subject: usize) -> f64 {
    0.3 + 0.6 * subject as f64 / (MMLU_SUBJECTS.len() - 1) as f64
}

fn mmlu(random: &mut Random, loss: f64) -> Found {
    let (mut differences, mut scores) = (Vec::new(), Vec::new());
    for (subject, &(_, n)) in MMLU_SUBJECTS.iter().enumerate() {
        let pairs: Vec<(bool, bool)> = (0..n).map(|_| answers(random, MMLU_FLIPS, agreed_in(subject), loss)).collect();
        let value = |right: bool| f64::from(u8::from(right));
        differences.push(pairs.iter().map(|&(before, now)| value(now) - value(before)).collect::<Vec<_>>());
        let now: Vec<f64> = pairs.iter().map(|&(_, now)| value(now)).collect();
        scores.push(Estimate::mean(&now).expect("subjects have documents"));
    }
    let score = Estimate::macro_mean(&scores).expect("there are subjects");
    let size = proportion::effective_size(score.value, score.stderr, score.n);
    let truth = (MMLU_FLIPS - loss) / 2.0 + (1.0 - MMLU_FLIPS) * 0.6;
    let means = differences.iter().map(|subject| subject.iter().sum::<f64>() / subject.len() as f64);
    let difference = means.sum::<f64>() / MMLU_SUBJECTS.len() as f64;
    let interval = interval_of_difference(&differences, Weighing::Alike).expect("many documents");
    let score_held = proportion::wilson(score.value, size, Z).contains(truth);
    Found { difference, interval, p_value: p_value_of(difference, interval, Z), score_held }
}

/// Small differences mostly, one in ten large; more often down than up by less, so that the mean is 0.
fn skewed(random: &mut Random) -> f64 {
    match random.uniform() {
        rare if rare < 0.1 => 0.4 * random.uniform(),
        // Ten percent of 0.2 on average are balanced by ninety of this.
        _ => 0.05 * random.normal() - 0.1 * 0.2 / 0.9,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn truthfulqa(random: &mut Random, loss: f64) -> Found {
    let differences: Vec<f64> = (0..TRUTHFULQA).map(|_| skewed(random) - loss).collect();
    let found = Bootstrap::new(&differences, mean, random, RESAMPLES).expect("many documents");
    let interval = found.interval(LEVEL);
    let score_held = interval.contains(-loss);
    Found { difference: mean(&differences), interval, p_value: found.p_value(0.0), score_held }
}

/// The six tasks in turn, all with the same loss.
fn comparison(seed: u64, loss: f64) -> Vec<Found> {
    let mut random = Random::named(seed, "comparison");
    let mut found: Vec<Found> = COUNTED.iter().map(|&(_, n, flips)| counted(&mut random, (n, flips), loss)).collect();
    found.push(mmlu(&mut random, loss));
    found.push(truthfulqa(&mut random, loss));
    found
}

fn average(tasks: &[Found]) -> Found {
    let weight = 1.0 / tasks.len() as f64;
    let parts: Vec<Part> =
        tasks.iter().map(|task| Part { weight, value: task.difference, interval: task.interval }).collect();
    let difference = tasks.iter().map(|task| task.difference).sum::<f64>() * weight;
    let interval = joined(&parts);
    Found { difference, interval, p_value: p_value_of(difference, interval, Z), score_held: true }
}

/// Counts over comparisons, by task and for the average, last.
#[derive(Clone, Default)]
pub struct Counts {
    pub called_different: Vec<usize>,
    pub held: Vec<usize>,
    pub score_held: Vec<usize>,
    pub any_task: usize,
}

pub fn simulate(comparisons: usize, loss: f64) -> Counts {
    let counted = (0..comparisons as u64).into_par_iter().map(|seed| {
        let mut found = comparison(seed, loss);
        let p_values: Vec<f64> = found.iter().map(|task| task.p_value).collect();
        found.push(average(&found));
        let by = |what: &dyn Fn(&Found) -> bool| found.iter().map(|task| usize::from(what(task))).collect();
        Counts {
            called_different: by(&|task| task.p_value < 0.05),
            held: by(&|task| task.interval.contains(-loss)),
            score_held: by(&|task| task.score_held),
            any_task: usize::from(holm::adjusted(&p_values).iter().any(|&p| p < 0.05)),
        }
    });
    let sum =
        |a: Vec<usize>, b: Vec<usize>| if a.is_empty() { b } else { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    counted.reduce(Counts::default, |a, b| match (a.held.is_empty(), b.held.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        (false, false) => Counts {
            called_different: sum(a.called_different, b.called_different),
            held: sum(a.held, b.held),
            score_held: sum(a.score_held, b.score_held),
            any_task: a.any_task + b.any_task,
        },
    })
}

/// The standard error of each task's difference, as `power` takes it before anything is measured.
pub fn expected_errors(loss: f64) -> Vec<f64> {
    let plain = |n: usize, flips: f64| (power::variance_of_flips(flips, loss) / n as f64).sqrt();
    let mut errors: Vec<f64> = COUNTED.iter().map(|&(_, n, flips)| plain(n, flips)).collect();
    let subjects: f64 = MMLU_SUBJECTS.iter().map(|&(_, n)| plain(n, MMLU_FLIPS).powi(2)).sum();
    errors.push(subjects.sqrt() / MMLU_SUBJECTS.len() as f64);
    // The mixture: 0.1 (0.16 / 3) and 0.9 (0.0025 + (0.02 / 0.9)^2) about its mean.
    let variance = 0.1 * 0.16 / 3.0 + 0.9 * (0.0025 + (0.02_f64 / 0.9).powi(2));
    errors.push((variance / TRUTHFULQA as f64).sqrt());
    errors.push(errors.iter().map(|error| error * error).sum::<f64>().sqrt() / errors.len() as f64);
    errors
}

/// How many of some comparisons of equal models with few documents are called different: (by the plain bootstrap, by the
/// widened one).
fn few(comparisons: usize, documents: usize, difference: fn(&mut Random) -> f64) -> (usize, usize) {
    let called = |seed: u64| {
        let mut random = Random::named(seed, "few");
        let differences: Vec<f64> = (0..documents).map(|_| difference(&mut random)).collect();
        let plain = Bootstrap::new(&differences, mean, &mut random, bootstrap::RESAMPLES).expect("two or more");
        let widened = bootstrap::of_mean(&differences, "few").expect("two or more");
        [plain, widened].map(|found| usize::from(found.p_value(0.0) < 0.05))
    };
    let found = (0..comparisons as u64).into_par_iter().map(called);
    let [plain, widened] = found.reduce(|| [0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
    (plain, widened)
}

fn print_few(comparisons: usize) {
    println!("{comparisons} comparisons of equal models with few documents, called different: bootstrap, widened");
    for (name, difference) in [("skewed", skewed as fn(&mut Random) -> f64), ("normal", |random| random.normal())] {
        for documents in [8, 12, 20, 39] {
            let (plain, widened) = few(comparisons, documents, difference);
            let percent = |count: usize| 100.0 * count as f64 / comparisons as f64;
            println!("{name}, {documents} documents: {:.1} %, {:.1} %", percent(plain), percent(widened));
        }
    }
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let comparisons: usize = asked.unwrap_or(10_000);
    let losses = [0.005, 0.02];
    let equal = simulate(comparisons, 0.0);
    let lost = losses.map(|loss| simulate(comparisons, loss));
    let percent = |count: usize| 100.0 * count as f64 / comparisons as f64;
    println!("{comparisons} simulated comparisons of each kind; nominal: 5 % false alarms, 95 % coverage");
    println!(
        "| task | score covered | false alarms | difference covered | loss 0.5: covered | found | predicted | loss 2: covered | found | predicted |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let names = COUNTED.iter().map(|(name, _, _)| *name).chain(["MMLU", "TruthfulQA", "Average"]);
    for (task, name) in names.enumerate() {
        let score = if task < 5 { format!("{:.2}", percent(equal.score_held[task])) } else { "-".to_owned() };
        print!(
            "| {name} | {score} | {:.2} | {:.2} |",
            percent(equal.called_different[task]),
            percent(equal.held[task])
        );
        for (counts, loss) in lost.iter().zip(losses) {
            let predicted = 100.0 * power::power(loss, expected_errors(loss)[task], 0.05);
            print!(
                " {:.2} | {:.1} | {predicted:.1} |",
                percent(counts.held[task]),
                percent(counts.called_different[task])
            );
        }
        println!();
    }
    println!(
        "any of six tasks called different after Holm's correction, equal models: {:.2} %",
        percent(equal.any_task)
    );
    print_few(comparisons / 10);
}
