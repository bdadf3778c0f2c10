"""The table that all parts write: a line a program and case, in CSV and in Markdown. A thing that was not run says so
in its line and has no figures."""

import csv
import dataclasses
import statistics

import measure


@dataclasses.dataclass
class Line:
    part: str
    case: str
    program: str
    setting: str = ""
    runs: int = 0
    wall_s: float | None = None
    cpu_s: float | None = None
    peak_mib: float | None = None
    tokens_per_s: float | None = None
    ratio: float | None = None  # the peer's wall seconds over fireval's: the median of the pairs
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratio_cpu: float | None = None
    accuracy: str = ""
    note: str = ""


@dataclasses.dataclass
class Side:
    """One program's runs of a case. `seconds` and `cpu`, when given, were taken inside the program."""

    program: str
    setting: str
    runs: list
    tokens: int | None = None
    accuracy: str = ""
    note: str = ""
    seconds: list | None = None
    cpu: list | None = None

    def walls(self):
        return self.seconds or [run.wall for run in self.runs]

    def cpus(self):
        return self.cpu or [run.cpu for run in self.runs]

    def line(self, part, case):
        wall = statistics.median(self.walls())
        return Line(
            part, case, self.program, self.setting, len(self.runs), wall, statistics.median(self.cpus()),
            statistics.median(run.peak for run in self.runs), self.tokens / wall if self.tokens else None,
            accuracy=self.accuracy, note=self.note,
        )  # fmt: skip


def pair_lines(part, case, theirs, ours):
    """The lines of a peer and of fireval; the peer's holds the ratios."""
    peer, own = theirs.line(part, case), ours.line(part, case)
    peer.ratio, peer.ratio_low, peer.ratio_high = measure.median_ratio(theirs.walls(), ours.walls())
    peer.ratio_cpu = measure.median_ratio(theirs.cpus(), ours.cpus())[0]
    return [peer, own]


def not_run(part, case, program, why):
    return Line(part, case, program, note=f"not run: {why}")


FIELDS = [field.name for field in dataclasses.fields(Line)]


def cell(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def keep(lines, path, preface):
    """Writes the table anew with every line, so that what was measured stays when a long run is stopped."""
    made = []
    for line in lines:
        made.append(line)
        write(made, path, preface())
    print(f"kept: {path.with_suffix('.md')}, {path.with_suffix('.csv')}")


def write(lines, path, preface):
    """Writes `path`.csv (all digits) and `path`.md (rounded), both with every line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows([getattr(line, name) for name in FIELDS] for line in lines)
    path.with_suffix(".md").write_text(markdown(lines, preface), encoding="utf-8")


def markdown(lines, preface):
    heads = ["Part", "Case", "Program", "Setting", "Runs", "Wall s", "CPU s", "Peak MiB", "Tokens/s"]
    heads += ["Peer / fireval (min-max)", "of CPU s", "Accuracy", "Note"]
    rows = [preface, "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(rows + [markdown_row(line) for line in lines]) + "\n"


def markdown_row(line):
    ratio = "" if line.ratio is None else f"**{line.ratio:.2f}** ({line.ratio_low:.2f}-{line.ratio_high:.2f})"
    cells = [line.part, line.case, line.program, line.setting, line.runs or "", line.wall_s, line.cpu_s, line.peak_mib]
    cells += [line.tokens_per_s, ratio, line.ratio_cpu, line.accuracy, line.note.replace("|", "/")]
    return "| " + " | ".join(cell(value) for value in cells) + " |"
