"""Cuts the bundled slice out of the whole data: python3 slice.py DATA_FOLDER, writes beside itself.

The rule: the first rows of each file, byte for byte; of MMLU all dev rows and the first 4 test rows of each subject.
"""
import json
import pathlib
import sys

EXAMPLES, DOCUMENTS, SUBJECT = 60, 100, 4
FIRST = {
    "arc_challenge/train": EXAMPLES, "arc_challenge/test": DOCUMENTS,
    "hellaswag/train": EXAMPLES, "hellaswag/validation": DOCUMENTS,
    "winogrande/train_xl": EXAMPLES, "winogrande/validation": DOCUMENTS,
    "gsm8k/train": EXAMPLES, "gsm8k/test": DOCUMENTS,
    "truthfulqa/mc_validation": DOCUMENTS, "mmlu/dev": 285,
}

source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent


def lines(name):
    return (source / f"{name}.jsonl").read_bytes().splitlines(keepends=True)


def write(name, kept):
    path = here / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(kept))


for name, count in FIRST.items():
    write(name, lines(name)[:count])

seen, kept = {}, []
for line in lines("mmlu/test"):
    subject = json.loads(line)["subject"]
    seen[subject] = seen.get(subject, 0) + 1
    if seen[subject] <= SUBJECT:
        kept.append(line)
write("mmlu/test", kept)
