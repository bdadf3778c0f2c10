"""The six tasks, start to finish: `fireval eval` against lm-evaluation-harness of today, and of June 2023 where LMEVAL_V1
names its checkout, on the same checkpoint, rows, documents and threads.

The harness's dtypes and batch sizes are tried on a part of the documents; then each task is run as a process of its own
at the task's best setting, and all six together in one process that loads the model once, in turn with fireval. Picks
are compared with f32's, and the prompts by hash."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import tempfile

import data_files
import measure
import picks
import places
import table

PART = "six tasks"


@dataclasses.dataclass
class Task:
    name: str
    latest: str  # the harness's name today
    v1: str  # and in June 2023
    shots: int
    limit: int
    metric: str  # the reported one under lm-eval-latest
    metric_v1: str


TASKS = [
    Task("arc_challenge", "arc_challenge", "arc_challenge", 25, 40, "acc_norm", "acc_norm"),
    Task("hellaswag", "hellaswag", "hellaswag", 10, 40, "acc_norm", "acc_norm"),
    Task("mmlu", "mmlu", "mmlu", 5, 4, "acc", "acc"),
    Task("truthfulqa", "truthfulqa_mc2", "truthfulqa_mc", 0, 40, "acc", "mc2"),
    Task("winogrande", "winogrande", "winogrande", 5, 40, "acc", "acc"),
    Task("gsm8k", "gsm8k", "gsm8k", 5, 20, "exact_match,strict-match", "acc"),
]


class Harness:
    """One version of lm-evaluation-harness."""

    def __init__(self, place, model, script, environment, protocol, batch_sizes):
        self.place, self.model, self.script, self.environment = place, place.checkpoint(model), script, environment
        self.protocol, self.batch_sizes = protocol, batch_sizes
        self.rows = place.peers / "rows"

    @staticmethod
    def latest(place, model):
        return Harness(place, model, "harness.py", "lm-eval", "lm-eval-latest", ["1", "4", "16", "auto"])

    @staticmethod
    def of_june_2023(place, model):
        return Harness(place, model, "harness_v1.py", "lm-eval-v1", "leaderboard-v1", ["1"])

    def task_name(self, task):
        return task.v1 if self.protocol == "leaderboard-v1" else task.latest

    def metric(self, task):
        return task.metric_v1 if self.protocol == "leaderboard-v1" else task.metric

    def run(self, tasks, setting, samples=None, softmax=None):
        """(what it cost, the printed line of each task by fireval's name)"""
        asked = ",".join(f"{self.task_name(task)}:{task.shots}:{task.limit}" for task in tasks)
        command = [self.place.python(self.environment), places.HERE / self.script, "--model", self.model]
        command += ["--rows", self.rows, "--tasks", asked, "--dtype", setting[0], "--batch-size", setting[1]]
        command += ["--threads", self.place.threads] + (["--samples", samples] if samples else [])
        command += ["--softmax-dtype", softmax] if softmax else []
        run = self.place.run(command, self.environment, {**measure.KEEP_FREED_MEMORY, **self.cache()})
        lines = [json.loads(line) for line in run.text.splitlines() if line.startswith('{"task"')]
        return run, {task.name: line for task, line in zip(tasks, lines, strict=True)}

    def cache(self):
        """Rows that were read once are kept as the harness's library keeps them, which is its best."""
        return {"HF_HOME": str(self.place.peers / "cache" / self.environment)}

    def accuracy(self, tasks, lines):
        return "; ".join(f"{task.name} {100 * lines[task.name]['metrics'][self.metric(task)]:.2f}" for task in tasks)


class Fireval:
    def __init__(self, place, model, protocol, dtype="bf16"):
        self.place, self.model, self.protocol, self.dtype = place, place.checkpoint(model), protocol, dtype

    def run(self, tasks, samples=None):
        """(what it cost, metrics by task): a process for each limit among the tasks, added up."""
        runs, metrics = [], {}
        for limit in dict.fromkeys(task.limit for task in tasks):
            some = [task for task in tasks if task.limit == limit]
            run, found = self.run_some(some, limit, samples / f"{limit}.jsonl" if samples else None)
            runs.append(run)
            metrics.update(found)
        text = "".join(run.text for run in runs)
        total = measure.Run(sum(r.wall for r in runs), sum(r.cpu for r in runs), max(r.peak for r in runs), text)
        return total, metrics

    def run_some(self, tasks, limit, samples):
        with tempfile.TemporaryDirectory() as folder:  # nothing stored: everything is computed
            results = pathlib.Path(folder) / "results"
            command = [self.place.fireval, "eval", self.model, "--protocol", self.protocol, "--dtype", self.dtype]
            command += ["--data", self.place.needs_data(), "--results", results, "--limit", limit]
            command += ["--tasks", ",".join(task.name for task in tasks)]
            if samples:
                samples.parent.mkdir(parents=True, exist_ok=True)
                command += ["--samples", samples]
            run = self.place.run(command, "fireval", folder=folder)
            manifests = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("runs/*/*/*.json")]
        return run, {one["task"]: one["estimates"] for one in manifests}

    def accuracy(self, tasks, metrics, harness):
        """The metric that the harness printed beside it."""
        found = []
        for task in tasks:
            estimates = metrics[task.name]
            name = "mc2" if task.name == "truthfulqa" else harness.metric(task)
            found.append(f"{task.name} {100 * estimates[name]['value']:.2f}")
        return "; ".join(found)

    def prompts(self, tasks):
        """Every request of the tasks' documents, as picks.read has them."""
        documents = {}
        for task in tasks:
            command = [self.place.fireval, "prompts", task.name, "--protocol", self.protocol, "--limit", task.limit]
            command += ["--data", self.place.needs_data()]
            run = self.place.run(command, "fireval-prompts", folder=tempfile.gettempdir())
            for line in run.text.splitlines():
                if line.startswith("{"):
                    document = json.loads(line)
                    documents[(document["task"], document["subtask"], document["doc"])] = document
        return documents


