//! Tokens that stand in a text already are made less likely where the model's generation config says so: the penalised
//! sampling of CTRL (Keskar et al., arXiv 1909.05858, section 4.1) as transformers' `RepetitionPenaltyLogitsProcessor`
//! has it. It acts on logits; on log-probabilities, of which none is above 0, it would be another rule.

use std::collections::HashSet;

/// Divides what is above 0 by `penalty` and multiplies the rest, for each token of `text` once.
pub fn penalise(logits: &mut [f32], text: impl Iterator<Item = u32>, penalty: f32) {
    let seen: HashSet<u32> = text.collect();
    for token in seen {
        let logit = &mut logits[token as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_of_the_text_is_penalised_once() {
        let mut logits = [3.0, -2.0, 1.0, -1.0, 0.0];
        penalise(&mut logits, [1, 0, 0, 4, 1].into_iter(), 2.0);
        assert_eq!(logits, [1.5, -4.0, 1.0, -1.0, 0.0]);
    }
}
