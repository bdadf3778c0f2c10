//! Whether the gate keeps its promises: whole gates are simulated, from documents' answers over `compare` to the verdict under
//! the default rules, and it is counted how they end.
//!
//!     cargo bench --bench gate            # 1,000 gates of each kind
//!     cargo bench --bench gate -- 100     # fewer
//!     cargo bench --bench gate -- 5000 "re-run, no loss"    # only the kinds with this in their names
//!
//! A re-run is the same model in another 16-bit type: its documents flip as often as makes nine in ten differences those of
//! the published noise floor (`gate::plan::Assumed::ReRun`). A fine-tune flips more (`Assumed::FineTune`). The table is in
//! `results/README.md`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use fireval::compare::{self, Column, Contender, Outcome as Known};
use fireval::eval::Run;
use fireval::gate::plan::Assumed;
use fireval::gate::{self, Outcome, Rules};
use fireval::model_id::ModelId;
use fireval::protocol::Protocol;
use fireval::published::{self, COLUMNS, MMLU_SUBJECTS};
use fireval::random::Random;
use fireval::score::{DocScore, RequestScore};
use fireval::store::Manifest;
use fireval::task::Task;

const PROTOCOL: Protocol = Protocol::LeaderboardV1;

/// How the candidate differs from its baseline, in truth.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// As much on every task, a fraction.
    Everywhere(f64),
    /// All of the average's loss on GSM8K.
    OnGsm8k(f64),
}

/// A kind of gate.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub assumed: Assumed,
    pub loss: Loss,
    /// Documents of each task and subject; all without.
    pub limit: Option<usize>,
}

/// How gates ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub regressions: usize,
    pub suspects: usize,
    pub open: usize,
    /// For low power.
    pub refused: usize,
}

impl Counts {
    fn plus(self, other: Counts) -> Counts {
        Counts {
            passed: self.passed + other.passed,
            regressions: self.regressions + other.regressions,
            suspects: self.suspects + other.suspects,
            open: self.open + other.open,
            refused: self.refused + other.refused,
        }
    }
}

/// How often both models are right where they agree: about Mixtral-8x7B's scores.
fn agreed(task: &str, subject: usize) -> f64 {
    match task {
        "arc_challenge" => 0.68,
        "hellaswag" => 0.86,
        // From 0.3 in the hardest subject to 0.9 in the easiest.
        "mmlu" => 0.3 + 0.6 * subject as f64 / (MMLU_SUBJECTS.len() - 1) as f64,
        "winogrande" => 0.82,
        _ => 0.58,
    }
}

impl Kind {
    fn loss_on(&self, task: &str) -> f64 {
        match self.loss {
            Loss::Everywhere(loss) => loss,
            Loss::OnGsm8k(loss) => 6.0 * loss * f64::from(u8::from(task == "gsm8k")),
        }
    }

    /// A document's score before and now.
    fn answers(&self, random: &mut Random, task: &str, subject: usize, variance: f64) -> (f64, f64) {
        let loss = self.loss_on(task);
        if task == "truthfulqa" {
            let before = 0.3 + 0.4 * random.uniform();
            return (before, (before + self.shift(random, variance) - loss).clamp(0.0, 1.0));
        }
        let flips = variance.max(loss);
        let value = |right: bool| f64::from(u8::from(right));
        match random.uniform() {
            at if at < (flips - loss) / 2.0 => (0.0, 1.0),
            at if at < flips => (1.0, 0.0),
            _ => {
                let right = value(random.uniform() < agreed(task, subject));
                (right, right)
            }
        }
    }

    /// The change of a share with mean 0: a fine-tune's is small mostly and large in one of ten, as in `benches/statistics.rs`.
    fn shift(&self, random: &mut Random, variance: f64) -> f64 {
        match self.assumed {
            Assumed::ReRun => variance.sqrt() * random.normal(),
            Assumed::FineTune | Assumed::Flips(_) => match random.uniform() {
                rare if rare < 0.1 => 0.4 * random.uniform(),
                _ => 0.05 * random.normal() - 0.1 * 0.2 / 0.9,
            },
        }
    }
}