def with_limits(share):
    """The tasks on a share of their documents; two at least, as the harness of June 2023 divides by one less."""
    return [dataclasses.replace(task, limit=max(2, round(task.limit * share))) for task in TASKS]


def tune(harness, tasks, dtypes):
    """The best setting of each task and of all together, by seconds inside one process a setting."""
    seconds = {}
    for setting in itertools.product(dtypes, harness.batch_sizes):
        try:
            _, lines = harness.run(tasks, setting)
            seconds[setting] = {name: line["seconds"] for name, line in lines.items()}
            print(f"  {sum(seconds[setting].values()):8.1f} s  {setting}", flush=True)
        except measure.Failed as error:
            print(f"  failed     {setting}: {error}", flush=True)
    if not seconds:
        raise measure.Failed(f"no setting of {harness.environment} ran; its log has the reason")
    best = {task.name: min(seconds, key=lambda setting: seconds[setting][task.name]) for task in tasks}
    together = min(seconds, key=lambda setting: sum(seconds[setting].values()))
    return best, together


def contest(place, harness, model, tasks, setting, case):
    """The lines of one case, the two programs in turn."""
    fireval = Fireval(place, model, harness.protocol)
    theirs, ours = measure.in_turn(place.pairs, lambda: harness.run(tasks, setting), lambda: fireval.run(tasks))
    peer = table.Side(
        f"harness {harness.environment}", f"{setting[0]}, batch {setting[1]}", [run for run, _ in theirs],
        accuracy=harness.accuracy(tasks, theirs[-1][1]),
    )  # fmt: skip
    accuracy = fireval.accuracy(tasks, ours[-1][1], harness)
    own = table.Side("fireval", f"bf16, {harness.protocol}", [run for run, _ in ours], accuracy=accuracy)
    return table.pair_lines(PART, f"{model}, {case}", peer, own)


def versus(place, asked, model, harness):
    """Tunes a harness, then every task alone and all together."""
    tasks = [task for task in with_limits(asked.share) if task.name in asked.tasks.split(",")]
    settings = asked.setting and {task.name: tuple(asked.setting.split(":")) for task in tasks}
    together = asked.setting and tuple(asked.setting.split(":"))
    if not settings:
        names = [task.name for task in tasks]
        part = [task for task in with_limits(asked.share * asked.tune_share) if task.name in names]
        settings, together = tune(harness, part, asked.dtypes.split(","))
    for task in [] if asked.only == "together" else tasks:
        yield from contest(place, harness, model, [task], settings[task.name], f"{task.name}, {task.limit} documents")
    if asked.only != "tasks":
        yield from contest(place, harness, model, tasks, together, "together")


