//! What `eval`, `compare` and `export` share: which tasks, how asked, of which model.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::{Workplace, suggest};
use crate::compare::{Column, Contender, Outcome};
use crate::eval::{self, Conditions, NamedModel, Run, TaskDocuments};
use crate::gate::baseline::Baseline;
use crate::memory::Memory;
use crate::model::device::{Card, DeviceName};
use crate::model::home::{Arithmetic, Home};
use crate::model_id::Quantization;
use crate::progress::Progress;
use crate::project::{IMPORTED, ModelSpec, Source};
use crate::protocol::Protocol;
use crate::store::Store;
use crate::task::{self, DataSource, Task};
use crate::weights::Dtype;

/// What is asked, and how.
#[derive(Args)]
pub struct MeasureFlags {
    /// A set of tasks [default: openllm, the leaderboard's six].
    #[arg(long, value_name = "NAME", conflicts_with = "tasks")]
    suite: Option<String>,
    /// Tasks instead of a suite, with commas between: arc_challenge, mmlu/astronomy, my-task.toml.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    tasks: Option<Vec<String>>,
    /// At most this many documents of each task and of each MMLU subject.
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<usize>,
    #[command(flatten)]
    asked: AskedFlags,
    /// Whether a baseline says how to ask, so that the project file does not, also where the baseline has no limit.
    #[arg(skip)]
    as_baseline: bool,
}

/// By whose rules a model is asked, and how it is held.
#[derive(Args)]
pub struct AskedFlags {
    #[command(flatten)]
    pub source: SourceFlags,
    /// Ask in the model's own chat template (the leaderboard never did; lm-eval-latest only).
    #[arg(long)]
    chat_template: bool,
    #[command(flatten)]
    held: HeldFlags,
}

/// How a model is held and run, whatever its name says.
#[derive(Args, Clone, Copy)]
pub struct HeldFlags {
    /// Round weights to this type [default: the checkpoint's own; f32 for quantised GGUF files].
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Hold the layers' linears in 4 bits, as QLoRA trains on them.
    #[arg(long)]
    quantization: Option<Quantization>,
    #[command(flatten)]
    pub run: RunFlags,
}

/// With what a model is run; nothing that comes out depends on memory or threads.
#[derive(Args, Clone, Copy, Default)]
pub struct RunFlags {
    /// Whose arithmetic runs the model [default: cpu; on a card candle].
    #[arg(long)]
    decoder: Option<Arithmetic>,
    /// Where it runs: cpu, or a card by its number, as cuda:0 [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// The most of the card's memory to use, as 14GiB; layers that do not fit are streamed [default: what is free].
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<Memory>,
    /// The most memory to use, as 2GiB [default: half of what is free].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Memory>,
    /// Threads that compute [default: one a core].
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
}

/// Which rows, by whose rules.
#[derive(Args)]
pub struct SourceFlags {
    /// Whose rules [default: leaderboard-v1].
    #[arg(long)]
    pub protocol: Option<Protocol>,
    /// Where rows come from: hub, bundled (a small slice in the binary) or a folder [default: hub].
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
}

/// Whether documents that are not stored are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Evaluate,
    Refuse,
}

/// A measurement that was asked for.
pub struct Measurement<'a> {
    place: &'a Workplace,
    pub tasks: Vec<Task>,
    pub conditions: Conditions,
    /// Overrides for every model.
    held: HeldFlags,
    /// The tasks as they were named, by a file's path too.
    names: Vec<String>,
    /// The options that say how to ask, and those that say of what, as they were typed.
    typed: Vec<String>,
    typed_tasks: Vec<String>,
    /// The documents, once made; under a chat template they are each model's own.
    questions: Option<Vec<TaskDocuments>>,
}

impl SourceFlags {
    pub fn protocol(&self, place: &Workplace) -> Protocol {
        self.protocol.or(place.project.eval.protocol).unwrap_or_default()
    }

    pub fn data(&self, place: &Workplace) -> DataSource {
        let asked = self.data.as_deref().map(DataSource::parse);
        asked.or_else(|| place.project.data.clone()).unwrap_or(DataSource::Hub)
    }
}

impl AskedFlags {
    fn typed(&self) -> Vec<String> {
        let AskedFlags { source: SourceFlags { protocol, data }, chat_template, held } = self;
        let HeldFlags { dtype, quantization, run: RunFlags { decoder, device, .. } } = held;
        let decoder = decoder.and_then(|decoder| decoder.to_possible_value());
        let options = [
            ("--data", data.clone()),
            ("--protocol", protocol.map(|protocol| protocol.name().to_owned())),
            ("--dtype", dtype.map(|dtype| dtype.name().to_owned())),
            ("--quantization", quantization.map(|held| held.name().to_owned())),
            ("--decoder", decoder.map(|decoder| decoder.get_name().to_owned())),
            ("--device", device.map(|device| device.to_string())),
        ];
        let given = options.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?]));
        given.flatten().chain(chat_template.then(|| "--chat-template".to_owned())).collect()
    }
}

