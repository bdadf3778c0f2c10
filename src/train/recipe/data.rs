//! `data` of a recipe: a list of files, or a table that says more of them.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::dialogue::check::Limits;
use crate::dialogue::pieces::Long;

/// What a run learns from: `data = ["a.jsonl"]`, or a table `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    pub files: Vec<WeightedFile>,
    /// What becomes of dialogues longer than `max_tokens`.
    pub long: Long,
    /// Shorter ones share a row of at most `max_tokens`, none seeing another.
    #[serde(skip_serializing_if = "is_false")]
    pub pack: bool,
    /// They decide whether a run begins, not what it does.
    #[serde(skip_serializing)]
    pub limits: Limits,
}

/// A file of dialogues: `"a.jsonl"`, or `{ path = "a.jsonl", weight = 0.5 }`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightedFile {
    pub path: PathBuf,
    /// How often an epoch has each of its dialogues: 2 twice, 0.5 half of them once, 1.5 all of them and half of them
    /// again.
    pub weight: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireData {
    files: Vec<WeightedFile>,
    #[serde(default)]
    long: Long,
    #[serde(default)]
    pack: bool,
    #[serde(default)]
    limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFile {
    path: PathBuf,
    #[serde(default = "one")]
    weight: f64,
}

fn one() -> f64 {
    1.0
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Data {
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.files.is_empty(), "`data` lists no file");
        for file in &self.files {
            let (path, weight) = (file.path.display(), file.weight);
            ensure!(
                0.0 < weight && weight <= 1000.0,
                "`[data] files`: the weight of {path} is {weight}; expected a number above 0, at most 1000"
            );
        }
        self.limits.check()
    }
}

// Not `untagged`: such an enum would hide what is wrong inside it.
impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Data, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of files, or a table with `files`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Data, A::Error> {
        let files = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        Ok(Data { files, long: Long::default(), pack: false, limits: Limits::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Data, A::Error> {
        let WireData { files, long, pack, limits } = WireData::deserialize(MapAccessDeserializer::new(table))?;
        Ok(Data { files, long, pack, limits })
    }
}

impl<'de> Deserialize<'de> for WeightedFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightedFile, D::Error> {
        deserializer.deserialize_any(FileVisitor)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = WeightedFile;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a path, or a table with `path` and `weight`")
    }

    fn visit_str<E>(self, path: &str) -> Result<WeightedFile, E> {
        Ok(WeightedFile { path: PathBuf::from(path), weight: 1.0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<WeightedFile, A::Error> {
        let WireFile { path, weight } = WireFile::deserialize(MapAccessDeserializer::new(table))?;
        Ok(WeightedFile { path, weight })
    }
}