/// The two models' runs, made once and filled again for each gate.
struct Stage {
    tasks: Vec<Task>,
    columns: Vec<Column>,
    variances: Vec<f64>,
    /// Each document's subject, by task.
    subjects: Vec<Vec<usize>>,
    contenders: [Contender; 2],
}

fn runs(contender: &mut Contender) -> &mut Vec<Run> {
    match &mut contender.outcome {
        Known::Measured(runs) => runs,
        Known::Published(_) => unreachable!("both are measured"),
    }
}

impl Stage {
    fn new(kind: &Kind) -> Stage {
        let tasks: Vec<Task> = COLUMNS.iter().map(|(task, _)| Task::load(task, None).expect("built in")).collect();
        let sizes = |task: &Task| match task.name() {
            "mmlu" => MMLU_SUBJECTS.map(|(_, documents)| documents).to_vec(),
            name => vec![published::size(name).expect("one of the six").documents],
        };
        let subjects: Vec<Vec<usize>> = tasks
            .iter()
            .map(|task| {
                let sizes = sizes(task).into_iter().map(|size| kind.limit.map_or(size, |limit| limit.min(size)));
                sizes.enumerate().flat_map(|(subject, size)| vec![subject; size]).collect()
            })
            .collect();
        let variances = tasks.iter().map(|task| kind.assumed.variance(task.name()).expect("one of the six")).collect();
        let mut random = Random::named(1, "answers");
        let mut contender = |model: &str| {
            let runs =
                tasks.iter().zip(&subjects).map(|(task, subjects)| empty_run(model, task, subjects, &mut random));
            Contender { model: model.to_owned(), outcome: Known::Measured(runs.collect()) }
        };
        let contenders = [contender("base"), contender("ft")];
        let columns = tasks.iter().map(|task| Column::of(task, PROTOCOL)).collect();
        Stage { columns, variances, subjects, contenders, tasks }
    }

    /// Draws both models' answers anew.
    fn fill(&mut self, kind: &Kind, random: &mut Random) {
        let [base, candidate] = &mut self.contenders;
        for (index, (before, now)) in runs(base).iter_mut().zip(runs(candidate)).enumerate() {
            let (task, variance) = (&self.tasks[index], self.variances[index]);
            let metric = before.manifest.metric.clone();
            for (document, &subject) in self.subjects[index].iter().enumerate() {
                let (old, new) = kind.answers(random, task.name(), subject, variance);
                before.scores[document].metrics.insert(metric.clone(), old);
                now.scores[document].metrics.insert(metric.clone(), new);
            }
            for run in [before, now] {
                run.manifest.estimates = task.estimates(PROTOCOL, &run.scores).expect("there are documents");
            }
        }
    }

    fn judge(&mut self, rules: &Rules) -> Counts {
        let comparison = compare::compare(PROTOCOL, self.columns.clone(), &self.contenders).expect("alike");
        let verdict = gate::judge(rules, &comparison, runs(&mut self.contenders[1])).expect("enough documents");
        let mut counts = Counts::default();
        match verdict.outcome() {
            _ if verdict.sight.is_low() => counts.refused = 1,
            Outcome::Pass => counts.passed = 1,
            Outcome::Regression => counts.regressions = 1,
            Outcome::Suspect => counts.suspects = 1,
            Outcome::NotEnough => counts.open = 1,
        }
        counts
    }
}

