//! A results file of the harness and its samples, read and checked as far as that goes without the benchmark's rows.
//!
//! What can't be told from the file is refused here with the key that says so: another task version, another number of
//! examples, a chat template (whose prompts can't be made again without the tokenizer), a system instruction, documents
//! picked one by one. That the prompts are the protocol's is told by their digests, once the rows are there (`import`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::known::{KNOWN, Known};
use super::answers::Answers;
use crate::digest::sha256_hex;
use crate::model_id::ModelId;
use crate::project::check_name;
use crate::protocol::Protocol;
use crate::task::Task;

/// One run of the harness: a model on some tasks.
pub struct Recorded {
    /// What `imported:` is followed by.
    pub name: String,
    pub id: ModelId,
    pub protocol: Protocol,
    /// In the file's order.
    pub leaves: Vec<RecordedLeaf>,
    /// The file's tasks that are none of the six.
    pub left_out: Vec<String>,
}

/// One of the harness's tasks.
pub struct RecordedLeaf {
    /// The harness's name.
    pub name: String,
    pub known: &'static Known,
    /// The MMLU subject; the task's own name elsewhere.
    pub subtask: String,
    /// Documents of the split, and how many of them, from the first, were asked.
    pub original: usize,
    pub effective: usize,
    pub answers: Answers,
}

/// A results file, for errors that name the key.
struct Results<'a> {
    path: &'a Path,
    json: Value,
}

impl Recorded {
    /// Reads `path` and the samples in `files`, or those beside it. `name` stands for the file's `model_name`; `protocol`
    /// for the one that the file's examples were drawn by.
    pub fn read(path: &Path, files: &[PathBuf], name: Option<&str>, protocol: Option<Protocol>) -> Result<Recorded> {
        let results = Results::read(path)?;
        results.check_prompts()?;
        let name = name.map_or_else(|| results.text(&["model_name"]).map(str::to_owned), |name| Ok(name.to_owned()))?;
        check_name(&name).with_context(|| results.place(&["model_name"]))?;
        let protocol = results.protocol(protocol)?;
        let mut recorded =
            Recorded { id: results.identity(&name)?, name, protocol, leaves: Vec::new(), left_out: Vec::new() };
        let samples = Samples::find(path, files);
        for task in results.object(&["configs"])?.keys() {
            match place_of(task)? {
                Some((known, subtask)) => {
                    recorded.leaves.push(results.leaf(task, known, subtask, &samples.of(task)?)?);
                }
                None => recorded.left_out.push(task.clone()),
            }
        }
        ensure!(
            !recorded.leaves.is_empty(),
            "{}: none of its tasks ({}) is one of the six: {}",
            path.display(),
            recorded.left_out.join(", "),
            KNOWN.map(|known| known.harness).join(", ")
        );
        Ok(recorded)
    }
}

/// Which of our tasks the harness's `name` is, and which subtask of it.
fn place_of(name: &str) -> Result<Option<(&'static Known, String)>> {
    for known in &KNOWN {
        let task = Task::load(known.task, None)?;
        let subtasks: Vec<&String> = task.groups().flat_map(|(_, members)| members).collect();
        if subtasks.is_empty() && name == known.harness {
            return Ok(Some((known, known.task.to_owned())));
        }
        if let Some(subtask) = subtasks.into_iter().find(|subtask| known.leaf(subtask) == name) {
            return Ok(Some((known, subtask.clone())));
        }
    }
    Ok(None)
}

