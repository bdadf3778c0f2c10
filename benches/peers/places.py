"""What every part here is told on its command line, and where it finds things: the peers' environments, checkpoints
and logs under one folder outside the repository, fireval's binary, the benchmark data."""

import argparse
import dataclasses
import os
import pathlib
import platform
import subprocess

import measure

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


def default_peers():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "fireval" / "peers"


def default_fireval():
    target = os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target"
    return pathlib.Path(target) / "release" / "fireval"


def parser(text):
    """A part's flags; the part adds its own."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--peers", type=pathlib.Path, default=default_peers(), help="environments, checkpoints, logs")
    made.add_argument("--fireval", type=pathlib.Path, default=default_fireval(), help="the binary to measure")
    data = os.environ.get("FIREVAL_DATA")
    made.add_argument("--data", type=pathlib.Path, default=data, help="the six benchmarks, as tasks/README.md has them")
    made.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "target" / "peers", help="tables")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of every program")
    made.add_argument("--pairs", type=int, default=3, help="runs of each program, in turn")
    return made


@dataclasses.dataclass
class Place:
    """The flags that all parts share, made absolute."""

    peers: pathlib.Path
    fireval: pathlib.Path
    data: pathlib.Path | None
    out: pathlib.Path
    threads: int
    pairs: int

    @staticmethod
    def of(arguments):
        data = pathlib.Path(arguments.data).resolve() if arguments.data else None
        return Place(
            arguments.peers.resolve(), arguments.fireval.resolve(), data, arguments.out.resolve(),
            arguments.threads, arguments.pairs,
        )  # fmt: skip

    def python(self, peer):
        """The interpreter of a peer's environment; measure.Failed where install.py has not made it."""
        found = self.peers / peer / "bin" / "python"
        if not found.exists():
            raise measure.Failed(f"no environment {peer}: `install.py --only {peer}` makes it")
        return found

    def checkpoint(self, name):
        """A checkpoint of checkpoints.py; measure.Failed where it is not made."""
        found = self.peers / "checkpoints" / name
        if not found.exists():
            raise measure.Failed(f"no checkpoint {name}: checkpoints.py makes it")
        return found

    def run(self, command, name, environment=None, folder=None):
        """Runs a command on the threads allowed; its log is logs/<name>.log."""
        allowed = {**measure.threads(self.threads), **(environment or {})}
        return measure.run(command, self.peers / "logs" / f"{name}.log", allowed, folder)

    def needs_data(self):
        if self.data is None:
            raise measure.Failed("no --data (or FIREVAL_DATA): the six benchmarks")
        return self.data

    def preface(self):
        """What a table must say of the machine."""
        load = os.getloadavg()[0]
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
        return (
            f"{processor()}, {os.cpu_count()} processors, threads of every program: {self.threads}, load average "
            f"{load:.1f} when the table was written; commit {commit.stdout.strip()}."
        )


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