/// A run without scores, but with answers for the rule against answers all alike.
fn empty_run(model: &str, task: &Task, subjects: &[usize], random: &mut Random) -> Run {
    let generated = task.name() == "gsm8k";
    let mut request = || RequestScore { ll: -random.uniform(), is_greedy: false, cont_ids: Vec::new() };
    let scores: Vec<DocScore> = subjects
        .iter()
        .enumerate()
        .map(|(doc, subject)| DocScore {
            task: task.name().to_owned(),
            subtask: format!("{subject:02}"),
            doc,
            digest: doc.to_string(),
            requests: if generated { Vec::new() } else { vec![request(), request(), request(), request()] },
            output: generated.then(|| (doc % 97).to_string()),
            metrics: BTreeMap::new(),
        })
        .collect();
    let id = ModelId {
        weights: model.to_owned(),
        adapter: None,
        tokenizer: String::new(),
        dtype: "bf16".to_owned(),
        quantization: None,
        engine: String::new(),
    };
    let manifest = Manifest {
        schema: 1,
        model: model.to_owned(),
        id,
        task: task.name().to_owned(),
        definition: String::new(),
        protocol: PROTOCOL,
        data: String::new(),
        chat_template: false,
        limit: None,
        documents: scores.len(),
        partial: false,
        metric: task.metric(PROTOCOL).to_owned(),
        estimates: BTreeMap::new(),
        warnings: Vec::new(),
        fireval: String::new(),
        date: String::new(),
        seconds: 0.0,
        tokens: 0,
    };
    Run { title: task.title().to_owned(), manifest, scores }
}

/// `gates` simulated gates of one kind under the default rules, seeded.
///
/// On threads of their own: a comparison reads the noise floor with polars, whose pool lets a waiting rayon thread begin the
/// next gate inside this one, until the stack is full.
pub fn simulate(kind: Kind, gates: usize) -> Counts {
    let rules = Rules::read(include_str!("../results/gate.toml"), "results/gate.toml").expect("the default rules");
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut stage, mut counts) = (Stage::new(&kind), Counts::default());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= gates {
                return counts;
            }
            stage.fill(&kind, &mut Random::named(seed as u64, "gate"));
            counts = counts.plus(stage.judge(&rules));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("a gate that is judged"));
        ended.fold(Counts::default(), Counts::plus)
    })
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let gates: usize = asked.unwrap_or(1_000);
    let only =
        std::env::args().skip(1).find(|argument| !argument.starts_with('-') && argument.parse::<usize>().is_err());
    let kind = |assumed, loss, limit| Kind { assumed, loss, limit };
    let (rerun, tuned) = (Assumed::ReRun, Assumed::FineTune);
    let rows = [
        ("re-run, no loss", kind(rerun, Loss::Everywhere(0.0), None)),
        ("re-run, loss of 2 on every task", kind(rerun, Loss::Everywhere(0.02), None)),
        ("fine-tune, no loss", kind(tuned, Loss::Everywhere(0.0), None)),
        ("fine-tune, loss of 1 on every task", kind(tuned, Loss::Everywhere(0.01), None)),
        ("fine-tune, loss of 2 on every task", kind(tuned, Loss::Everywhere(0.02), None)),
        ("fine-tune, loss of 12 on GSM8K (2 on the average)", kind(tuned, Loss::OnGsm8k(0.02), None)),
        ("--limit 200: re-run, no loss", kind(rerun, Loss::Everywhere(0.0), Some(200))),
        ("--limit 200: fine-tune, no loss", kind(tuned, Loss::Everywhere(0.0), Some(200))),
        ("--limit 20: re-run, no loss", kind(rerun, Loss::Everywhere(0.0), Some(20))),
    ];
    println!("simulated gates under the default rules; percent");
    println!("| models | gates | pass | regression | suspect | not enough evidence | refused, low power |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let percent = |count: usize| 100.0 * count as f64 / gates as f64;
    for (name, kind) in
        rows.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name.contains(only.as_str())))
    {
        let Counts { passed, regressions, suspects, open, refused } = simulate(kind, gates);
        let shares = [passed, regressions, suspects, open, refused].map(|count| format!("{:.1}", percent(count)));
        println!("| {name} | {gates} | {} |", shares.join(" | "));
    }
}