/// Loads a task by name, with the project's own task files before the built-in ones.
pub fn load_task(place: &Workplace, name: &str) -> Result<Task> {
    Task::load(name, place.project.eval.task_dir.as_deref())
}

impl MeasureFlags {
    /// At most `limit` documents of one task.
    pub fn of_task(task: String, limit: Option<usize>, asked: AskedFlags) -> MeasureFlags {
        MeasureFlags { suite: None, tasks: Some(vec![task]), limit, asked, as_baseline: false }
    }

    /// With at most `limit` documents of each task where neither tasks nor a limit are asked for.
    pub fn quick(mut self, limit: usize) -> MeasureFlags {
        if self.suite.is_none() && self.tasks.is_none() {
            self.limit = self.limit.or(Some(limit));
        }
        self
    }

    /// As `baseline` was asked where no flag says otherwise.
    pub fn like(mut self, baseline: &Baseline) -> MeasureFlags {
        self.as_baseline = true;
        if self.suite.is_none() {
            self.tasks.get_or_insert_with(|| baseline.task_names());
        }
        self.limit = self.limit.or(baseline.limit);
        let asked = &mut self.asked;
        asked.source.protocol.get_or_insert(baseline.protocol);
        asked.chat_template |= baseline.chat_template;
        let bundled = baseline.data == DataSource::Bundled.describe();
        asked.source.data = asked.source.data.take().or(bundled.then(|| "bundled".to_owned()));
        self
    }

    /// Reads the flags and the project file's defaults.
    pub fn measurement<'a>(&self, place: &'a Workplace) -> Result<Measurement<'a>> {
        let (settings, asked) = (&place.project.eval, &self.asked);
        let names = match (&self.tasks, &self.suite, &settings.tasks, &settings.suite) {
            (Some(tasks), _, _, _) => tasks.clone(),
            (None, Some(suite), _, _) => task::suite(suite)?.tasks,
            (None, None, Some(tasks), _) => tasks.clone(),
            (None, None, None, Some(suite)) => task::suite(suite)?.tasks,
            (None, None, None, None) => task::suite("openllm")?.tasks,
        };
        let tasks: Vec<Task> = names.iter().map(|name| load_task(place, name.trim())).collect::<Result<_>>()?;
        if let Some(twice) =
            tasks.iter().enumerate().find(|(at, task)| tasks[..*at].iter().any(|t| t.name() == task.name()))
        {
            bail!("the task {} is named twice", twice.1.name());
        }
        let conditions = Conditions {
            protocol: asked.source.protocol(place),
            data: asked.source.data(place),
            limit: self.limit.or(settings.limit.filter(|_| !self.as_baseline)),
            chat_template: asked.chat_template || (settings.chat_template && !self.as_baseline),
        };
        if conditions.chat_template && conditions.protocol == Protocol::LeaderboardV1 {
            bail!("leaderboard-v1 never used a chat template; ask with --protocol lm-eval-latest");
        }
        let held = asked.held;
        held.run.take_threads()?;
        let (typed, typed_tasks) = (asked.typed(), self.typed_tasks());
        Ok(Measurement { place, tasks, conditions, held, names, typed, typed_tasks, questions: None })
    }

    fn typed_tasks(&self) -> Vec<String> {
        match (&self.tasks, &self.suite) {
            (Some(tasks), _) => vec!["--tasks".to_owned(), tasks.join(",")],
            (None, Some(suite)) => vec!["--suite".to_owned(), suite.clone()],
            (None, None) => Vec::new(),
        }
    }
}

impl HeldFlags {
    /// The models by name, with these overrides.
    pub fn resolve(&self, place: &Workplace, names: &[String]) -> Result<Vec<ModelSpec>> {
        let home = self.run.home()?;
        let resolve = |name: &String| {
            let spec = place.project.resolve(name)?;
            let (dtype, quantization) = (self.dtype.or(spec.dtype), self.quantization.or(spec.quantization));
            Ok(ModelSpec { dtype, quantization, home, ..spec })
        };
        names.iter().map(resolve).collect()
    }
}

impl RunFlags {
    /// Where a model is to run; a card is looked for.
    pub fn home(&self) -> Result<Home> {
        home(self.decoder, self.device.unwrap_or_default(), self.device_memory)
    }

    pub fn memory(&self) -> Memory {
        self.memory.unwrap_or_else(Memory::half_of_free)
    }

    /// Sets the number of threads, before any is started.
    pub fn take_threads(&self) -> Result<()> {
        match self.threads {
            Some(threads) => rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads"),
            None => Ok(()),
        }
    }
}

