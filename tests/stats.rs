//! The promises of the statistics, on the simulation of `benches/statistics.rs`: equal models are called different no more
//! often than the level says, intervals hold the truth as often as they say, and a loss is found as often as predicted.
//! Everything is seeded, so this passes or fails alike everywhere.

#[allow(dead_code)] // the bench's own printing
#[path = "../benches/statistics.rs"]
mod simulation;

use fireval::stats::power::power;

const TASKS: [&str; 7] = ["ARC", "HellaSwag", "Winogrande", "GSM8K", "MMLU", "TruthfulQA", "average"];

/// The standard error of a share of `n`.
fn error_of_share(share: f64, n: usize) -> f64 {
    (share * (1.0 - share) / n as f64).sqrt()
}

#[test]
fn equal_models_are_seldom_called_different_and_intervals_hold_the_truth() {
    const PAIRS: usize = 10_000;
    let counts = simulation::simulate(PAIRS, 0.0);
    let share = |count: usize| count as f64 / PAIRS as f64;
    let most = 0.05 + 3.0 * error_of_share(0.05, PAIRS);
    for (task, name) in TASKS.iter().enumerate() {
        let (alarms, held) = (share(counts.called_different[task]), share(counts.held[task]));
        assert!(alarms > 0.03 && alarms <= most, "{name}: {alarms} false alarms");
        assert!((0.94..=0.96).contains(&held), "{name}: the difference's interval holds the truth in {held}");
    }
    for (task, name) in TASKS[..5].iter().enumerate() {
        let held = share(counts.score_held[task]);
        assert!((0.94..=0.96).contains(&held), "{name}: the score's interval holds the truth in {held}");
    }
    assert!(share(counts.any_task) <= most, "any task after Holm: {}", share(counts.any_task));
}

#[test]
fn losses_are_found_as_often_as_predicted() {
    const PAIRS: usize = 2_000;
    for loss in [0.005, 0.02] {
        let counts = simulation::simulate(PAIRS, loss);
        let errors = simulation::expected_errors(loss);
        for (task, name) in TASKS.iter().enumerate() {
            let found = counts.called_different[task] as f64 / PAIRS as f64;
            let predicted = power(loss, errors[task], 0.05);
            // A point for what the normal distribution leaves out; three for TruthfulQA's skewed differences.
            let approximate = if *name == "TruthfulQA" { 0.03 } else { 0.01 };
            let allowed = 3.0 * error_of_share(predicted, PAIRS) + approximate;
            assert!((found - predicted).abs() <= allowed, "{name}, loss {loss}: {found}, predicted {predicted}");
        }
    }
}
