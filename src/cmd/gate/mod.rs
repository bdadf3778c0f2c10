//! `fireval gate --baseline BASE --candidate FT`: a verdict with an exit code, for people and for CI.

mod outputs;
mod side;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use self::outputs::{GateFormat, Outputs};
use self::side::Side;
use super::measure::{MeasureFlags, Measurement, Missing};
use super::{Exit, Workplace};
use crate::compare::{self, Contender, Outcome};
use crate::eval::Run;
use crate::gate::{self, Rules, Sight, plan};
use crate::project::{ModelSpec, Source};
use crate::published::Published;
use crate::report::verdict::{self, Page};

/// What to do about it.
const LOW_POWER: &str = "ask more documents, widen the margin, or say --accept-low-power";

/// Judge a candidate beside a baseline by rules: may it stand in its place?
///
/// Exit code 0: it passes; 1: a regression, or too good or too uniform to be true; 2: it could not be judged; 3: not enough
/// evidence either way. What is not stored yet is evaluated first, as by `compare`.
#[derive(clap::Args)]
pub struct Args {
    /// A model, a folder of stored runs (results/runs/...), a file of `fireval baseline save`, or published:ORG/NAME.
    #[arg(long, value_name = "BASELINE")]
    baseline: String,
    /// A model, or a folder of stored runs.
    #[arg(long, value_name = "MODEL")]
    candidate: String,
    /// The rules [default: gate.toml of the results folder if there, else the built-in ones of results/gate.toml].
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Judge also where the rules claim more than this many documents can tell.
    #[arg(long)]
    accept_low_power: bool,
    /// Evaluate nothing: judge stored runs, and say what is missing.
    #[arg(long)]
    stored: bool,
    #[command(flatten)]
    measure: MeasureFlags,
    /// What is printed or written [default: text, or what the ending of the output file says: json, xml].
    #[arg(long)]
    format: Option<GateFormat>,
    /// Write to this file; the text is printed all the same.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(place: &Workplace, args: Args) -> Result<Exit> {
    let outputs = Outputs::prepare(args.format, args.output)?;
    let own = Some(place.store.root().join("gate.toml")).filter(|file| file.exists());
    let is_given = args.rules.is_some();
    let rules = Rules::open(args.rules.or(own).as_deref())?;
    let baseline = Side::of(&place.project, &args.baseline)?;
    let candidate = Side::of(&place.project, &args.candidate)?;
    let measure = match &baseline {
        Side::File(file) => args.measure.like(file),
        Side::Model(_) | Side::Runs(_) => args.measure,
    };
    let mut measurement = measure.measurement(place)?;
    let asked: Vec<&str> = measurement.tasks.iter().map(|task| task.name()).collect();
    rules.check_tasks(&asked)?;
    let missing = if args.stored { Missing::Refuse } else { Missing::Evaluate };
    let sides = Sides::resolve(&measurement, &baseline, &candidate)?;
    if is_given {
        // Rules that stand in their default place are for other tasks too: the verdict notes what was not applied.
        rules.check_asked(measurement.questions(&sides.spec)?)?;
    }
    if !args.accept_low_power {
        refuse_blind(&mut measurement, &sides, &rules)?;
    }
    let contenders = sides.contenders(&mut measurement, missing)?;
    let comparison = compare::compare(measurement.conditions.protocol, measurement.columns(), &contenders)?;
    let verdict = gate::judge(&rules, &comparison, measured(&contenders[1]))?;
    let page = Page::of(&verdict);
    if let (Some(low), false) = (&page.low_power, args.accept_low_power) {
        bail!("{}\n{low}; {LOW_POWER}", page.sight);
    }
    outputs.deliver(&verdict, &page)?;
    Ok(match verdict.outcome() {
        gate::Outcome::Pass => Exit::Done,
        gate::Outcome::Regression | gate::Outcome::Suspect => Exit::Differs,
        gate::Outcome::NotEnough => Exit::NotEnough,
    })
}

