//! What a gate can see at all, said before what it saw.
//!
//! A gate whose error is large passes nothing and refutes nothing; one whose rules claim more than its documents can tell
//! decides by chance. The error is the lower side of the average's own interval in units of its quantile: where nothing
//! flipped among few documents it is not zero (`stats::paired`), so thirty equal answers do not look like certainty.

use crate::stats::normal::{below, quantile};
use crate::stats::{Interval, Z, power};

/// The power that a smallest visible loss is stated for.
pub const POWER: f64 = 0.8;

/// Rules with less power at their own margin are refused.
pub const LEAST_POWER: f64 = 0.5;

/// What this many documents can tell, in fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sight {
    /// Documents of the candidate.
    pub documents: usize,
    /// Of the difference of the averages.
    pub stderr: f64,
    /// The smallest true loss that is told from none with probability [`POWER`].
    pub smallest: f64,
    /// The smallest true loss that ends as a regression on the average with probability [`POWER`].
    pub refuted: f64,
    /// How likely a candidate that lost nothing is shown to have lost less than the margin. A loss as large as the margin is
    /// told from none as often.
    pub at_margin: f64,
}

impl Sight {
    /// Of a difference whose error is `stderr`, against `margin` at one-sided `confidence`.
    pub fn new(documents: usize, stderr: f64, margin: f64, confidence: f64) -> Sight {
        let smallest = power::smallest_visible(stderr, 2.0 * (1.0 - confidence), POWER);
        let at_margin = power::one_sided(margin, stderr, confidence);
        Sight { documents, stderr, smallest, refuted: margin + smallest, at_margin }
    }

    pub fn is_low(&self) -> bool {
        self.at_margin < LEAST_POWER
    }
}

/// The standard error that the lower side of a 95 % interval around `value` stands for.
pub fn stderr_below(value: f64, interval: Interval) -> f64 {
    (value - interval.low) / Z
}

/// A 95 % interval around `value` with its sides stretched to one-sided `confidence`; exact where it is normal, and at 0.975.
pub fn at(confidence: f64, value: f64, interval: Interval) -> Interval {
    let stretch = if confidence == 0.975 { 1.0 } else { quantile(confidence) / Z };
    Interval { low: value - (value - interval.low) * stretch, high: value + (interval.high - value) * stretch }
}

/// One-sided p value of no loss, from the two-sided one.
pub fn p_of_loss(value: f64, two_sided: f64) -> f64 {
    if value < 0.0 { two_sided / 2.0 } else { 1.0 - two_sided / 2.0 }
}

/// The chance that a true `loss` is refuted against `margin`.
pub fn power_to_refute(loss: f64, margin: f64, stderr: f64, confidence: f64) -> f64 {
    below((loss - margin) / stderr - quantile(confidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_worked_by_hand() {
        // Error 0.4 points, margin 1 at 97.5 %: 1.96 + 0.8416 errors are 1.12 points; 1 / 0.4 - 1.96 = 0.54 gives 0.7054.
        let sight = Sight::new(5_000, 0.004, 0.01, 0.975);
        assert!((sight.smallest - 0.011_206).abs() < 1e-6 && (sight.refuted - 0.021_206).abs() < 1e-6, "{sight:?}");
        assert!((sight.at_margin - 0.7054).abs() < 1e-4 && !sight.is_low(), "{sight:?}");
        assert!((power_to_refute(sight.refuted, 0.01, 0.004, 0.975) - POWER).abs() < 1e-12);
        // Half as sharp: 1 / 0.8 - 1.96 = -0.71 gives 0.2389.
        assert!(Sight::new(1_250, 0.008, 0.01, 0.975).is_low());
    }

    #[test]
    fn sides_are_stretched() {
        let interval = Interval { low: -0.02, high: 0.03 };
        assert_eq!(at(0.975, 0.0, interval), interval);
        let narrower = at(0.95, 0.0, interval); // 1.6449 / 1.96
        assert!((narrower.low + 0.016_785).abs() < 1e-6 && (narrower.high - 0.025_177).abs() < 1e-6, "{narrower:?}");
        assert!((stderr_below(0.0, interval) - 0.02 / Z).abs() < 1e-12);
    }

    #[test]
    fn a_gain_is_no_loss() {
        assert_eq!((p_of_loss(-0.1, 0.04), p_of_loss(0.1, 0.04), p_of_loss(0.0, 1.0)), (0.02, 0.98, 0.5));
    }
}
