//! Whether published averages are what their scores make them. The leaderboard took an average of unrounded scores and
//! rounded it, so it need not be the mean of the six scores that it rounded for themselves. In hundredths of a percent all of
//! these are whole numbers, and the check is exact.

use super::{COLUMNS, Published};

/// How an average stands to the six scores beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It is their mean, rounded (halves up).
    Equal,
    /// It is another number that unrounded scores may have given: each score was moved by at most half a hundredth, so
    /// their mean was too, and the average by as much again.
    Explained,
    Neither,
}

/// All averages of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Averages<'a> {
    pub equal: usize,
    pub explained: usize,
    pub rest: Vec<&'a Published>,
    /// How far an average lies from the mean of its scores, at most, in percent.
    pub furthest: f64,
    /// Scores of counted tasks that are no count of right answers, with their tasks.
    pub impossible: Vec<(&'a Published, &'static str)>,
}

pub fn check(rows: &[Published]) -> Averages<'_> {
    let mut found = Averages::default();
    for row in rows {
        match agreement(row) {
            Agreement::Equal => found.equal += 1,
            Agreement::Explained => found.explained += 1,
            Agreement::Neither => found.rest.push(row),
        }
        found.furthest = found.furthest.max((row.average - mean(row)).abs());
        let scores = COLUMNS.iter().zip(row.scores);
        let impossible = scores.filter(|((task, _), score)| !super::is_possible(task, *score, super::HALF));
        found.impossible.extend(impossible.map(|((task, _), _)| (row, *task)));
    }
    found
}

/// The mean of the six rounded scores, in percent.
pub fn mean(row: &Published) -> f64 {
    row.scores.iter().sum::<f64>() / row.scores.len() as f64
}

fn agreement(row: &Published) -> Agreement {
    let hundredths = |percent: f64| (percent * 100.0).round() as i64;
    let (average, sum) = (hundredths(row.average), row.scores.map(hundredths).iter().sum::<i64>());
    let tasks = row.scores.len() as i64;
    if (2 * sum + tasks) / (2 * tasks) == average {
        Agreement::Equal
    } else if (tasks * average - sum).abs() <= tasks {
        Agreement::Explained
    } else {
        Agreement::Neither
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::{Precision, all};

    fn row(average: f64, scores: [f64; 6]) -> Published {
        Published { line: 2, model: "m".to_owned(), precision: Precision::Float16, average, scores, billions: None }
    }

    #[test]
    fn averages_are_of_unrounded_scores() {
        // The sum is 410.53, a sixth of it 68.42166...
        let scores = [66.04, 86.49, 71.82, 46.78, 81.93, 57.47];
        assert_eq!(agreement(&row(68.42, scores)), Agreement::Equal);
        assert_eq!(agreement(&row(68.43, scores)), Agreement::Explained, "0.0083 away");
        assert_eq!(agreement(&row(68.41, scores)), Agreement::Neither, "0.0117 away");
        assert_eq!(agreement(&row(67.78, scores)), Agreement::Neither, "the mean of the first four");
        // Six times 50, and 0.03 more: the mean ends in a half.
        let half = [50.03, 50.0, 50.0, 50.0, 50.0, 50.0];
        assert_eq!(agreement(&row(50.01, half)), Agreement::Equal);
        assert_eq!(agreement(&row(50.0, half)), Agreement::Explained);
    }

    #[test]
    fn a_table_is_counted() {
        let scores = [66.04, 86.49, 71.82, 46.78, 81.93, 57.47];
        let mut wrong = scores;
        wrong[0] = 66.08;
        let rows = [row(68.42, scores), row(68.43, scores), row(67.0, wrong)];
        let found = check(&rows);
        assert_eq!((found.equal, found.explained, found.rest.len()), (1, 1, 1));
        assert!((found.furthest - (68.42 + 0.05 / 6.0 - 67.0)).abs() < 1e-9, "{}", found.furthest);
        assert_eq!(found.impossible, [(&rows[2], "arc_challenge")]);
    }

    #[test]
    fn the_built_in_rows_hold() {
        let rows = all().unwrap();
        let found = check(&rows);
        assert_eq!((found.equal + found.explained, found.rest.len(), found.impossible.len()), (rows.len(), 0, 0));
        assert!(found.furthest < 0.01 + 1e-9);
    }
}
