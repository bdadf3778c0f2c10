//! Dynamic loss scaling, for numbers in fp16: the loss is multiplied before its gradient is made, so that small gradients
//! do not vanish, and the gradient divided after. Rules and numbers of torch's `GradScaler` (Micikevicius et al., Mixed
//! Precision Training, arXiv 1710.03740, section 3.2).

use serde::{Deserialize, Serialize};

const START: f32 = 65_536.0;
const GROWTH: f32 = 2.0;
const BACKOFF: f32 = 0.5;
/// Finite steps in a row before the scale grows.
const PATIENCE: usize = 2000;
/// A larger scale would push gradients of ordinary size out of fp16.
const LARGEST: f32 = 16_777_216.0;

/// What the loss is multiplied by. Powers of two: where nothing overflows or vanishes, no bit depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaler {
    pub scale: f32,
    /// Finite steps in a row.
    finite: usize,
}

impl Default for Scaler {
    fn default() -> Scaler {
        Scaler { scale: START, finite: 0 }
    }
}

impl Scaler {
    /// After a step whose gradient was finite, or was not.
    pub fn update(&mut self, is_finite: bool) {
        if !is_finite {
            *self = Scaler { scale: (self.scale * BACKOFF).max(1.0), finite: 0 };
            return;
        }
        self.finite += 1;
        if self.finite == PATIENCE {
            *self = Scaler { scale: (self.scale * GROWTH).min(LARGEST), finite: 0 };
        }
    }

    /// Whether a smaller scale may help where a gradient was not finite.
    pub fn can_fall(&self) -> bool {
        self.scale > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_after_a_while() {
        let mut scaler = Scaler::default();
        scaler.update(false);
        assert_eq!(scaler.scale, 32_768.0);
        (0..PATIENCE - 1).for_each(|_| scaler.update(true));
        assert_eq!(scaler.scale, 32_768.0);
        scaler.update(true);
        assert_eq!(scaler.scale, 65_536.0);
        (0..PATIENCE - 1).for_each(|_| scaler.update(true));
        scaler.update(false);
        (0..PATIENCE - 1).for_each(|_| scaler.update(true));
        assert_eq!(scaler.scale, 32_768.0, "counted anew after an overflow");
        (0..40).for_each(|_| scaler.update(false));
        assert_eq!((scaler.scale, scaler.can_fall()), (1.0, false));
        (0..40 * PATIENCE).for_each(|_| scaler.update(true));
        assert_eq!(scaler.scale, LARGEST);
    }
}
