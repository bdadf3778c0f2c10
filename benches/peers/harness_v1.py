"""The harness of June 2023 (the checkout that LMEVAL_V1 names, unchanged) on local rows: its model class
`hf-causal-experimental`, loaded once, its own tasks one after the other. Prints what harness.py prints. Runs in the
environment lm-eval-v1; six_tasks.py calls it. It gives no answers per document that could be compared, only metrics."""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the libraries as they are imported

import datasets
import torch

import data_files

datasets.disable_progress_bars()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True, help="the folder of data_files.lay_out")
    parser.add_argument("--tasks", required=True, help="name:shots:limit, with commas between; mmlu means all subjects")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def names(task, rows):
    """The harness has a task a subject."""
    if task == "mmlu":
        return [f"hendrycksTest-{folder.name}" for folder in sorted((rows / "mmlu").iterdir())]
    return [task]


def metrics(results):
    """The plain mean over what was asked together, as the leaderboard averaged the subjects."""
    tables = list(results["results"].values())
    keys = [key for key in tables[0] if not key.endswith("_stderr")]
    return {key: sum(float(table[key]) for table in tables) / len(tables) for key in keys}


def main():
    asked = arguments()
    torch.set_num_threads(asked.threads)
    sys.path.insert(0, os.environ["LMEVAL_V1"])
    datasets.load_dataset = data_files.local_loader(asked.rows, datasets.load_dataset)
    import lm_eval.evaluator
    import lm_eval.models

    kind = lm_eval.models.get_model("hf-causal-experimental")
    model = kind(pretrained=asked.model, device="cpu", dtype=asked.dtype, batch_size=asked.batch_size)
    for task in asked.tasks.split(","):
        name, shots, limit = task.split(":")
        start = time.perf_counter()
        results = lm_eval.evaluator.simple_evaluate(
            model, tasks=names(name, asked.rows), num_fewshot=int(shots), limit=int(limit), no_cache=True,
            bootstrap_iters=0,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        print(json.dumps({"task": name, "seconds": seconds, "metrics": metrics(results)}), flush=True)


if __name__ == "__main__":
    main()
