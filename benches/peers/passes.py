"""What a prefill program does once its model is loaded: passes that are timed and passes that are not, and one JSON line
at the end. Shared by prefill_torch.py and prefill_llama.py, which run in different environments."""

import argparse
import json
import statistics
import time


def parser(text):
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--model", required=True)
    made.add_argument("--sequences", type=int, default=8)
    made.add_argument("--tokens", type=int, default=512)
    made.add_argument("--threads", type=int, required=True)
    made.add_argument("--warm-up", type=int, default=1, help="passes before those that count")
    made.add_argument("--repeats", type=int, default=3, help="passes that count")
    return made


def report(asked, forward):
    """Calls `forward` (which answers the best token and its log-probability after each sequence) and prints the line."""
    for _ in range(asked.warm_up):
        forward()
    seconds, cpu = [], []
    for _ in range(asked.repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        last = forward()
        seconds.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    line = {
        "what": f"{asked.sequences} x {asked.tokens}",
        "seconds": statistics.median(seconds),
        "processor": statistics.median(cpu),
        "tokens": asked.sequences * asked.tokens,
        "last": last,
    }
    print(json.dumps(line), flush=True)
