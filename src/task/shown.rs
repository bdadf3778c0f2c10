//! A document as a person reads it: the question without its examples, the options, the right answer, and what a model chose.

use super::Document;
use super::metric::{first_largest, normed};
use super::prompt::Item;
use crate::score::DocScore;

/// What a document asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub question: String,
    /// Nothing where text is generated.
    pub options: Vec<String>,
    /// The right option, the true ones, or the target text.
    pub right: String,
}

impl Document {
    pub fn shown(&self) -> Shown {
        let (question, options, right) = match &self.item {
            Item::Choice { question, choices, gold } => (question.clone(), choices.clone(), choices[*gold].clone()),
            Item::Partial { beginnings, ending, gold } => {
                let options: Vec<String> = beginnings.iter().map(|beginning| format!("{beginning}{ending}")).collect();
                (String::new(), options.clone(), options[*gold].clone())
            }
            Item::True { question, several, .. } => {
                let of_true: Vec<&str> =
                    several.iter().filter(|claim| claim.is_true).map(|claim| claim.text.as_str()).collect();
                let options = several.iter().map(|claim| claim.text.clone()).collect();
                (question.clone(), options, of_true.join(" / "))
            }
            Item::Text { question, target } => (question.clone(), Vec::new(), target.clone()),
        };
        Shown { question, options, right }
    }

    /// What a model chose by `metric`: the option that it found likeliest, or its text. Empty if `score` is not of this
    /// document.
    pub fn picked(&self, metric: &str, score: &DocScore) -> String {
        let sums: Vec<f64> = score.requests.iter().map(|request| request.ll).collect();
        let options = self.shown().options;
        let picked = match &self.item {
            Item::Choice { choices, .. } if metric == "acc_norm" => first_largest(&normed(&sums, choices)),
            Item::Choice { .. } | Item::Partial { .. } => first_largest(&sums),
            // mc2's requests are the last; leaderboard-v1 asks mc1's before them.
            Item::True { several, .. } => first_largest(&sums[sums.len().saturating_sub(several.len())..]),
            Item::Text { .. } => return score.output.clone().unwrap_or_default(),
        };
        options.get(picked).cloned().unwrap_or_default()
    }
}
