"""Runs a command and says what it cost, as the operating system counts it: wall seconds, CPU seconds of the process and
all that it waited for, and the peak resident memory of the largest of them.

Two programs are measured in turn, A B A B, and compared pair by pair, so that a machine whose speed drifts does not
decide. (A child begins with its parent's peak, about 15 MiB here: no figure below that is to be believed.)"""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import time


@dataclasses.dataclass
class Run:
    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: float  # MiB
    text: str  # what the command printed on standard output


class Failed(Exception):
    """A command that did not end well: the reason goes into the table."""


def run(command, log, environment=None, folder=None):
    """Runs `command` to its end; standard error goes to the file `log`, standard output into the result."""
    command = [str(part) for part in command]
    log = pathlib.Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    printed = log.with_suffix(".out")
    start = time.perf_counter()
    with open(printed, "wb") as output, open(log, "wb") as errors:
        child = subprocess.Popen(
            command, stdout=output, stderr=errors, env={**os.environ, **(environment or {})}, cwd=folder
        )
        _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise Failed(f"{pathlib.Path(command[0]).name} ended with {child.returncode}: {last_line(log)}")
    text = printed.read_text(encoding="utf-8", errors="replace")
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text)


def last_line(log):
    lines = pathlib.Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"


def in_turn(pairs, theirs, ours):
    """Calls theirs, ours, theirs, ours, ...: the runs of each, of equal length."""
    both = [(theirs(), ours()) for _ in range(pairs)]
    return [pair[0] for pair in both], [pair[1] for pair in both]


def median_ratio(theirs, ours):
    """The median over pairs of theirs / ours, with the smallest and the largest."""
    ratios = [one / other for one, other in zip(theirs, ours)]
    return statistics.median(ratios), min(ratios), max(ratios)


def threads(count):
    """The environment that holds every program here to `count` threads."""
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"]
    return {name: str(count) for name in names}


# torch gives freed tensors back to the kernel and takes fresh pages for the next; this keeps them, which is its best.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
