#!/usr/bin/env python3
"""Writes noise_floor.csv: how far float16 and bfloat16 rows of the same weights lie apart on the old leaderboard.

    python3 noise_floor.py open_llm_leaderboard_v1.csv > noise_floor.csv

The input is the whole leaderboard (7,169 rows; the file beside this script is a part of it). A pair is one model at one
commit, published in both types with its original weights. Points of a hundred; the 90th percentile is the smallest
difference that nine pairs in ten do not exceed.
"""

import csv
import math
import statistics
import sys
from collections import defaultdict

# The leaderboard's columns by the names that tasks have in fireval.
TASKS = {
    "arc": "arc_challenge",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu",
    "truthfulqa": "truthfulqa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
    "average": "average",
}
TYPES = ("float16", "bfloat16")


def pairs(path):
    rows = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["weight_type"] == "Original" and row["model_sha"] and row["precision"] in TYPES:
                # The leaderboard lists the best rows first; a second row of the same kind is a re-run.
                rows[row["model"], row["model_sha"]].setdefault(row["precision"], row)
    return [kinds for kinds in rows.values() if len(kinds) == len(TYPES)]


def main():
    found = pairs(sys.argv[1])
    print("task,pairs,median,p90")
    for column, task in TASKS.items():
        apart = sorted(abs(float(kinds[TYPES[0]][column]) - float(kinds[TYPES[1]][column])) for kinds in found)
        p90 = apart[math.ceil(0.9 * len(apart)) - 1]
        print(f"{task},{len(found)},{statistics.median(apart):.2f},{p90:.2f}")


main()
