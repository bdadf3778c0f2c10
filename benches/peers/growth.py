"""How fireval's time and memory grow with the documents of a task (x1, x10, x100), and what a person waits for: `--help`,
and a first stored score from a cold start (a new process, nothing stored; the files in the page cache)."""

import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import measure
import places
import table

PART = "growth"


def evaluation(place, asked, limit, results):
    command = [place.fireval, "eval", place.checkpoint(asked.model), "--dtype", "bf16", "--data", place.needs_data()]
    command += ["--protocol", "lm-eval-latest", "--tasks", asked.task, "--limit", limit, "--results", results]
    return [str(part) for part in command] + (["--memory", asked.memory] if asked.memory else [])


def grown(place, asked, limit):
    """(what it cost, tokens computed, accuracy) of one run that finds nothing stored."""
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results"
        run = place.run(evaluation(place, asked, limit, results), "fireval", folder=folder)
        manifest = json.loads(next(results.glob("runs/*/*/*.json")).read_text(encoding="utf-8"))
    metric = manifest["metric"]
    return run, manifest["tokens"], f"{metric} {100 * manifest['estimates'][metric]['value']:.2f}"


def growth_lines(place, asked):
    for factor in (1, 10, 100):
        limit = asked.documents * factor
        print(f"growth: {asked.task}, {limit} documents", flush=True)
        case = f"{asked.model}, {asked.task}, x{factor}: {limit} documents"
        try:
            found = [grown(place, asked, limit) for _ in range(place.pairs if factor < 100 else 1)]
        except measure.Failed as error:
            yield table.not_run(PART, case, "fireval", error)
            continue
        side = table.Side("fireval", "bf16", [run for run, _, _ in found], found[-1][1], found[-1][2])
        line = side.line(PART, case)
        line.note = f"{1000 * line.wall_s / limit:.1f} ms a document"
        yield line


def help_line(place):
    """The median of twenty calls; wait4's smallest unit of CPU time is too coarse for one."""
    runs = [place.run([place.fireval, "--help"], "fireval-help") for _ in range(20)]
    line = table.Side("fireval", "", runs).line(PART, "--help")
    line.note = f"{1000 * line.wall_s:.1f} ms"
    return line


def first_score(place, asked):
    """Seconds from the start of the process to the first whole line in a log of documents."""
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results"
        start = time.perf_counter()
        with open(place.peers / "logs" / "fireval-first.log", "wb") as log:
            child = subprocess.Popen(evaluation(place, asked, 1, results), cwd=folder, stdout=log, stderr=log)
        try:
            while child.poll() is None and not stored(results):
                time.sleep(0.001)
            seconds = time.perf_counter() - start
            if not stored(results):
                raise measure.Failed("fireval stored nothing; logs/fireval-first.log has the reason")
        finally:
            child.wait()
    return seconds


def stored(results):
    return any(b"\n" in path.read_bytes() for path in results.glob("runs/*/*/*.jsonl"))


def first_line(place, asked):
    seconds = [first_score(place, asked) for _ in range(5)]
    line = table.Line(PART, f"{asked.model}, cold start to the first stored score", "fireval", "bf16", len(seconds))
    line.wall_s = statistics.median(seconds)
    line.note = f"{asked.task}, one document; from {min(seconds):.3f} to {max(seconds):.3f} s"
    return line


def lines(place, asked):
    yield from growth_lines(place, asked)
    for case, call in {"--help": lambda: help_line(place), "first score": lambda: first_line(place, asked)}.items():
        try:
            yield call()
        except measure.Failed as error:
            yield table.not_run(PART, case, "fireval", error)


def add_flags(parser):
    parser.add_argument("--model", default="dense", help="checkpoint")
    parser.add_argument("--task", default="winogrande", help="one with enough documents")
    parser.add_argument("--documents", type=int, default=12, help="of x1")
    parser.add_argument("--memory", help="fireval's --memory, as 2GiB")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / "growth", place.preface)


if __name__ == "__main__":
    main()
