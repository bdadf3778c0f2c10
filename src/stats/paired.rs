//! Two models on the same documents, each right or wrong: what flipped, whether that can be chance, and how large the
//! difference is.
//!
//! McNemar's test (Psychometrika 12, 1947) asks of the flips alone whether both ways are alike. Exact it holds its level
//! always but is cautious; the mid-p form, which counts half of the observed outcome, comes close to the level and was never
//! found above it by more than a little (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013). The
//! interval is Newcombe's square-and-add, method 10 (Statistics in Medicine 17, 1998, pages 2635 to 2650), which is wider
//! than nothing also where nothing flipped.

use super::proportion::wilson;
use super::{Interval, normal};

/// Up to this many flips the exact test is used, above it mid-p.
const FEW: usize = 25;

/// Documents by who was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    pub both: usize,
    /// Wrong before, right now.
    pub gained: usize,
    /// Right before, wrong now.
    pub lost: usize,
    pub neither: usize,
}

impl Flips {
    /// Counts pairs of (right before, right now).
    pub fn of(pairs: impl Iterator<Item = (bool, bool)>) -> Flips {
        let mut flips = Flips::default();
        for pair in pairs {
            match pair {
                (true, true) => flips.both += 1,
                (false, true) => flips.gained += 1,
                (true, false) => flips.lost += 1,
                (false, false) => flips.neither += 1,
            }
        }
        flips
    }

    pub fn documents(self) -> usize {
        self.both + self.gained + self.lost + self.neither
    }

    /// Exact for few flips, mid-p for more; 1 for none.
    pub fn p_value(self) -> f64 {
        if self.gained + self.lost <= FEW { self.exact() } else { self.mid_p() }
    }

    /// Twice the binomial probability of a split as uneven as this or more.
    pub fn exact(self) -> f64 {
        let (fewer, all) = (self.gained.min(self.lost), self.gained + self.lost);
        let tail: f64 = (0..=fewer).map(|count| fair_coin(count, all)).sum();
        (2.0 * tail).min(1.0)
    }

    /// As [`Flips::exact`] with half of the observed split. An even split is 1 (the same section of Fagerland et al.).
    pub fn mid_p(self) -> f64 {
        let (fewer, all) = (self.gained.min(self.lost), self.gained + self.lost);
        if self.gained == self.lost {
            return 1.0 - 0.5 * fair_coin(fewer, all);
        }
        let below: f64 = (0..fewer).map(|count| fair_coin(count, all)).sum();
        (2.0 * below + fair_coin(fewer, all)).min(1.0)
    }

    /// The interval of the share now minus the share before, at `z` standard errors; all of -1..1 without documents.
    pub fn interval(self, z: f64) -> Interval {
        let n = self.documents() as f64;
        if n == 0.0 {
            return Interval { low: -1.0, high: 1.0 };
        }
        let [before, now] = [self.lost, self.gained].map(|only| (self.both + only) as f64 / n);
        let (around_before, around_now) = (wilson(before, n, z), wilson(now, n, z));
        let together = self.correlation();
        let half =
            |now: f64, before: f64| (now * now - 2.0 * together * now * before + before * before).max(0.0).sqrt();
        let difference = now - before;
        Interval {
            low: difference - half(now - around_now.low, around_before.high - before),
            high: difference + half(around_now.high - now, before - around_before.low),
        }
        .clipped(-1.0, 1.0)
    }

    /// The correlation of both answers, with Newcombe's continuity correction of positive ones; 0 where a model is always
    /// right or always wrong.
    fn correlation(self) -> f64 {
        let [both, gained, lost, neither] = [self.both, self.gained, self.lost, self.neither].map(|count| count as f64);
        let margins = (both + gained) * (both + lost) * (gained + neither) * (lost + neither);
        if margins == 0.0 {
            return 0.0;
        }
        let product = both * neither - gained * lost;
        let corrected = if product > 0.0 { (product - self.documents() as f64 / 2.0).max(0.0) } else { product };
        corrected / margins.sqrt()
    }
}

