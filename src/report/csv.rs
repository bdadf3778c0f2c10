//! A table as CSV (RFC 4180) in plain columns: a line a model and task, and one for the average. Numbers stand alone, so
//! that any reader has them as numbers; what is unknown is empty.

use super::{Figure, Table};

const COLUMNS: &str = "protocol,model,source,held,task,metric,documents,score,stderr,delta,delta_stderr,\
                       low,high,correct,delta_low,delta_high,p,holm,gained,lost,noise\n";

pub fn print(table: &Table) -> String {
    let mut text = COLUMNS.to_owned();
    for row in &table.rows {
        let mut line = |task: &str, metric: &str, figure: &Figure| {
            let start = [table.protocol, &row.model, row.source, &row.held, task, metric].map(quote);
            text.push_str(&format!("{},{}\n", start.join(","), numbers(figure)));
        };
        for (head, figure) in table.heads.iter().zip(&row.figures) {
            line(&head.task, &head.metric, figure);
        }
        line("average", "mean", &row.average);
    }
    text
}

/// The figures in the order of [`COLUMNS`].
fn numbers(figure: &Figure) -> String {
    let Figure { documents, score, stderr, delta, delta_stderr, low, high, correct, .. } = figure;
    let Figure { delta_low, delta_high, p, holm, gained, lost, noise, .. } = figure;
    let first = [documents, score, stderr, delta, delta_stderr, low, high, correct];
    let second = [delta_low, delta_high, p, holm, gained, lost];
    let known = first.into_iter().chain(second).map(|number| number.as_deref().unwrap_or_default());
    known.chain([noise.unwrap_or_default()]).collect::<Vec<_>>().join(",")
}

fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn a_line_a_model_and_task() {
        let text = print(&Table::of(&comparison()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 3 * 3);
        assert_eq!(
            lines[1],
            "leaderboard-v1,base,measured,f32,arc_challenge,acc_norm,40,56.10,1.45,,,53.10,58.10,22,,,,,,,"
        );
        assert_eq!(
            lines[4],
            "leaderboard-v1,ft,measured,f32,arc_challenge,acc_norm,40,57.52,1.45,+1.42,0.91,54.52,59.52,22,-0.36,+3.20,0.1183,0.2366,3,2,no"
        );
        assert_eq!(
            lines[7],
            "leaderboard-v1,\"a,\"\"b\"\"|c\",published,f32,arc_challenge,acc_norm,,55.60,,-0.10,,,,,,,2.0e-7,,,,yes"
        );
        assert_eq!(lines[8], "leaderboard-v1,\"a,\"\"b\"\"|c\",published,f32,own,acc,,,,,,,,,,,,,,,");
    }
}
