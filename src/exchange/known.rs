//! What others call the six tasks: the cards that the Open LLM Leaderboard wrote, and lm-evaluation-harness 0.4.13.

/// A task under others' names.
#[derive(Debug, PartialEq)]
pub struct Known {
    /// Ours.
    pub task: &'static str,
    /// On a model card, and how that spells its shots.
    pub card: &'static str,
    pub shot: &'static str,
    /// The data set's configuration on the hub; MMLU's subjects are configurations too.
    pub config: Option<&'static str>,
    /// The harness's; MMLU's subjects are `mmlu_<subject>`.
    pub harness: &'static str,
    /// Of the harness's task (of the group `mmlu` it is 2).
    pub version: f64,
    /// Those of our metrics that the harness reports, in its order.
    pub metrics: &'static [&'static str],
}

/// In the leaderboard's order.
pub const KNOWN: [Known; 6] = [
    Known {
        task: "arc_challenge",
        card: "AI2 Reasoning Challenge",
        shot: "Shot",
        config: Some("ARC-Challenge"),
        harness: "arc_challenge",
        version: 1.0,
        metrics: &["acc", "acc_norm"],
    },
    Known {
        task: "hellaswag",
        card: "HellaSwag",
        shot: "Shot",
        config: None,
        harness: "hellaswag",
        version: 1.0,
        metrics: &["acc", "acc_norm"],
    },
    Known {
        task: "mmlu",
        card: "MMLU",
        shot: "Shot",
        config: Some("all"),
        harness: "mmlu",
        version: 1.0,
        metrics: &["acc"],
    },
    Known {
        task: "truthfulqa",
        card: "TruthfulQA",
        shot: "shot",
        config: Some("multiple_choice"),
        harness: "truthfulqa_mc2",
        version: 3.0,
        metrics: &["acc"],
    },
    Known {
        task: "winogrande",
        card: "Winogrande",
        shot: "shot",
        config: Some("winogrande_xl"),
        harness: "winogrande",
        version: 1.0,
        metrics: &["acc"],
    },
    Known {
        task: "gsm8k",
        card: "GSM8k",
        shot: "shot",
        config: Some("main"),
        harness: "gsm8k",
        version: 3.0,
        metrics: &["exact_match,strict-match", "exact_match,flexible-extract"],
    },
];

/// The names of `task`; of `mmlu/astronomy` those of `mmlu`. None for a task that is not one of the six.
pub fn known(task: &str) -> Option<&'static Known> {
    let base = task.split('/').next();
    KNOWN.iter().find(|known| Some(known.task) == base)
}

impl Known {
    /// What the harness calls the task, or its `subtask` where that is not the whole task.
    pub fn leaf(&self, subtask: &str) -> String {
        if subtask == self.task { self.harness.to_owned() } else { format!("{}_{subtask}", self.harness) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::task::Task;

    #[test]
    fn the_six_are_known_with_the_metric_that_is_reported() {
        assert_eq!(KNOWN.map(|known| known.task), crate::published::COLUMNS.map(|(task, _)| task));
        for names in &KNOWN {
            let task = Task::load(names.task, None).unwrap();
            assert!(task.hub().is_some(), "{}", names.task);
            let metric = task.metric(Protocol::LmEvalLatest);
            // mc2 is what the harness calls acc of truthfulqa_mc2.
            assert!(metric == "mc2" || names.metrics.contains(&metric), "{}: {metric}", names.task);
        }
        assert_eq!(known("mmlu/astronomy").map(|known| known.leaf("astronomy")).as_deref(), Some("mmlu_astronomy"));
        assert_eq!(known("truthfulqa").unwrap().leaf("truthfulqa"), "truthfulqa_mc2");
        assert_eq!(known("own"), None);
    }
}