/// Baseline and candidate, each known to be something that can be judged.
struct Sides<'a> {
    baseline: &'a Side,
    candidate: &'a Side,
    /// Where the baseline is a model.
    baseline_spec: Option<ModelSpec>,
    /// What questions are made for.
    spec: ModelSpec,
}

impl<'a> Sides<'a> {
    fn resolve(measurement: &Measurement, baseline: &'a Side, candidate: &'a Side) -> Result<Sides<'a>> {
        let resolve =
            |name: &String| Ok::<_, anyhow::Error>(measurement.resolve(std::slice::from_ref(name))?.remove(0));
        let spec = match candidate {
            Side::Model(name) => resolve(name)?,
            Side::Runs(runs) => runs.spec(),
            Side::File(file) => {
                bail!("{} is a baseline's file: the candidate has to be a model or its runs", file.model)
            }
        };
        let is_row = matches!(spec.source, Source::Published(_));
        ensure!(!is_row, "{} is a row of the leaderboard: the candidate has to be measured here", spec.name);
        let baseline_spec = match baseline {
            Side::Model(name) => Some(resolve(name)?),
            Side::File(file) => {
                file.check_protocol(measurement.conditions.protocol)?;
                None
            }
            Side::Runs(_) => None,
        };
        Ok(Sides { baseline, candidate, baseline_spec, spec })
    }

    /// What is refused, by its documents, is refused before anything is evaluated.
    fn contenders(&self, measurement: &mut Measurement, missing: Missing) -> Result<[Contender; 2]> {
        let measured =
            |model: &str, runs: Vec<Run>| Contender { model: model.to_owned(), outcome: Outcome::Measured(runs) };
        let before = match (self.baseline, &self.baseline_spec) {
            (Side::File(file), _) => measured(&file.model, file.runs(measurement.questions(&self.spec)?)?),
            (Side::Runs(runs), _) => measured(&runs.name(), runs.read(measurement, &self.spec)?),
            (Side::Model(_), Some(spec)) => measurement.contender(spec, missing)?,
            (Side::Model(name), None) => bail!("{name} was not resolved"),
        };
        let now = match self.candidate {
            Side::Runs(runs) => runs.read(measurement, &self.spec)?,
            Side::Model(_) | Side::File(_) => measurement.runs(&self.spec, missing)?,
        };
        Ok([before, measured(&self.spec.name, now)])
    }

    /// The baseline's row, if it is one.
    fn row(&self) -> Option<&Published> {
        match self.baseline_spec.as_ref().map(|spec| &spec.source) {
            Some(Source::Published(row)) => Some(row),
            Some(Source::Checkpoint(_) | Source::Hub(_) | Source::Scripted(_) | Source::Imported(_)) | None => None,
        }
    }
}

/// Refuses, before hours of evaluation, what even a candidate as near to its baseline as a re-run could not show.
fn refuse_blind(measurement: &mut Measurement, sides: &Sides, rules: &Rules) -> Result<()> {
    let protocol = measurement.conditions.protocol;
    let questions = measurement.questions(&sides.spec)?;
    let Some(stderr) = plan::least_stderr(questions, protocol, sides.row())? else { return Ok(()) };
    let documents = questions.iter().map(|asked| asked.documents.len()).sum();
    let sight = Sight::new(documents, stderr, rules.margin, rules.confidence);
    let words = verdict::sight(&sight, rules.margin, rules.confidence);
    ensure!(
        !sight.is_low(),
        "before evaluating anything: at best, {words}\n{}; {LOW_POWER}",
        verdict::low_power(&sight, rules.margin)
    );
    Ok(())
}

fn measured(contender: &Contender) -> &[Run] {
    match &contender.outcome {
        Outcome::Measured(runs) => runs,
        Outcome::Published(_) => &[],
    }
}
