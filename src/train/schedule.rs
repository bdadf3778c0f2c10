//! The learning rate over the steps. Formulas of transformers 4.36, `optimization.py`: in the first step, step 0, a rate
//! that warms up is still 0.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the rate does once it is warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Stays.
    ConstantWithWarmup,
    /// Falls in a line to 0 at the end.
    Linear,
    /// Falls along half a cosine to 0 at the end.
    Cosine,
}

/// `[schedule]` of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub kind: Shape,
    /// Steps over which the rate rises in a line from 0.
    #[serde(default)]
    pub warmup_steps: usize,
}

impl Schedule {
    /// What the peak rate is multiplied by in `step` (from 0) of `steps`.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let cooling = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => steps.saturating_sub(step) as f64 / cooling,
            Shape::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / cooling;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(kind: Shape, warmup_steps: usize, steps: usize, at: [usize; 5]) -> [f64; 5] {
        at.map(|step| Schedule { kind, warmup_steps }.factor(step, steps))
    }

    #[test]
    fn the_rate_rises_from_0_and_then_stays() {
        // Firefly's: 600 steps of warming up out of 3,000.
        let at = [0, 150, 600, 601, 2999];
        assert_eq!(factors(Shape::ConstantWithWarmup, 600, 3000, at), [0.0, 0.25, 1.0, 1.0, 1.0]);
        assert_eq!(factors(Shape::ConstantWithWarmup, 0, 10, [0, 1, 2, 3, 9]), [1.0; 5]);
    }

    #[test]
    fn the_rate_falls_in_a_line_to_0() {
        assert_eq!(factors(Shape::Linear, 2, 10, [1, 2, 4, 9, 10]), [0.5, 1.0, 0.75, 0.125, 0.0]);
    }

    #[test]
    fn the_rate_falls_along_a_cosine_to_0() {
        // (1 + cos(pi/4)) / 2 = 0.853553…, at half 0.5.
        let [one, quarter, half, end, beyond] = factors(Shape::Cosine, 2, 10, [2, 4, 6, 10, 10]);
        assert_eq!((one, (quarter * 1e6).round()), (1.0, 853_553.0));
        assert!((half - 0.5).abs() < 1e-15 && end.abs() < 1e-15 && beyond.abs() < 1e-15);
    }

    #[test]
    fn more_warming_up_than_steps_is_no_division_by_0() {
        for kind in [Shape::ConstantWithWarmup, Shape::Linear, Shape::Cosine] {
            assert_eq!(Schedule { kind, warmup_steps: 8 }.factor(4, 4), 0.5);
            assert!(Schedule { kind, warmup_steps: 4 }.factor(4, 4).is_finite());
        }
    }
}
