//! A gate's plan as text: what to ask, and what was assumed.

use super::percent;
use crate::gate::plan::{Assumed, Plan};

pub fn print(plan: &Plan) -> String {
    let mut text = String::new();
    let (margin, power) = (percent(plan.margin), whole(plan.power));
    let documents = plan.sight.documents;
    let asked = format!(
        "a margin of {margin} points of the average with {power} % power (one-sided at {} %)",
        whole(plan.confidence)
    );
    text.push_str(&match (plan.enough, plan.limit) {
        (true, Some(limit)) => format!("{asked} takes {documents} documents: --limit {limit}\n"),
        (true, None) => format!("{asked} takes all {documents} documents, without --limit\n"),
        (false, _) => format!(
            "{asked} takes more than there is: all {documents} documents show a margin of {} points, and this one with {} % \
             power\n",
            percent(plan.smallest_margin),
            whole(plan.sight.at_margin)
        ),
    });
    text.push_str("\n  task           documents  of all  deviation  share of the variance\n");
    for part in &plan.parts {
        text.push_str(&format!(
            "  {:<13}  {:>9}  {:>6}  {:>9.3}  {:>19} %\n",
            part.task,
            part.documents,
            part.all,
            part.deviation,
            whole(part.share)
        ));
    }
    text.push_str(&format!("\nAssumed: {}.\n", assumed(plan.assumed)));
    text.push_str(
        "Deviation: of one document's difference, between 0 and 1. --limit takes as many documents of each task and of each MMLU \
         subject; more of the tasks with the largest shares would help most. A gate says its power again from what it \
         measured.\n",
    );
    text
}

fn assumed(assumed: Assumed) -> String {
    let of_tasks =
        |what: &str| format!("the models differ as {what}; documents are drawn from all that could be asked");
    match assumed {
        Assumed::FineTune => of_tasks(
            "a fine-tune and its base: 8 % of ARC's documents flip, 4 of HellaSwag's, 10 of MMLU's and Winogrande's, 20 of \
             GSM8K's; TruthfulQA's shares with a standard deviation of 0.09",
        ),
        Assumed::ReRun => of_tasks(
            "float16 and bfloat16 of the same weights (the noise floor of 232 published pairs, results/published)",
        ),
        Assumed::Flips(share) => of_tasks(&format!(
            "you said: {} % of the documents of every task that counts right answers flip; TruthfulQA's shares with a standard \
             deviation of 0.09",
            whole(share)
        )),
    }
}

/// A share in percent with one decimal.
fn whole(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::plan::plan;

    #[test]
    fn it_says_what_to_ask_and_why() {
        let text = print(&plan(0.01, 0.8, 0.975, Assumed::FineTune).unwrap());
        assert!(
            text.starts_with("a margin of 1.00 points of the average with 80.0 % power (one-sided at 97.5 %) takes "),
            "{text}"
        );
        assert!(
            text.contains(": --limit ")
                && text.contains("\n  gsm8k ")
                && text.contains("Assumed: the models differ as a fine-tune"),
            "{text}"
        );
        let text = print(&plan(0.001, 0.8, 0.975, Assumed::Flips(0.123)).unwrap());
        assert!(
            text.contains("takes more than there is: all 28659 documents") && text.contains("12.3 % of the documents"),
            "{text}"
        );
        let text = print(&plan(0.00857, 0.8, 0.975, Assumed::FineTune).unwrap());
        assert!(text.contains("documents"), "{text}");
    }
}