def sampled(place, model, tasks, harness, folder):
    """Answers of both programs in f32 and bf16; the harness's bf16 with an f32 softmax, which is its best."""
    shutil.rmtree(folder, ignore_errors=True)
    harness.run(tasks, ("float32", 1), folder / "harness-f32")
    harness.run(tasks, ("bfloat16", 1), folder / "harness-bf16", "float32")
    for dtype in ("f32", "bf16"):
        Fireval(place, model, harness.protocol, dtype).run(tasks, folder / f"fireval-{dtype}")
    names = ["harness-f32", "harness-bf16", "fireval-f32", "fireval-bf16"]
    return {name: picks.read(sorted((folder / name).glob("*.jsonl"))) for name in names}


def pick_lines(place, asked, model, harness):
    """How many documents' picks differ between the programs in f32, and between each one's bf16 and f32."""
    tasks = [task for task in with_limits(asked.share) if task.name in asked.tasks.split(",")]
    answers = sampled(place, model, tasks, harness, place.peers / "samples" / model)
    texts = answers["harness-f32"]
    lengths = picks.continuation_lengths(texts)
    prompts = Fireval(place, model, harness.protocol).prompts(tasks)
    theirs, ours = picks.prompt_digests(texts), picks.prompt_digests(prompts)
    same = sum(theirs.get(key) == value for key, value in ours.items())
    made = [table.Line(PART, f"{model}, prompts", "both", accuracy=f"equal in {same} of {len(ours)} documents")]
    pairs = {
        "fireval f32 and harness f32": ("fireval-f32", "harness-f32"),
        "harness bf16 and its f32": ("harness-bf16", "harness-f32"),
        "fireval bf16 and its f32": ("fireval-bf16", "fireval-f32"),
    }
    for said, (one, other) in pairs.items():
        counts = {task.name: picks.differing(answers[one], answers[other], lengths, task.name) for task in tasks}
        each = "; ".join(f"{name} {apart} of {both}" for name, (apart, both) in counts.items())
        total = sum(apart for apart, _ in counts.values()), sum(both for _, both in counts.values())
        case = f"{model}, picks that differ"
        made.append(table.Line(PART, case, said, accuracy=f"{total[0]} of {total[1]}", note=each))
    return made


def attempt(place, asked, model, measured, version):
    """The lines of `measured`, or one that says why there are none."""
    try:
        yield from measured(place, asked, model, version(place, model))
    except measure.Failed as error:
        yield table.not_run(PART, model, f"{measured.__name__}, {version.__name__}", error)


def lines(place, asked):
    if place.data is None:
        yield table.not_run(PART, "all", "all", "no --data (or FIREVAL_DATA) names the six benchmarks")
        return
    data_files.lay_out(place.data, place.peers / "rows")
    for model in asked.models.split(","):
        print(f"six tasks: {model}", flush=True)
        if "latest" in asked.harnesses and not asked.no_times:
            yield from attempt(place, asked, model, versus, Harness.latest)
        if "latest" in asked.harnesses and not asked.no_picks:
            yield from attempt(place, asked, model, pick_lines, Harness.latest)
        if "v1" in asked.harnesses and os.environ.get("LMEVAL_V1"):
            yield from attempt(place, asked, model, versus, Harness.of_june_2023)
        elif "v1" in asked.harnesses:
            yield table.not_run(PART, model, "harness of June 2023", "LMEVAL_V1 names no checkout")


def add_flags(parser):
    parser.add_argument("--models", default="dense,mixture-4", help="checkpoints")
    parser.add_argument("--tasks", default=",".join(task.name for task in TASKS), help="some of the six")
    parser.add_argument("--share", type=float, default=1.0, help="of 40 documents a task, 4 a subject, 20 of GSM8K")
    parser.add_argument("--tune-share", type=float, default=0.2, help="of those, to try dtypes and batch sizes on")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of the harness, to try")
    parser.add_argument("--setting", help="DTYPE:BATCH of the harness for all tasks, instead of trying")
    parser.add_argument("--only", choices=["tasks", "together"], help="each task alone, or all together, not both")
    parser.add_argument("--no-times", action="store_true", help="compare picks alone")
    parser.add_argument("--no-picks", action="store_true", help="measure times alone")
    parser.add_argument("--harnesses", nargs="+", choices=["latest", "v1"], default=["latest", "v1"], help="which of two")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / "six-tasks", place.preface)


if __name__ == "__main__":
    main()
