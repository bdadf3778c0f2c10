//! A table as JSON. Written by hand so that a number has the digits of the other formats (`56.10`, not `56.1`).

use super::{Figure, Table};

pub fn print(table: &Table) -> String {
    let rows: Vec<String> = table
        .rows
        .iter()
        .map(|row| {
            let scores: Vec<String> = table
                .heads
                .iter()
                .zip(&row.figures)
                .map(|(head, figure)| format!("        {}: {}", text(&head.task), object(&head.metric, figure)))
                .collect();
            format!(
                "    {{\n      \"model\": {},\n      \"source\": {},\n      \"held\": {},\n      \"scores\": {{\n{}\n      }},\n      \
                 \"average\": {}\n    }}",
                text(&row.model),
                text(row.source),
                text(&row.held),
                scores.join(",\n"),
                object("mean", &row.average)
            )
        })
        .collect();
    let notes: Vec<String> = table.notes.iter().map(|note| text(note)).collect();
    format!(
        "{{\n  \"protocol\": {},\n  \"models\": [\n{}\n  ],\n  \"notes\": [{}]\n}}\n",
        text(table.protocol),
        rows.join(",\n"),
        notes.join(", ")
    )
}

fn object(metric: &str, figure: &Figure) -> String {
    let Figure { documents, score, stderr, delta, delta_stderr, low, high, correct, .. } = figure;
    let Figure { delta_low, delta_high, p, holm, gained, lost, noise, .. } = figure;
    let numbers = [
        ("documents", documents),
        ("score", score),
        ("stderr", stderr),
        ("low", low),
        ("high", high),
        ("correct", correct),
        ("delta", delta),
        ("delta_stderr", delta_stderr),
        ("delta_low", delta_low),
        ("delta_high", delta_high),
        ("p", p),
        ("holm", holm),
        ("gained", gained),
        ("lost", lost),
    ];
    // A JSON number has no leading plus.
    let number =
        |value: &Option<String>| value.as_deref().map_or("null".to_owned(), |d| d.trim_start_matches('+').to_owned());
    let numbers: Vec<String> = numbers.iter().map(|(key, value)| format!("\"{key}\": {}", number(value))).collect();
    let noise = noise.map_or("null", |noise| if noise == "yes" { "true" } else { "false" });
    format!("{{\"metric\": {}, {}, \"noise\": {noise}}}", text(metric), numbers.join(", "))
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a string always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn it_is_json_with_the_digits_of_the_table() {
        let printed = print(&Table::of(&comparison()));
        let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let figure = &json["models"][1]["scores"]["arc_challenge"];
        assert_eq!((figure["score"].as_f64(), figure["delta"].as_f64()), (Some(57.52), Some(1.42)));
        assert!(printed.contains("\"score\": 56.10,"), "{printed}");
        assert!(json["models"][2]["scores"]["own"]["score"].is_null());
        assert_eq!((figure["p"].as_f64(), figure["gained"].as_u64()), (Some(0.1183), Some(3)));
        assert_eq!(json["models"][2]["scores"]["arc_challenge"]["noise"], true);
        assert_eq!(json["models"][2]["model"], "a,\"b\"|c");
        assert_eq!(json["notes"][0], "a \"note\"");
    }
}