impl<'a> Results<'a> {
    fn read(path: &'a Path) -> Result<Results<'a>> {
        let bytes = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let json = serde_json::from_slice(&bytes).with_context(|| format!("{}: not JSON", path.display()))?;
        let results = Results { path, json };
        results.object(&["results"]).context("a results file of lm-evaluation-harness 0.4 is expected")?;
        Ok(results)
    }

    fn place(&self, keys: &[&str]) -> String {
        format!("{}, `{}`", self.path.display(), keys.join("."))
    }

    /// The value under `keys`; null where there is none.
    fn get(&self, keys: &[&str]) -> &Value {
        keys.iter().fold(&self.json, |value, key| &value[*key])
    }

    fn object(&self, keys: &[&str]) -> Result<&serde_json::Map<String, Value>> {
        self.get(keys).as_object().with_context(|| format!("{}: no such object", self.place(keys)))
    }

    fn text(&self, keys: &[&str]) -> Result<&str> {
        self.get(keys).as_str().with_context(|| format!("{}: no such text", self.place(keys)))
    }

    fn count(&self, keys: &[&str]) -> Result<usize> {
        let count = self.get(keys).as_u64().and_then(|count| usize::try_from(count).ok());
        count.with_context(|| format!("{}: no such number", self.place(keys)))
    }

    /// Refuses prompts that no protocol asks.
    fn check_prompts(&self) -> Result<()> {
        for (key, why) in [
            ("chat_template", "prompts in a chat template can't be made again without the model's tokenizer"),
            ("system_instruction", "no protocol has a system instruction"),
        ] {
            ensure!(
                self.get(&[key]).is_null(),
                "{}: {why}, so these documents can't be paired with others; run lm_eval without it",
                self.place(&[key])
            );
        }
        Ok(())
    }

    /// By how HellaSwag's and Winogrande's examples were drawn, which the other tasks do not depend on.
    fn protocol(&self, asked: Option<Protocol>) -> Result<Protocol> {
        let drawn_from_train = |task: &&str| self.get(&["configs", task, "fewshot_split"]).as_str() == Some("train");
        let openllm = ["hellaswag", "winogrande"].iter().any(drawn_from_train)
            || self.get(&["group_subtasks", "openllm"]).is_array();
        match asked {
            Some(Protocol::LeaderboardV1) => bail!(
                "{}: lm-evaluation-harness 0.4 never asked as {} does; leave --protocol out",
                self.path.display(),
                Protocol::LeaderboardV1.name()
            ),
            Some(protocol @ (Protocol::LmEvalLatest | Protocol::LmEvalLatestOpenllm)) => Ok(protocol),
            None if openllm => Ok(Protocol::LmEvalLatestOpenllm),
            None => Ok(Protocol::LmEvalLatest),
        }
    }

    /// Who answered, as far as the file says. `name` is part of it: a repeated run under another name is another.
    fn identity(&self, name: &str) -> Result<ModelId> {
        let config = |key: &str| self.get(&["config", key]);
        let model = self.text(&["config", "model"])?;
        let arguments = Arguments::of(config("model_args"));
        let weights =
            [name, model, &arguments.text, &config("model_sha").to_string(), &config("model_revision").to_string()];
        let dtype = config("model_dtype").as_str().or(arguments.get("dtype")).unwrap_or("unknown");
        let version = self.text(&["lm_eval_version"])?;
        let four_bits = ["load_in_4bit", "load_in_8bit"].into_iter().find(|key| arguments.is_true(key));
        let quantization = match four_bits {
            Some("load_in_4bit") => Some("4bit".to_owned()),
            Some(_) => Some("8bit".to_owned()),
            None => arguments.get("quantization").map(str::to_owned),
        };
        let id = ModelId {
            weights: sha256_hex(weights.join("\u{1f}").as_bytes()),
            adapter: arguments.get("peft").map(|adapter| sha256_hex(adapter.as_bytes())),
            tokenizer: "as lm-eval had it".to_owned(),
            dtype: plain_dtype(dtype).to_owned(),
            quantization,
            engine: match version.starts_with("fireval ") {
                true => version.to_owned(),
                false => format!("lm-eval {version} {model}"),
            },
        };
        for text in [&id.dtype, &id.engine].into_iter().chain(&id.quantization) {
            check_name(text).with_context(|| self.place(&["config"]))?;
        }
        Ok(id)
    }

    fn leaf(&self, name: &str, known: &'static Known, subtask: String, samples: &Path) -> Result<RecordedLeaf> {
        let version = self.get(&["versions", name]);
        ensure!(
            version.as_f64() == Some(known.version),
            "{}: version {version} of the task, where fireval knows {}",
            self.place(&["versions", name]),
            known.version
        );
        let (shots, expected) = (self.count(&["n-shot", name])?, Task::load(known.task, None)?.shots());
        ensure!(
            shots == expected,
            "{}: {shots} examples, where every protocol shows {expected}; run lm_eval with --num_fewshot {expected}",
            self.place(&["n-shot", name])
        );
        let original = self.count(&["n-samples", name, "original"])?;
        let effective = self.count(&["n-samples", name, "effective"])?;
        let answers = Answers::read(samples)?;
        ensure!(
            answers.len() == effective,
            "{}: {} documents, where {} says {effective}; is the file whole?",
            samples.display(),
            answers.len(),
            self.place(&["n-samples", name, "effective"])
        );
        ensure!(
            (0..effective).all(|row| answers.of(row).is_some()),
            "{}: not the first {effective} documents; those that lm_eval's --samples picked can't be asked for again, so run it \
             with --limit or on all",
            samples.display()
        );
        Ok(RecordedLeaf { name: name.to_owned(), known, subtask, original, effective, answers })
    }
}

/// `torch.bfloat16` as `bf16`.
fn plain_dtype(name: &str) -> &str {
    match name.trim_start_matches("torch.") {
        "bfloat16" => "bf16",
        "float16" | "half" => "f16",
        "float32" | "float" => "f32",
        other => other,
    }
}

/// `model_args`: `pretrained=org/name,dtype=bfloat16`, or an object.
struct Arguments<'a> {
    text: String,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Arguments<'a> {
    fn of(value: &'a Value) -> Arguments<'a> {
        let pairs = match value {
            Value::String(text) => text.split(',').filter_map(|pair| pair.split_once('=')).collect(),
            Value::Object(fields) => {
                let word = |value: &'a Value| match value {
                    Value::String(text) => Some(text.as_str()),
                    Value::Bool(true) => Some("True"),
                    Value::Null | Value::Bool(false) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
                };
                fields.iter().filter_map(|(key, value)| Some((key.as_str(), word(value)?))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Vec::new(),
        };
        Arguments { text: value.to_string(), pairs }
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// Where the samples of a results file are.
struct Samples<'a> {
    results: &'a Path,
    files: &'a [PathBuf],
    /// `_<date>.jsonl`, as samples beside the results end.
    ending: Option<String>,
}

impl<'a> Samples<'a> {
    fn find(results: &'a Path, files: &'a [PathBuf]) -> Samples<'a> {
        let stem = results.file_stem().and_then(|stem| stem.to_str());
        // `results_<date>.json`, or `NAME_<date>.json` where lm_eval was given a file for its output.
        let ending = stem.and_then(|stem| stem.rsplit_once('_')).map(|(_, date)| format!("_{date}.jsonl"));
        Samples { results, files, ending }
    }

    /// Those of the harness's `task`: among the files that were named, else beside the results.
    fn of(&self, task: &str) -> Result<PathBuf> {
        let is_of_task = |path: &&PathBuf| {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("samples_"));
            stem.and_then(|stem| stem.rsplit_once('_')).is_some_and(|(named, _)| named == task)
        };
        if let Some(named) = self.files.iter().find(is_of_task) {
            return Ok(named.clone());
        }
        let ending = self.ending.as_deref().unwrap_or(".jsonl");
        let beside = self.results.with_file_name(format!("samples_{task}{ending}"));
        ensure!(
            beside.exists(),
            "{}: no {} for its task {task}. Without samples there is nothing to pair with: run lm_eval with --log_samples, or \
             name the files with --samples",
            self.results.display(),
            beside.display()
        );
        Ok(beside)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<ModelId> {
        let json = json!({"config": config, "lm_eval_version": "0.4.13"});
        Results { path: Path::new("r.json"), json }.identity("name")
    }

    fn identity(config: Value) -> ModelId {
        read(config).unwrap()
    }

    #[test]
    fn names_of_the_harness_are_ours() {
        let place = |name: &str| place_of(name).unwrap().map(|(known, subtask)| (known.task, subtask));
        assert_eq!(place("truthfulqa_mc2"), Some(("truthfulqa", "truthfulqa".to_owned())));
        assert_eq!(place("mmlu_high_school_physics"), Some(("mmlu", "high_school_physics".to_owned())));
        for other in ["mmlu", "mmlu_pro", "mmlu_stem", "gsm8k_cot", "truthfulqa_mc1", "hellaswag_fr"] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn who_answered_is_in_the_arguments() {
        // As lm_eval's hf models say it of themselves.
        let id = identity(json!({
            "model": "hf",
            "model_args": "pretrained=org/base,peft=org/ft,load_in_4bit=True",
            "model_dtype": "torch.bfloat16",
            "model_sha": "abc",
        }));
        assert_eq!((id.dtype.as_str(), id.quantization.as_deref()), ("bf16", Some("4bit")));
        assert_eq!(id.engine, "lm-eval 0.4.13 hf");
        assert!(id.adapter.is_some());
        let of = |arguments: Value| identity(json!({"model": "hf", "model_args": arguments}));
        let plain = of(json!("pretrained=org/base,dtype=float16"));
        assert_eq!((plain.dtype.as_str(), plain.quantization.as_deref()), ("f16", None));
        let object = of(json!({"pretrained": "org/base", "dtype": "float32", "load_in_8bit": true, "revision": 1}));
        assert_eq!((object.dtype.as_str(), object.quantization.as_deref()), ("f32", Some("8bit")));
        assert_ne!(plain.digest(), of(json!("pretrained=org/other,dtype=float16")).digest());
        assert_eq!(plain.digest(), of(json!("pretrained=org/base,dtype=float16")).digest());
    }

    #[test]
    fn what_is_printed_of_it_has_one_line() {
        for config in [
            json!({"model": "hf\nmodel-index: []\nevil: 1"}),
            json!({"model": "hf", "model_dtype": "f\r32"}),
            json!({"model": "hf", "model_args": {"quantization": "\u{1b}[2J"}}),
        ] {
            let error = format!("{:#}", read(config).unwrap_err());
            assert!(error.contains("r.json, `config`: ") && error.contains("has control characters"), "{error}");
        }
    }

    #[test]
    fn samples_are_found_by_task_and_date() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("samples_mmlu_anatomy_2026-01-01T00-00-00.5.jsonl"), "").unwrap();
        let named = [file("samples_gsm8k_x.jsonl")];
        let results = file("results_2026-01-01T00-00-00.5.json");
        let samples = Samples::find(&results, &named);
        assert_eq!(samples.of("mmlu_anatomy").unwrap(), file("samples_mmlu_anatomy_2026-01-01T00-00-00.5.jsonl"));
        assert_eq!(samples.of("gsm8k").unwrap(), named[0]);
        assert!(samples.of("anatomy").unwrap_err().to_string().contains("--log_samples"));
    }
}
