"""Cuts the bundled slice out of the whole data: python3 slice.py DATA_FOLDER, writes beside itself.

The rule: the documents that every protocol asks first (40 of a task, 10 of each of six MMLU subjects), and exactly the
rows that their few-shot examples are drawn from. `slice.json` says how many rows a file has in full and which of them
are here, so that draws over the slice are draws over the whole. Fields that no prompt shows are left out.
"""
import json
import pathlib
import random
import sys

DOCUMENTS, SUBJECT_DOCUMENTS = 40, 10
SUBJECTS = ["astronomy", "computer_security", "high_school_mathematics", "nutrition", "philosophy", "sociology"]
# task folder: evaluation file, pool, examples, whether lm-eval draws one more (no test split)
TASKS = {
    "arc_challenge": ("test", "train", 25, False),
    "hellaswag": ("validation", "train", 10, True),
    "truthfulqa": ("mc_validation", None, 0, False),
    "winogrande": ("validation", "train_xl", 5, True),
    "gsm8k": ("test", "train", 5, False),
}
UNSEEN = {"hellaswag": ["ind", "ctx", "source_id", "split", "split_type"], "arc_challenge": ["id"]}

source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
manifest = {}


def rows(folder, file):
    return [json.loads(line) for line in (source / folder / f"{file}.jsonl").open(encoding="utf-8")]


def write(folder, file, everything, kept, **more):
    kept = sorted(kept)
    path = here / folder / f"{file}.jsonl"
    path.parent.mkdir(exist_ok=True)
    shown = ({k: v for k, v in everything[row].items() if k not in UNSEEN.get(folder, [])} for row in kept)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown), encoding="utf-8")
    manifest[f"{folder}/{file}"] = {"rows": len(everything), "kept": kept, **more}


def draws(count, limit, pool, shots, one_more):
    """Documents asked and pool rows drawn, over all protocols."""
    documents, drawn = set(), set()
    v1 = random.Random(42)
    order = list(range(count))
    v1.shuffle(order)
    documents.update(order[:limit], range(min(limit, count)))
    if shots:
        for generator, k in [(v1, shots), (random.Random(1234), shots), (random.Random(1234), shots + one_more)]:
            for _ in range(min(limit, count)):
                drawn.update(generator.sample(range(pool), k)[:shots])
    return documents, drawn


for folder, (evaluation, pool, shots, one_more) in TASKS.items():
    documents = rows(folder, evaluation)
    examples = rows(folder, pool) if pool else []
    asked, drawn = draws(len(documents), DOCUMENTS, len(examples), shots, one_more)
    write(folder, evaluation, documents, asked, documents=DOCUMENTS)
    if pool:
        write(folder, pool, examples, drawn)

for file, limit in [("test", SUBJECT_DOCUMENTS), ("dev", None)]:
    everything = rows("mmlu", file)
    kept, parts = [], []
    for subject in SUBJECTS:
        place = [row for row, value in enumerate(everything) if value["subject"] == subject]
        assert place == list(range(place[0], place[-1] + 1))
        chosen = draws(len(place), limit, 0, 0, False)[0] if limit else range(len(place))
        kept += [place[row] for row in chosen]
        parts.append([subject, place[0], len(place)])
    write("mmlu", file, everything, kept, parts=parts, **({"documents": limit} if limit else {}))

lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in manifest.items())
(here / "slice.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
