"""Today's lm-evaluation-harness on local rows: one model, loaded once, its own tasks one after the other through its own
`simple_evaluate`. Prints a JSON line a task (seconds, metrics) and writes every document's answers. Runs in the
environment lm-eval; six_tasks.py calls it."""

import argparse
import json
import os
import pathlib
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
    parser.add_argument("--tasks", required=True, help="name:shots:limit, with commas between")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--softmax-dtype", default=None, help="the harness's own option of that name")
    parser.add_argument("--batch-size", default="1", help="a number or auto")
    parser.add_argument("--max-batch-size", type=int, default=16, help="where auto begins")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--samples", type=pathlib.Path, help="a folder for the answers")
    return parser.parse_args()


def main():
    asked = arguments()
    torch.set_num_threads(asked.threads)
    datasets.load_dataset = data_files.local_loader(asked.rows, datasets.load_dataset)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=asked.model, device="cpu", dtype=asked.dtype, softmax_dtype=asked.softmax_dtype,
        batch_size=asked.batch_size, max_batch_size=asked.max_batch_size,
    )  # fmt: skip
    manager = TaskManager()
    for task in asked.tasks.split(","):
        name, shots, limit = task.split(":")
        start = time.perf_counter()
        results = lm_eval.simple_evaluate(
            model, tasks=[name], num_fewshot=int(shots), limit=int(limit), task_manager=manager, bootstrap_iters=0
        )
        seconds = time.perf_counter() - start
        print(json.dumps({"task": name, "seconds": seconds, "metrics": metrics(results, name)}), flush=True)
        if asked.samples:
            write_samples(results["samples"], asked.samples, name)


def metrics(results, name):
    found = (results.get("groups") or {}).get(name) or results["results"][name]
    return {key.removesuffix(",none"): value for key, value in found.items() if isinstance(value, float)}


def write_samples(samples, folder, name):
    """`{"subtask","doc","requests":[{"context","continuation","ll"}],"output"}`, a line a document."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for subtask, documents in samples.items():
            seen = set()
            for sample in documents:
                if sample["doc_id"] not in seen:  # one of several filters
                    seen.add(sample["doc_id"])
                    file.write(json.dumps(document(subtask, sample)) + "\n")


def document(subtask, sample):
    asked = [request if isinstance(request, (list, tuple)) else list(request.values()) for request in requests(sample)]
    if isinstance(asked[0][1], dict):  # a generation: its second argument holds the stop strings
        return {"subtask": subtask, "doc": sample["doc_id"], "context": asked[0][0], "output": first(sample["resps"])}
    scores = [float(first(response)[0]) for response in sample["resps"]]
    made = [{"context": c, "continuation": t, "ll": ll} for (c, t, *_), ll in zip(asked, scores)]
    return {"subtask": subtask, "doc": sample["doc_id"], "requests": made}


def requests(sample):
    arguments = sample["arguments"]
    return list(arguments.values()) if isinstance(arguments, dict) else list(arguments)


def first(response):
    """The harness wraps an answer in one list or two."""
    while isinstance(response, list) and response and isinstance(response[0], (list, tuple)):
        response = response[0]
    return response[0] if isinstance(response, list) else response


if __name__ == "__main__":
    main()
