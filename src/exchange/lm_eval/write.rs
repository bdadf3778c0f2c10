//! Stored runs as the harness's files.
//!
//! What the harness says of its own process and tokenizer is left out or empty, and what a document says is the row as it
//! was at hand: a data set with fewer columns has other `doc_hash`es. Everything else has the harness's keys and values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::super::known::known;
use super::leaf::{Leaf, Measured, stderr};
use crate::compare::TaskFile;
use crate::digest::sha256_hex;
use crate::disk;
use crate::eval::Run;
use crate::protocol::Protocol;
use crate::python::float_repr;
use crate::stats::Estimate;

/// A model's runs, ready to be written.
pub struct Export<'a> {
    pub model: &'a str,
    pub measured: Vec<Measured<'a>>,
    /// The text of the template that documents were asked in.
    pub chat_template: Option<String>,
}

impl Export<'_> {
    /// Writes the files into a folder of the model's name in `folder`, the results last, and returns their paths.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let leaves = self.leaves()?;
        let date = self.date()?;
        let stamp = date.trim_end_matches('Z').replace(':', "-");
        let folder = folder.join(sanitized(self.model));
        disk::make_folder(&folder)?;
        let mut written = Vec::new();
        let mut hashes = Map::new();
        for leaf in &leaves {
            let path = folder.join(format!("samples_{}_{stamp}.jsonl", leaf.name));
            let mut hash = String::new();
            disk::replace_with(&path, |temporary| {
                let mut file = BufWriter::new(File::create(temporary)?);
                hash = leaf.write_samples(&mut file)?;
                Ok(file.flush()?)
            })?;
            hashes.insert(leaf.name.clone(), Value::from(hash));
            written.push(path);
        }
        let results = self.results(&leaves, hashes, date)?;
        let path = folder.join(format!("results_{stamp}.json"));
        disk::replace(&path, (serde_json::to_string_pretty(&results)? + "\n").as_bytes())?;
        written.push(path);
        Ok(written)
    }

    /// When the last of the runs was finished.
    fn date(&self) -> Result<&str> {
        let dates = self.measured.iter().map(|measured| measured.run.manifest.date.as_str());
        dates.max().context("no task to export")
    }

    /// The harness's tasks, in the order of ours.
    fn leaves(&self) -> Result<Vec<Leaf<'_>>> {
        let mut leaves: Vec<Leaf> = Vec::new();
        for measured in &self.measured {
            check_protocol(measured.run)?;
            ensure!(
                TaskFile::of(measured.task) != TaskFile::Changed,
                "{}: its task file is not the built-in one, and lm-evaluation-harness' files would say it is; give the task \
                 another `name`",
                measured.task.name()
            );
            let first = leaves.len();
            for (index, document) in measured.documents.iter().enumerate() {
                match leaves[first..].iter_mut().find(|leaf| leaf.subtask == document.subtask) {
                    Some(leaf) => leaf.indices.push(index),
                    None => leaves.push(Leaf::new(measured, &document.subtask, index)),
                }
            }
        }
        Ok(leaves)
    }

    fn results(&self, leaves: &[Leaf], hashes: Map<String, Value>, date: &str) -> Result<Value> {
        let mut results = Map::new();
        for leaf in leaves {
            results.insert(leaf.name.clone(), leaf.result()?);
        }
        let groups = self.groups(leaves)?;
        results.extend(groups.iter().map(|(name, group)| (name.clone(), group.result.clone())));
        let mut whole = Map::new();
        whole.insert("results".to_owned(), results.into());
        if !groups.is_empty() {
            let group = |(name, group): &(String, Group)| (name.clone(), group.result.clone());
            whole.insert("groups".to_owned(), Value::Object(groups.iter().map(group).collect()));
        }
        let members = groups.iter().map(|(name, group)| (name.clone(), json!(group.members)));
        whole.insert("group_subtasks".to_owned(), Value::Object(members.collect()));
        let lowest: Vec<&(String, Group)> = groups.iter().filter(|(_, group)| group.of_tasks).collect();
        let shots = |leaf: &Leaf| json!(leaf.of.task.shots());
        whole.insert("configs".to_owned(), sorted(leaves, Leaf::config, &[], json!(null)));
        let versions = |leaf: &Leaf| json!(leaf.known.map_or(f64::from(leaf.of.task.version()), |known| known.version));
        whole.insert("versions".to_owned(), sorted(leaves, versions, &groups.iter().collect::<Vec<_>>(), json!("2")));
        let group_shots = json!(lowest.first().map(|(_, group)| group.shots));
        whole.insert("n-shot".to_owned(), sorted(leaves, shots, &lowest, group_shots));
        whole.insert("higher_is_better".to_owned(), sorted(leaves, Leaf::better, &lowest, json!({"acc": true})));
        let samples = |leaf: &Leaf| (leaf.name.clone(), leaf.counts());
        whole.insert("n-samples".to_owned(), Value::Object(leaves.iter().map(samples).collect()));
        whole.extend(self.circumstances(hashes, date)?);
        Ok(whole.into())
    }

    /// How it was run.
    fn circumstances(&self, hashes: Map<String, Value>, date: &str) -> Result<Map<String, Value>> {
        let manifest = &self.measured[0].run.manifest;
        let held = manifest.id.quantization.as_ref();
        let quantization = held.map(|held| format!(",quantization={held}")).unwrap_or_default();
        let seconds: f64 = self.measured.iter().map(|measured| measured.run.manifest.seconds).sum();
        let hash = |text: &Option<String>| text.as_ref().map(|text| sha256_hex(text.as_bytes()));
        let value = json!({
            "config": {
                "model": "fireval",
                "model_args": format!("pretrained={},dtype={}{quantization}", self.model, manifest.id.dtype),
                "model_dtype": manifest.id.dtype,
                "model_sha": manifest.id.digest(),
                "batch_size": null,
                "batch_sizes": [],
                "device": null,
                "use_cache": null,
                "limit": manifest.limit,
                "bootstrap_iters": 100_000,
                "gen_kwargs": null,
                "random_seed": 0,
                "numpy_seed": 1234,
                "torch_seed": 1234,
                "fewshot_seed": 1234,
            },
            "git_hash": null,
            "date": unix_seconds(date).with_context(|| format!("{date}: not a date of a manifest"))?,
            "pretty_env_info": format!("fireval {}, engine {}", manifest.fireval, manifest.id.engine),
            "transformers_version": "N/A",
            "lm_eval_version": format!("fireval {}", manifest.fireval),
            "upper_git_hash": null,
            "task_hashes": hashes,
            "model_source": "fireval",
            "model_name": self.model,
            "model_name_sanitized": sanitized(self.model),
            "system_instruction": null,
            "system_instruction_sha": null,
            "fewshot_as_multiturn": self.chat_template.is_some(),
            "chat_template": self.chat_template,
            "chat_template_sha": hash(&self.chat_template),
            "total_evaluation_time_seconds": float_repr(seconds),
        });
        match value {
            Value::Object(fields) => Ok(fields),
            _ => bail!("an object was written down"),
        }
    }

    /// Groups of subtasks, inner ones first.
    fn groups(&self, leaves: &[Leaf]) -> Result<Vec<(String, Group)>> {
        let mut groups = Vec::new();
        for measured in self.measured.iter().filter(|measured| measured.task.subject().is_none()) {
            let names = known(measured.task.name());
            let Some(harness) = names.map(|names| names.harness) else { continue };
            let mut inner = Vec::new();
            for (group, members) in measured.task.groups() {
                let inside = |leaf: &&Leaf| {
                    std::ptr::eq(leaf.of, measured) && members.iter().any(|member| member == leaf.subtask)
                };
                let members: Vec<&Leaf> = leaves.iter().filter(inside).collect();
                if !members.is_empty() {
                    let name = format!("{harness}_{group}");
                    let tasks = members.iter().map(|leaf| leaf.name.clone()).collect();
                    inner.push((name.clone(), Group::of(&name, &group.replace('_', " "), &members, tasks, true)?));
                }
            }
            if !inner.is_empty() {
                let all: Vec<&Leaf> = leaves.iter().filter(|leaf| std::ptr::eq(leaf.of, measured)).collect();
                let tasks = inner.iter().map(|(name, _)| name.clone()).collect();
                groups.extend(inner);
                groups.push((harness.to_owned(), Group::of(harness, harness, &all, tasks, false)?));
            }
        }
        Ok(groups)
    }
}

