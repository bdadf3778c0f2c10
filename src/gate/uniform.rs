//! Answers that are all alike: the same choice likeliest everywhere, every log-likelihood one number, the same text each
//! time. A dead scorer answers so (llama.cpp's server did, issue 27174), and so does a model that repeats itself; either way
//! the score says nothing of it.

use std::collections::HashMap;
use std::hash::Hash;

use crate::eval::alarm::ENOUGH;
use crate::score::DocScore;
use crate::task::first_largest;

/// What is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The choice of this index, from 0, is the likeliest.
    Pick(usize),
    /// All log-likelihoods of a document are one number.
    LogLikelihood,
    Text,
}

/// The largest share of documents that are answered alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uniform {
    pub kind: Kind,
    pub share: f64,
    pub documents: usize,
}

/// The most uniform that a task's answers are; none for fewer than [`ENOUGH`] documents.
pub fn uniform(scores: &[DocScore]) -> Option<Uniform> {
    let mut choices: Vec<Vec<f64>> = scores.iter().map(sums).collect();
    choices.retain(|sums| sums.len() > 1);
    let texts: Vec<&str> = scores.iter().filter_map(|score| score.output.as_deref()).collect();
    let flat = choices.iter().filter(|sums| sums.iter().all(|sum| *sum == sums[0])).count();
    // TruthfulQA's true answers stand first, so that a good model picks the first everywhere.
    let shuffled = !scores.iter().any(|score| score.metrics.contains_key("mc2"));
    let picks = if shuffled { choices.iter().map(|sums| first_largest(sums)).collect() } else { Vec::new() };
    let found = [
        (flat > 0).then_some((Kind::LogLikelihood, flat, choices.len())),
        commonest(&picks).map(|(pick, count)| (Kind::Pick(*pick), count, choices.len())),
        commonest(&texts).map(|(_, count)| (Kind::Text, count, texts.len())),
    ];
    let found = found.into_iter().flatten().filter(|(_, _, documents)| *documents >= ENOUGH);
    let shares =
        found.map(|(kind, count, documents)| Uniform { kind, share: count as f64 / documents as f64, documents });
    // The first of equals: where every number is one, the first choice is the likeliest too, and that says less.
    shares.reduce(|best, other| if other.share > best.share { other } else { best })
}

fn sums(score: &DocScore) -> Vec<f64> {
    score.requests.iter().map(|request| request.ll).collect()
}

/// The commonest value and how often it is there.
fn commonest<T: Eq + Hash + Ord>(values: &[T]) -> Option<(&T, usize)> {
    let mut counts: HashMap<&T, usize> = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by(|(a, counted), (b, other)| counted.cmp(other).then(b.cmp(a)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::score::RequestScore;

    fn score(sums: &[f64], output: Option<&str>, metric: &str) -> DocScore {
        let request = |&ll: &f64| RequestScore { ll, is_greedy: false, cont_ids: vec![1] };
        DocScore {
            task: "t".to_owned(),
            subtask: "t".to_owned(),
            doc: 0,
            digest: String::new(),
            requests: sums.iter().map(request).collect(),
            output: output.map(str::to_owned),
            metrics: BTreeMap::from([(metric.to_owned(), 1.0)]),
        }
    }

    #[test]
    fn the_commonest_answer_is_counted() {
        let mut scores: Vec<DocScore> =
            (0..24).map(|i| score(&[-2.0, -1.0, -3.0 - f64::from(i)], None, "acc")).collect();
        scores.push(score(&[-1.0, -2.0], None, "acc"));
        let found = uniform(&scores).unwrap();
        assert_eq!((found.kind, found.share, found.documents), (Kind::Pick(1), 24.0 / 25.0, 25));
        assert_eq!(uniform(&scores[..19]), None, "too few");
        let texts: Vec<DocScore> = (0..20).map(|i| score(&[], Some(["7", "8"][i / 15]), "exact")).collect();
        let found = uniform(&texts).unwrap();
        assert_eq!((found.kind, found.share), (Kind::Text, 0.75));
    }

    #[test]
    fn dead_scorers_are_told_by_their_one_number() {
        let dead = vec![score(&[-1.0, -1.0], None, "acc"); 20];
        assert_eq!(uniform(&dead).unwrap().kind, Kind::LogLikelihood);
        let dead = vec![score(&[-1.0, -1.0, -1.0], None, "mc2"); 20];
        assert_eq!(uniform(&dead).unwrap().share, 1.0);
    }

    #[test]
    fn a_good_model_of_truthfulqa_is_not_uniform() {
        let first = vec![score(&[-1.0, -2.0, -3.0], None, "mc2"); 40];
        assert_eq!(uniform(&first), None);
    }
}
