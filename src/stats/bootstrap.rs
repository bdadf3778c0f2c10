//! The bias-corrected and accelerated bootstrap (Efron, JASA 82, 1987, pages 171 to 185; Efron and Tibshirani, An
//! Introduction to the Bootstrap, 1993, section 14.3), for values that are neither right nor wrong (TruthfulQA's mc2).
//! Seeded: the same values always give the same digits.
//!
//! Resamples of few values scatter too little: they have the variance over n in place of n - 1, and that it was estimated
//! is forgotten. So of a mean of less than [`FEW`] values Student's quantile times `sqrt(n / (n - 1))` stands in place of the
//! normal one, in intervals and p values alike (Hesterberg, The American Statistician 69, 2015, pages 371 to 386).

use super::normal::{below, quantile};
use super::{Interval, normal, student};
use crate::random::Random;

/// Resamples of a report: the ends of a 95 % interval then move by under a twentieth of its width from seed to seed.
pub const RESAMPLES: usize = 10_000;

/// From here on the widening is less than a twentieth and left out.
pub const FEW: usize = 40;

/// The bootstrap distribution of one statistic.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Ascending.
    resampled: Vec<f64>,
    estimate: f64,
    /// z0: the normal quantile of the resamples below the estimate.
    bias: f64,
    /// a: a sixth of the skewness of the jackknife.
    acceleration: f64,
    values: Vec<f64>,
    /// Degrees of freedom of the error of a mean of few values.
    freedom: Option<usize>,
}