/// A mean over several of the harness's tasks.
struct Group {
    result: Value,
    members: Vec<String>,
    shots: usize,
    /// Whether its members are tasks, not groups.
    of_tasks: bool,
}

impl Group {
    fn of(name: &str, alias: &str, leaves: &[&Leaf], members: Vec<String>, of_tasks: bool) -> Result<Group> {
        let parts: Vec<Estimate> = leaves.iter().map(|leaf| leaf.estimate("acc")).collect::<Result<_>>()?;
        let mean = Estimate::micro_mean(&parts).context("a group has members")?;
        let result = json!({
            "alias": alias,
            "name": name,
            "sample_len": mean.n,
            "acc,none": mean.value,
            "acc_stderr,none": stderr(mean),
            "sample_count": {"acc,none": mean.n},
        });
        Ok(Group { result, members, shots: leaves[0].of.task.shots(), of_tasks })
    }
}

/// A value of each task and `of_group` for each of `groups`, in the order of their names.
fn sorted<'a>(
    leaves: &[Leaf<'a>],
    value: impl Fn(&Leaf<'a>) -> Value,
    groups: &[&(String, Group)],
    of_group: Value,
) -> Value {
    let tasks = leaves.iter().map(|leaf| (leaf.name.clone(), value(leaf)));
    let all: BTreeMap<String, Value> =
        tasks.chain(groups.iter().map(|(name, _)| (name.clone(), of_group.clone()))).collect();
    Value::Object(all.into_iter().collect())
}

/// The harness asks other questions than the leaderboard did; its files say nothing of whose they were.
fn check_protocol(run: &Run) -> Result<()> {
    let protocol = run.manifest.protocol;
    ensure!(
        protocol != Protocol::LeaderboardV1,
        "lm-evaluation-harness 0.4.13 asks {} with other examples than {}, and its files can't say so; export a run made with \
         --protocol {}",
        run.manifest.task,
        protocol.name(),
        Protocol::LmEvalLatest.name()
    );
    Ok(())
}

/// The harness's `sanitize_model_name`.
fn sanitized(name: &str) -> String {
    let mut text = String::new();
    let mut replaced = false;
    for c in name.chars() {
        let bad = "\"<>:/|\\?*[]".contains(c);
        match (bad, replaced) {
            (true, false) => text.push_str("__"),
            (true, true) => {}
            (false, _) => text.push(c),
        }
        replaced = bad;
    }
    text
}

/// Seconds since 1970 of `2023-12-20T12:45:07Z` (Howard Hinnant's `days_from_civil`).
fn unix_seconds(date: &str) -> Option<f64> {
    let number = |from: usize, to: usize| date.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_harness_s_folders() {
        assert_eq!(sanitized("test/scripted-a"), "test__scripted-a");
        assert_eq!(sanitized("scripted:a"), "scripted__a");
        assert_eq!(sanitized("a://b c"), "a__b c");
    }

    #[test]
    fn dates_are_seconds() {
        assert_eq!(unix_seconds("1970-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(unix_seconds("2000-02-29T00:00:00Z"), Some(951_782_400.0));
        assert_eq!(unix_seconds("2023-12-20T12:45:07Z"), Some(1_703_076_307.0));
        assert_eq!(unix_seconds("yesterday"), None);
    }
}
