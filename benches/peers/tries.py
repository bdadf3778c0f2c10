"""What a contest does before and while it measures: fireval's own bench is built, each setting of a peer is tried once."""

import json
import subprocess

import measure
import places


def bench_binary(name):
    """The executable of `cargo bench --bench NAME`, built if need be."""
    build = ["cargo", "bench", "--locked", "--bench", name, "--no-run", "--message-format=json"]
    built = subprocess.run(build, cwd=places.REPOSITORY, capture_output=True, text=True)
    if built.returncode != 0:
        raise measure.Failed(f"cargo bench --bench {name}: {built.stderr.strip().splitlines()[0]}")
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name)


def tried(call, settings):
    """(seconds, setting) of each setting with one counted pass, the fastest first; those that fail are left out."""
    seconds, failed = [], []
    for setting in settings:
        try:
            seconds.append((call(*setting, repeats=1).seconds, setting))
        except measure.Failed as error:
            failed.append(f"{setting}: {error}")
    if not seconds:
        raise measure.Failed(failed[0])
    seconds.sort(key=lambda one: one[0])
    print("\n".join([f"  {one:8.3f} s  {setting}" for one, setting in seconds] + failed), flush=True)
    return seconds


def next_best(seconds, said):
    """The settings behind the fastest, in words."""
    others = "; ".join(f"{said(*setting)}: {one:.2f} s" for one, setting in seconds[1:4])
    return f"next best of {len(seconds)}: {others}" if others else ""