/// The p value that belongs to a difference and its interval: the side of the interval that faces zero stands for its
/// standard errors. Exact for symmetric intervals. 1 for no difference.
pub fn p_value_of(difference: f64, interval: Interval, z: f64) -> f64 {
    let side = if difference >= 0.0 { difference - interval.low } else { interval.high - difference };
    match (difference == 0.0, side > 0.0) {
        (true, _) => 1.0,
        (false, false) => 0.0,
        (false, true) => normal::two_sided(difference / side * z),
    }
}

/// The probability of `heads` in `all` throws, by logarithms: 2^-all alone is below the smallest number from 1,075 on.
fn fair_coin(heads: usize, all: usize) -> f64 {
    let factorial = |count: usize| libm::lgamma(count as f64 + 1.0);
    (factorial(all) - factorial(heads) - factorial(all - heads) - all as f64 * std::f64::consts::LN_2).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Z;

    /// Airway hyper-responsiveness before and after stem cell transplantation in 21 children (Bentur et al. 2009), the
    /// worked example of Fagerland, Lydersen and Laake 2013 and 2014: 1 child both times, 7 only after, 1 only before.
    const CHILDREN: Flips = Flips { both: 1, gained: 7, lost: 1, neither: 12 };

    #[test]
    fn fagerland_s_example() {
        // Exact conditional p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256 = 0.0703; mid-p = 10/256 = 0.0391.
        assert!((CHILDREN.exact() - 18.0 / 256.0).abs() < 1e-12);
        assert!((CHILDREN.mid_p() - 10.0 / 256.0).abs() < 1e-12);
        assert_eq!(CHILDREN.p_value(), CHILDREN.exact());
        // Statistics in Medicine 33, 2014: square-and-add 0.026 to 0.507 for the difference 0.286.
        let interval = CHILDREN.interval(Z);
        assert!((interval.low - 0.026).abs() < 5e-4 && (interval.high - 0.507).abs() < 5e-4, "{interval:?}");
    }

    #[test]
    fn both_ways_are_alike() {
        let back = Flips { gained: CHILDREN.lost, lost: CHILDREN.gained, ..CHILDREN };
        let (there, back) = (CHILDREN.interval(Z), back.interval(Z));
        assert!((there.low + back.high).abs() < 1e-12 && (there.high + back.low).abs() < 1e-12);
    }

    #[test]
    fn the_edges() {
        let still = Flips { both: 700, neither: 300, ..Flips::default() };
        assert_eq!((still.exact(), still.p_value()), (1.0, 1.0));
        let interval = still.interval(Z);
        assert!(interval.low < -0.0005 && interval.low > -0.01 && (interval.low + interval.high).abs() < 0.002);
        let one = Flips { gained: 1, ..Flips::default() };
        assert!(one.exact() == 1.0 && one.interval(Z).contains(0.0) && one.interval(Z).high == 1.0);
        let always = Flips { both: 50, ..Flips::default() };
        assert!(always.interval(Z).contains(0.0) && always.interval(Z).low < 0.0);
        assert_eq!(Flips::default().interval(Z), Interval { low: -1.0, high: 1.0 });
        let even = Flips { gained: 2000, lost: 2000, ..Flips::default() };
        assert!(even.exact() == 1.0 && even.mid_p() > 0.99 && even.mid_p() <= 1.0);
        let many = Flips { gained: 3000, lost: 2000, ..Flips::default() };
        assert!(many.p_value() > 0.0 && many.p_value() < 1e-40);
    }

    #[test]
    fn documents_are_counted_by_who_was_right() {
        let pairs = [(true, true), (false, true), (false, true), (true, false), (false, false)];
        assert_eq!(Flips::of(pairs.into_iter()), Flips { both: 1, gained: 2, lost: 1, neither: 1 });
    }

    #[test]
    fn an_interval_that_touches_zero_has_five_percent() {
        let p = |difference: f64, low, high| p_value_of(difference, Interval { low, high }, Z);
        assert!((p(0.02, 0.0, 0.05) - 0.05).abs() < 1e-12 && (p(-0.02, -0.03, 0.0) - 0.05).abs() < 1e-12);
        assert_eq!((p(0.0, -0.1, 0.1), p(0.1, 0.1, 0.1)), (1.0, 0.0));
    }
}
