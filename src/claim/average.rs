//! What an average is the mean of.

use super::claims::Claim;
use super::number::{Printed, mean};
use crate::published::Published;

/// The tasks that the old leaderboard had until November 2023: ARC, HellaSwag, MMLU, TruthfulQA.
pub const FIRST_TASKS: usize = 4;

/// The scores that an average is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    Six,
    Four,
    /// With DROP, for some weeks of November 2023.
    Seven,
    /// All scores that the table shows, which are other tasks than any of these.
    Shown(usize),
}

/// How an average stands to the scores beside it.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// There is no average, or there is no score beside it.
    Alone,
    MeanOf(Basis),
    /// None of the means that the scores beside it have: the mean of those of the leaderboard's tasks, and of how many.
    NoMean {
        mean: f64,
        tasks: usize,
    },
    /// None of these means, but there are numbers beside it of which some may count and others not.
    Unknown,
}

pub fn standing(claim: &Claim) -> Standing {
    let scores: Vec<&Printed> = claim.scores.iter().flatten().collect();
    let Some(average) = claim.average.as_ref().filter(|_| !scores.is_empty()) else { return Standing::Alone };
    let found = bases(claim).into_iter().find(|(_, parts)| average.is_mean(parts));
    match found {
        Some((basis, _)) => Standing::MeanOf(basis),
        None if claim.others.is_empty() => Standing::NoMean { mean: mean(&scores), tasks: scores.len() },
        None => Standing::Unknown,
    }
}

/// What an average beside these scores may be of, the likeliest first.
fn bases(claim: &Claim) -> Vec<(Basis, Vec<&Printed>)> {
    let scores: Vec<&Printed> = claim.scores.iter().flatten().collect();
    let first: Vec<&Printed> = claim.scores[..FIRST_TASKS].iter().flatten().collect();
    let all: Vec<&Printed> = scores.iter().copied().chain(&claim.drop).chain(&claim.others).collect();
    let mut bases = Vec::new();
    if scores.len() == claim.scores.len() {
        bases.push((Basis::Six, scores.clone()));
        if let Some(seventh) = &claim.drop {
            bases.push((Basis::Seven, scores.iter().copied().chain([seventh]).collect()));
        }
    }
    if first.len() == FIRST_TASKS {
        bases.push((Basis::Four, first));
    }
    bases.push((Basis::Shown(scores.len()), scores));
    bases.push((Basis::Shown(all.len()), all));
    bases
}

/// The mean of a published row's scores of the first four tasks, in percent.
pub fn mean_of_four(row: &Published) -> f64 {
    row.scores[..FIRST_TASKS].iter().sum::<f64>() / FIRST_TASKS as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::number::tests::number;

    fn claim(average: &str, scores: &[&str], drop: Option<&str>) -> Claim {
        let mut claim = Claim { average: Some(number(average)), drop: drop.map(number), ..Claim::default() };
        for (place, score) in claim.scores.iter_mut().zip(scores) {
            *place = Some(number(score));
        }
        claim
    }

    #[test]
    fn six_four_and_seven_tasks_are_told_apart() {
        let six = ["66.04", "86.49", "71.82", "46.78", "81.93", "57.47"];
        assert_eq!(standing(&claim("68.42", &six, None)), Standing::MeanOf(Basis::Six));
        assert_eq!(
            standing(&claim("67.78", &six, None)),
            Standing::MeanOf(Basis::Four),
            "(66.04 + 86.49 + 71.82 + 46.78) / 4"
        );
        assert_eq!(standing(&claim("67.78", &six[..4], None)), Standing::MeanOf(Basis::Four));
        assert_eq!(standing(&claim("60.08", &six, Some("10.0"))), Standing::MeanOf(Basis::Seven), "(410.53 + 10) / 7");
        assert_eq!(standing(&claim("74.78", &six[..3], None)), Standing::MeanOf(Basis::Shown(3)));
        let Standing::NoMean { mean, tasks } = standing(&claim("70.00", &six, None)) else { panic!() };
        assert!((mean - 68.4217).abs() < 1e-4 && tasks == 6);
        assert_eq!(standing(&claim("70.00", &[], None)), Standing::Alone);
    }

    #[test]
    fn other_columns_may_count() {
        let mut found = claim("50.00", &["60.00", "50.00"], None);
        found.others = vec![number("40.00")];
        assert_eq!(standing(&found), Standing::MeanOf(Basis::Shown(3)));
        found.others.push(number("1.00"));
        assert_eq!(standing(&found), Standing::Unknown);
    }
}
