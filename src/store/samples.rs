//! Every document of some runs as JSON Lines, in evaluation order, for people who look at answers one by one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::disk;
use crate::score::{DocScore, RequestScore};

#[derive(Serialize)]
struct Sample<'a> {
    task: &'a str,
    subtask: &'a str,
    doc: usize,
    requests: &'a [RequestScore],
    output: &'a Option<String>,
    metrics: &'a BTreeMap<String, f64>,
}

/// Writes `scores` to `path`: `{"task","subtask","doc","requests":[{"ll","is_greedy","cont_ids"}],"output","metrics"}`.
pub fn write<'a>(path: &Path, scores: impl Iterator<Item = &'a DocScore>) -> Result<()> {
    if let Some(folder) = path.parent() {
        disk::make_folder(folder)?;
    }
    disk::replace_with(path, |temporary| {
        let mut file = std::io::BufWriter::new(std::fs::File::create(temporary)?);
        for DocScore { task, subtask, doc, digest: _, requests, output, metrics } in scores {
            let sample = Sample { task, subtask, doc: *doc, requests, output, metrics };
            serde_json::to_writer(&mut file, &sample).context("a score that JSON can't hold")?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_reference_s_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/samples.jsonl");
        let score = DocScore {
            task: "arc_challenge".to_owned(),
            subtask: "arc_challenge".to_owned(),
            doc: 3,
            digest: "x".to_owned(),
            requests: vec![RequestScore { ll: -2.5, is_greedy: false, cont_ids: vec![1] }],
            output: None,
            metrics: BTreeMap::from([("acc".to_owned(), 0.0)]),
        };
        write(&path, [&score].into_iter()).unwrap();
        let expected = "{\"task\":\"arc_challenge\",\"subtask\":\"arc_challenge\",\"doc\":3,\"requests\":[{\"ll\":-2.5,\
                        \"is_greedy\":false,\"cont_ids\":[1]}],\"output\":null,\"metrics\":{\"acc\":0.0}}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}
