//! What a finished run was: written last, so that its being there means that every document is.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::model_id::ModelId;
use crate::protocol::Protocol;
use crate::stats::Estimate;

/// The version of the format in `results/README.md`.
pub const SCHEMA: u32 = 1;

/// One model on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema: u32,
    /// The name it was asked for by.
    pub model: String,
    pub id: ModelId,
    pub task: String,
    /// sha256 of the task file.
    pub definition: String,
    pub protocol: Protocol,
    /// Where the rows came from.
    pub data: String,
    pub chat_template: bool,
    /// Documents asked for per task and subtask; all of them without one.
    pub limit: Option<usize>,
    pub documents: usize,
    /// Whether the score is not the benchmark's: a bundled slice, a limit, or other than all of its documents.
    pub partial: bool,
    /// The metric that the protocol reports, one of `estimates`.
    pub metric: String,
    /// Fractions.
    pub estimates: BTreeMap<String, Estimate>,
    /// What is doubtful about it.
    pub warnings: Vec<String>,
    pub fireval: String,
    /// When it was finished, in UTC.
    pub date: String,
    /// Seconds and tokens of the call that finished it; documents that were stored already cost none.
    pub seconds: f64,
    pub tokens: u64,
}

impl Manifest {
    /// Reads `path`; none if there is no such file.
    pub fn read(path: &Path) -> Result<Option<Manifest>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        let place = || {
            let again = "it is made again by `fireval eval` (or `import`) of its model";
            format!("{}: not a run's manifest; {again}", path.display())
        };
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(place)?;
        ensure!(
            manifest.schema == SCHEMA,
            "{}: schema {} where this fireval writes {SCHEMA}",
            path.display(),
            manifest.schema
        );
        manifest.reported().with_context(place)?;
        Ok(Some(manifest))
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and finite numbers serialise") + "\n"
    }

    /// The reported estimate.
    pub fn reported(&self) -> Result<Estimate> {
        let estimate = self.estimates.get(&self.metric);
        estimate.copied().with_context(|| format!("{}: no estimate of its metric `{}`", self.task, self.metric))
    }

    /// Whether `other` says the same, whenever and however fast it was made.
    pub fn same_outcome(&self, other: &Manifest) -> bool {
        let plain = |manifest: &Manifest| Manifest {
            model: String::new(),
            fireval: String::new(),
            date: String::new(),
            seconds: 0.0,
            tokens: 0,
            ..manifest.clone()
        };
        plain(self) == plain(other)
    }
}

/// Now, as `2023-12-20T12:45:07Z`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// Seconds since 1970 as a date of the Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 1 March of year 0
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A manifest for tests.
    pub fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            model: "base".to_owned(),
            id: ModelId {
                weights: "w".to_owned(),
                adapter: None,
                tokenizer: "t".to_owned(),
                dtype: "f32".to_owned(),
                quantization: None,
                engine: "e".to_owned(),
            },
            task: "arc_challenge".to_owned(),
            definition: "d".to_owned(),
            protocol: Protocol::LeaderboardV1,
            data: "bundled slice".to_owned(),
            chat_template: false,
            limit: Some(8),
            documents: 8,
            partial: true,
            metric: "acc_norm".to_owned(),
            estimates: BTreeMap::from([(
                "acc_norm".to_owned(),
                Estimate { value: 0.5, stderr: Some(1.0 / 3.0), n: 8 },
            )]),
            warnings: Vec::new(),
            fireval: "0.1.0".to_owned(),
            date: date(0),
            seconds: 1.5,
            tokens: 100,
        }
    }

    #[test]
    fn dates_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_703_076_307), "2023-12-20T12:45:07Z");
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arc.json");
        assert_eq!(Manifest::read(&path).unwrap(), None);
        disk_write(&path, &manifest().to_json());
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest()));
        assert_eq!(manifest().reported().unwrap().value, 0.5);
        let error = |text: &str| {
            disk_write(&path, text);
            format!("{:#}", Manifest::read(&path).unwrap_err())
        };
        assert!(error("{").contains("arc.json"));
        assert!(error(&manifest().to_json().replace("\"schema\": 1", "\"schema\": 2")).contains("schema 2"));
        assert!(error(&manifest().to_json().replace("\"task\"", "\"tusk\"")).contains("tusk"));
        let other = error(&manifest().to_json().replace("\"metric\": \"acc_norm\"", "\"metric\": \"acc\""));
        assert!(other.contains("arc.json") && other.contains("no estimate of its metric `acc`"), "{other}");
    }

    fn disk_write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_same_outcome_may_have_another_date() {
        let later = Manifest { date: date(9), seconds: 9.0, ..manifest() };
        assert!(later.same_outcome(&manifest()));
        assert!(!Manifest { limit: None, ..manifest() }.same_outcome(&manifest()));
    }
}
