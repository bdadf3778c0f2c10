"""Lays the benchmark rows out as the harnesses' tasks ask for them, so that those run their own definitions without a
hub: <out>/<data set>/<configuration>/<split>.jsonl, MMLU parted by subject. `local_loader` then stands in for
datasets.load_dataset inside a harness."""

import collections
import json
import pathlib
import shutil

# Data sets of the harness (today's and June 2023's spelling), the folder here, configurations and files of each split.
SETS = {
    "arc": (["allenai/ai2_arc", "ai2_arc"], "arc_challenge", {s: s for s in ["train", "validation", "test"]}),
    "hellaswag": (["Rowan/hellaswag", "hellaswag"], "hellaswag", {"train": "train", "validation": "validation"}),
    "truthfulqa": (["truthfulqa/truthful_qa", "truthful_qa"], "truthfulqa", {"validation": "mc_validation"}),
    "winogrande": (
        ["allenai/winogrande", "winogrande"], "winogrande", {"train": "train_xl", "validation": "validation"},
    ),
    "gsm8k": (["openai/gsm8k", "gsm8k"], "gsm8k", {"train": "train", "test": "test"}),
    "mmlu": (["cais/mmlu", "hendrycks_test"], "mmlu", {s: s for s in ["dev", "validation", "test"]}),
}  # fmt: skip


def lay_out(data, out):
    """Writes what is missing under `out` from the folder `data`."""
    for name, (_, folder, splits) in SETS.items():
        for split, file in splits.items():
            source = data / folder / f"{file}.jsonl"
            if name == "mmlu":
                part_by_subject(source, out / name, split)
            else:
                (out / name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, out / name / f"{split}.jsonl")


def part_by_subject(source, out, split):
    subjects = collections.defaultdict(list)
    with open(source, encoding="utf-8", newline="\n") as rows:
        for line in rows:
            subjects[json.loads(line)["subject"]].append(line)
    for subject, lines in subjects.items():
        (out / subject).mkdir(parents=True, exist_ok=True)
        (out / subject / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def local_loader(out, load):
    """A stand-in for `load` (datasets.load_dataset) that reads the files of `lay_out`."""
    spellings = {spelling: name for name, (spelled, _, _) in SETS.items() for spelling in spelled}

    def load_dataset(path, name=None, **_):
        short = spellings.get(path) or spellings.get(pathlib.Path(path).stem)
        if short is None:
            raise ValueError(f"{path}: no rows of that data set here")
        folder = out / short / name if short == "mmlu" else out / short
        return load("json", data_files={file.stem: str(file) for file in sorted(folder.glob("*.jsonl"))})

    return load_dataset
