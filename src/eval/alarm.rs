//! The dead-scorer alarm: a backend that gives no real probabilities scores exact chance and says nothing (llama.cpp's
//! server did, issue 27174). Answers that are all alike over many documents are told, not hidden.

use crate::score::DocScore;
use crate::task::first_largest;

/// Fewer documents may well be alike by chance.
pub const ENOUGH: usize = 20;

/// What is suspicious about the documents of a run.
pub fn warnings(scores: &[DocScore]) -> Vec<String> {
    let mut warnings = Vec::new();
    let choices: Vec<Vec<f64>> = scores
        .iter()
        .map(|score| score.requests.iter().map(|request| request.ll).collect::<Vec<f64>>())
        .filter(|sums| sums.len() > 1)
        .collect();
    let outputs: Vec<&str> = scores.iter().filter_map(|score| score.output.as_deref()).collect();
    if choices.len() >= ENOUGH {
        let n = choices.len();
        if choices.iter().flatten().all(|sum| *sum == choices[0][0]) {
            warnings.push(format!("dead scorer: every log-likelihood of {n} documents is {}", choices[0][0]));
        } else if choices.iter().all(|sums| first_largest(sums) == 0) {
            warnings.push(format!("dead scorer? in all of {n} documents the first choice is the likeliest"));
        }
    }
    if outputs.len() >= ENOUGH && outputs.iter().all(|output| *output == outputs[0]) {
        warnings.push(format!("dead scorer? all of {} generated answers are {:?}", outputs.len(), outputs[0]));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::score::RequestScore;

    fn score(sums: &[f64], output: Option<&str>) -> DocScore {
        let request = |&ll: &f64| RequestScore { ll, is_greedy: false, cont_ids: vec![1] };
        DocScore {
            task: "t".to_owned(),
            subtask: "t".to_owned(),
            doc: 0,
            digest: String::new(),
            requests: sums.iter().map(request).collect(),
            output: output.map(str::to_owned),
            metrics: BTreeMap::new(),
        }
    }

    #[test]
    fn answers_all_alike_are_told() {
        let dead = vec![score(&[-1.0, -1.0], None); ENOUGH];
        assert!(warnings(&dead)[0].contains("every log-likelihood of 20"));
        let first: Vec<DocScore> = (0..ENOUGH).map(|i| score(&[-1.0, -2.0 - i as f64], None)).collect();
        assert!(warnings(&first)[0].contains("first choice"));
        let alike = vec![score(&[], Some("7")); ENOUGH];
        assert!(warnings(&alike)[0].contains("\"7\""));
    }

    #[test]
    fn few_documents_and_living_scorers_raise_no_alarm() {
        assert!(warnings(&vec![score(&[-1.0, -1.0], None); ENOUGH - 1]).is_empty());
        let mut living: Vec<DocScore> = (0..ENOUGH).map(|i| score(&[-1.0, -2.0 - i as f64], None)).collect();
        living[7] = score(&[-2.0, -1.0], None);
        assert!(warnings(&living).is_empty());
        let mut outputs = vec![score(&[], Some("7")); ENOUGH];
        outputs[3] = score(&[], Some("8"));
        assert!(warnings(&outputs).is_empty());
    }
}