impl Measurement<'_> {
    pub fn columns(&self) -> Vec<Column> {
        self.tasks.iter().map(|task| Column::of(task, self.conditions.protocol)).collect()
    }

    /// The models by name, each resolved before any is evaluated, with this measurement's overrides.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<ModelSpec>> {
        self.held.resolve(self.place, names)
    }

    /// What is known of the model afterwards.
    pub fn contender(&mut self, spec: &ModelSpec, missing: Missing) -> Result<Contender> {
        Ok(match &spec.source {
            Source::Published(row) => Contender { model: row.model.clone(), outcome: Outcome::Published(row.clone()) },
            Source::Checkpoint(_) | Source::Hub(_) | Source::Scripted(_) | Source::Imported(_) => {
                Contender { model: spec.name.clone(), outcome: Outcome::Measured(self.runs(spec, missing)?) }
            }
        })
    }

    /// A run of the model on each task.
    pub fn runs(&mut self, spec: &ModelSpec, missing: Missing) -> Result<Vec<Run>> {
        let store = &self.place.store;
        let model = NamedModel { name: spec.name.clone(), id: spec.id(store)? };
        self.ask(spec)?;
        let questions = self.questions.as_deref().unwrap_or_default();
        // Nobody can ask an imported model more.
        let is_imported = matches!(spec.source, Source::Imported(_));
        match if is_imported { Missing::Refuse } else { missing } {
            Missing::Refuse => {
                eval::stored(&model, questions, &self.conditions, store, &self.next_step(&spec.name, store))
            }
            Missing::Evaluate => {
                let progress = Progress::new(&spec.name, "tok");
                let mut open = || spec.open(&model.id, self.held.run.memory());
                let runs = eval::evaluate(&model, &mut open, questions, &self.conditions, store, &progress);
                progress.finish();
                runs
            }
        }
    }
}

impl Measurement<'_> {
    /// The documents that `spec` is asked, a list for each task.
    pub fn questions(&mut self, spec: &ModelSpec) -> Result<&[TaskDocuments]> {
        self.ask(spec)?;
        Ok(self.questions.as_deref().unwrap_or_default())
    }

    fn ask(&mut self, spec: &ModelSpec) -> Result<()> {
        if self.questions.is_none() || self.conditions.chat_template {
            let chat = self.conditions.chat_template.then(|| spec.chat_template()).transpose()?;
            self.questions = Some(eval::questions(&self.tasks, &self.conditions, chat.as_ref())?);
        }
        Ok(())
    }

    /// The runs of `model` in `store`, of the documents that `spec` is asked; evaluates nothing.
    pub fn stored(&mut self, model: &NamedModel, store: &Store, spec: &ModelSpec) -> Result<Vec<Run>> {
        self.ask(spec)?;
        let (questions, next) = (self.questions.as_deref().unwrap_or_default(), self.next_step(&model.name, store));
        eval::stored(model, questions, &self.conditions, store, &next)
    }

    /// What to do about documents that `store` lacks.
    fn next_step(&self, model: &str, store: &Store) -> String {
        if model.starts_with(IMPORTED) {
            return "they are not in what was imported (under these options)".to_owned();
        }
        let words = ["eval", model].map(str::to_owned).into_iter().chain(self.typed_tasks.iter().cloned());
        format!("run `{}`", suggest::command(words.chain(self.options("--limit", store))))
    }

    /// What shows the flips between two models, task by task.
    pub fn flips_commands(&self, first: &str, other: &str) -> Vec<String> {
        let options = self.options("--documents", &self.place.store);
        let command = |task: &String| {
            let words = ["flips", task.trim(), first, other].map(str::to_owned);
            suggest::command(words.into_iter().chain(options.iter().cloned()))
        };
        self.names.iter().map(command).collect()
    }

    /// Of a command that asks as this measurement does, and calls the number of documents `limit`.
    fn options(&self, limit: &str, store: &Store) -> Vec<String> {
        // Where a baseline asks for all documents, the project's own limit would be in that command's way.
        let all = || self.questions.iter().flatten().map(|questions| questions.documents.len()).max();
        let count = self.conditions.limit.or_else(|| self.place.project.eval.limit.and_then(|_| all()));
        let limit = count.map(|count| [limit.to_owned(), count.to_string()]);
        let limit = limit.into_iter().flatten();
        limit.chain(self.typed.iter().cloned()).chain(self.place.options(store)).collect()
    }

    /// The most memory that an evaluation may use.
    pub fn memory(&self) -> Memory {
        self.held.run.memory()
    }
}

/// The home that the flags name.
pub fn home(decoder: Option<Arithmetic>, device: DeviceName, memory: Option<Memory>) -> Result<Home> {
    match (decoder, device) {
        (Some(Arithmetic::Cpu), DeviceName::Cuda(_)) => {
            bail!(
                "--device {device} is for candle's tensors, but --decoder cpu is the processor's kernels: leave one out"
            )
        }
        (None | Some(Arithmetic::Candle), DeviceName::Cuda(index)) => Ok(Home::Card(Card::find(index, memory)?)),
        (decoder, DeviceName::Cpu) => {
            ensure!(memory.is_none(), "--device-memory is a card's: name the card, as --device cuda:0");
            Ok(decoder.unwrap_or_default().here())
        }
    }
}

/// A number of documents: at least one.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 (leave the flag out for all)".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("a whole number of documents".to_owned()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of threads, at least 1".to_owned()),
        Ok(threads) => Ok(threads),
    }
}

/// Where a file of scores is written.
#[derive(Args)]
pub struct OutputFlags {
    /// How it is printed [default: table, or what the ending of the output file says].
    #[arg(long)]
    pub format: Option<crate::report::Format>,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