/// The bootstrap of the mean of `values`, seeded by `name`; none for fewer than two.
pub fn of_mean(values: &[f64], name: &str) -> Option<Bootstrap> {
    let plain = Bootstrap::new(values, mean, &mut Random::named(0, name), RESAMPLES)?;
    let freedom = (values.len() < FEW).then(|| values.len() - 1);
    Some(Bootstrap { freedom, ..plain })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Bootstrap {
    /// Resamples `values` that many times; none for fewer than two values.
    pub fn new(
        values: &[f64],
        statistic: impl Fn(&[f64]) -> f64,
        random: &mut Random,
        resamples: usize,
    ) -> Option<Bootstrap> {
        if values.len() < 2 {
            return None;
        }
        let estimate = statistic(values);
        let mut drawn = vec![0.0; values.len()];
        let mut resampled: Vec<f64> = (0..resamples)
            .map(|_| {
                drawn.fill_with(|| values[random.below(values.len())]);
                statistic(&drawn)
            })
            .collect();
        resampled.sort_by(f64::total_cmp);
        let bias = quantile(share_below(&resampled, estimate));
        let acceleration = acceleration(values, statistic);
        Some(Bootstrap { bias, acceleration, estimate, resampled, values: values.to_vec(), freedom: None })
    }

    /// The interval at `level`; the estimate alone where all values are equal.
    pub fn interval(&self, level: f64) -> Interval {
        let tail = match self.freedom {
            None => quantile((1.0 - level) / 2.0),
            Some(freedom) => -student::quantile(1.0 - level, freedom) * inflation(freedom),
        };
        Interval { low: self.end(tail), high: self.end(-tail) }
    }

    /// Two-sided p value of `null`: one less the level of the interval that just reaches it, at least 1 / (resamples + 1), and
    /// at least 2 / 2^n, the least that the signs of n values off the null can say: of a few skewed values the corrections
    /// make next to nothing.
    pub fn p_value(&self, null: f64) -> f64 {
        if self.estimate == null {
            return 1.0;
        }
        let smallest = (1.0 / (self.resampled.len() + 1) as f64).max(0.5f64.powi(self.signs(null) as i32 - 1)).min(1.0);
        let shift = quantile(share_below(&self.resampled, null)) - self.bias;
        let errors = shift / (1.0 + self.acceleration * shift) - self.bias;
        let p = match self.freedom {
            None => normal::two_sided(errors),
            Some(freedom) => student::two_sided(errors / inflation(freedom), freedom),
        };
        p.max(smallest)
    }

    /// How many values are above or below `null`.
    fn signs(&self, null: f64) -> usize {
        self.values.iter().filter(|value| (*value - null).abs() > closeness(null)).count()
    }

    /// The resample at the corrected place of the normal quantile `tail`.
    fn end(&self, tail: f64) -> f64 {
        let shift = self.bias + tail;
        let place = below(self.bias + shift / (1.0 - self.acceleration * shift));
        let rank = ((self.resampled.len() + 1) as f64 * place).round() as usize;
        self.resampled[rank.clamp(1, self.resampled.len()) - 1]
    }
}

/// Sums in another order differ in the last bits; what is equal to `value` up to these is a tie.
fn closeness(value: f64) -> f64 {
    1e-12 * value.abs().max(1.0)
}

/// The share of `sorted` below `value`, ties counted half; kept off 0 and 1 by half a resample so that its quantile is
/// finite.
fn share_below(sorted: &[f64], value: f64) -> f64 {
    let count = sorted.len() as f64;
    let close = closeness(value);
    let less = sorted.partition_point(|&other| other < value - close);
    let not_more = sorted.partition_point(|&other| other <= value + close);
    ((less + not_more) as f64 / 2.0 / count).clamp(0.5 / count, 1.0 - 0.5 / count)
}

/// What the standard deviation of `freedom + 1` resampled values falls short by.
fn inflation(freedom: usize) -> f64 {
    ((freedom + 1) as f64 / freedom as f64).sqrt()
}

fn acceleration(values: &[f64], statistic: impl Fn(&[f64]) -> f64) -> f64 {
    let mut others = values[1..].to_vec();
    let mut without: Vec<f64> = vec![statistic(&others)];
    for left_out in 1..values.len() {
        others[left_out - 1] = values[left_out - 1];
        without.push(statistic(&others));
    }
    let centre = mean(&without);
    let sum_of = |power: i32| without.iter().map(|value| (centre - value).powi(power)).sum::<f64>();
    let spread = sum_of(2).powf(1.5);
    if spread > 0.0 { sum_of(3) / (6.0 * spread) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::LEVEL;

    #[test]
    fn a_few_values_do_not_say_more_than_their_signs_can() {
        // Seven documents hardly worse and one much: no resample reaches 0.
        let values = [-0.01, -0.01, -0.02, -0.01, -0.03, -0.01, -0.02, -0.9];
        let found = of_mean(&values, "few").unwrap();
        assert_eq!(found.p_value(0.0), 2.0 / 256.0);
        // One document that moved is no evidence, however many did not.
        let one = of_mean(&[1.0, 0.0, 0.0, 1e-14, 0.0, 0.0, 0.0, 0.0], "one").unwrap();
        assert_eq!(one.p_value(0.0), 1.0);
    }

    /// Efron and Tibshirani 1993, table 14.1: test A of 26 neurologically impaired children.
    const CHILDREN: [f64; 26] = [
        48.0, 36.0, 20.0, 29.0, 42.0, 42.0, 20.0, 42.0, 22.0, 41.0, 45.0, 14.0, 6.0, 0.0, 33.0, 28.0, 34.0, 4.0, 32.0,
        24.0, 47.0, 41.0, 24.0, 26.0, 30.0, 41.0,
    ];

    fn variance(values: &[f64]) -> f64 {
        let mean = mean(values);
        values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn efron_and_tibshirani_s_example() {
        // Their table 14.2: the variance is 171.5, a = 0.061, z0 = 0.146, the 90 % interval 115.8 to 259.6 (2,000 resamples).
        let found = Bootstrap::new(&CHILDREN, variance, &mut Random::named(1, "children"), 20_000).unwrap();
        assert!((found.estimate - 171.5).abs() < 0.05, "{}", found.estimate);
        assert!((found.acceleration - 0.061).abs() < 5e-4, "{}", found.acceleration);
        // 2,000 resamples give z0 a standard error of sqrt(1/4 / 2000) / 0.399 = 0.028.
        assert!((found.bias - 0.146).abs() < 2.0 * 0.028, "{}", found.bias);
        let interval = found.interval(0.9);
        assert!((interval.low - 115.8).abs() < 4.0 && (interval.high - 259.6).abs() < 6.0, "{interval:?}");
    }

    #[test]
    fn a_p_value_belongs_to_the_interval_that_ends_there() {
        let found = of_mean(&CHILDREN, "children").unwrap();
        let interval = found.interval(LEVEL);
        assert!((found.p_value(interval.low) - 0.05).abs() < 0.005, "{}", found.p_value(interval.low));
        assert!((found.p_value(interval.high) - 0.05).abs() < 0.005, "{}", found.p_value(interval.high));
        assert_eq!(found.p_value(found.estimate), 1.0);
        // No resample of 10,000 reaches 0, which is 3.9 normal errors; of 26 values that is 0.002.
        assert!(found.p_value(0.0) < 0.003);
    }

    #[test]
    fn few_values_have_wider_intervals() {
        // Nine degrees of freedom: 2.2622 / 1.9600 * sqrt(10 / 9) = 1.2166; resamples of these are tenths apart.
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let plain = Bootstrap::new(&values, mean, &mut Random::named(0, "ten"), RESAMPLES).unwrap().interval(LEVEL);
        let found = of_mean(&values, "ten").unwrap();
        let wider = found.interval(LEVEL);
        for (found, plain) in [(wider.high - 5.5, plain.high - 5.5), (5.5 - wider.low, 5.5 - plain.low)] {
            assert!((found / plain - 1.2166).abs() < 0.09, "{found} and {plain}");
        }
        assert!((found.p_value(wider.low) - 0.05).abs() < 0.01, "{}", found.p_value(wider.low));
        let many: Vec<f64> = (0..FEW).map(|index| index as f64).collect();
        let plain = Bootstrap::new(&many, mean, &mut Random::named(0, "many"), RESAMPLES).unwrap();
        assert_eq!(of_mean(&many, "many").unwrap().interval(LEVEL), plain.interval(LEVEL));
    }

    #[test]
    fn the_edges() {
        assert!(of_mean(&[], "x").is_none() && of_mean(&[0.3], "x").is_none());
        let equal = of_mean(&[0.3; 5], "x").unwrap();
        let interval = equal.interval(LEVEL);
        assert!((interval.low - 0.3).abs() < 1e-12 && interval.low == interval.high);
        assert!(of_mean(&[0.0; 5], "x").unwrap().p_value(0.0) == 1.0);
        let (one, two) = (of_mean(&CHILDREN, "a").unwrap(), of_mean(&CHILDREN, "a").unwrap());
        assert_eq!(one.interval(LEVEL), two.interval(LEVEL), "seeded");
    }
}
