"""llama.cpp's own multiple-choice modes (llama-perplexity in the folder that LLAMA_CPP_BIN names) against `fireval eval`:
HellaSwag and Winogrande without examples, as its modes ask them, and HellaSwag with its ten examples through
--multiple-choice, all on the same documents and prompts, start to finish.

The accuracies are by different rules: llama.cpp takes the mean over tokens and leaves some tokens out; fireval follows the
harness. So they are near each other, not equal."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import struct
import tempfile

import measure
import places
import table

PART = "multiple choice"
PROTOCOL = "lm-eval-latest"


@dataclasses.dataclass
class Mode:
    name: str
    task: str
    flag: str  # llama-perplexity's
    shots: int
    limit: int


MODES = [
    Mode("HellaSwag, 0 shots, --hellaswag", "hellaswag", "--hellaswag", 0, 400),
    Mode("Winogrande, 0 shots, --winogrande", "winogrande", "--winogrande", 0, 400),
    Mode("HellaSwag, 10 shots, --multiple-choice", "hellaswag", "--multiple-choice", 10, 40),
]


def binaries():
    folder = os.environ.get("LLAMA_CPP_BIN")
    if not folder:
        raise measure.Failed("LLAMA_CPP_BIN names no folder with llama-perplexity")
    return pathlib.Path(folder).resolve()


def task_file(mode, folder):
    """fireval's own task with the mode's number of examples."""
    text = (places.REPOSITORY / "tasks" / f"{mode.task}.toml").read_text(encoding="utf-8")
    changed = re.sub(r"(?m)^shots = \d+$", f"shots = {mode.shots}", text)
    changed = re.sub(r'(?m)^name = "(\w+)"$', rf'name = "\1_{mode.shots}"', changed, count=1)
    path = folder / f"{mode.task}-{mode.shots}.toml"
    path.write_text(changed, encoding="utf-8")
    return path


def documents(place, mode, folder):
    """(the row, its requests) of each document."""
    command = [place.fireval, "prompts", task_file(mode, folder), "--protocol", PROTOCOL, "--limit", mode.limit]
    run = place.run([*command, "--data", place.needs_data()], "fireval-prompts", folder=folder)
    prompts = [json.loads(line) for line in run.text.split("\n") if line.startswith("{")]
    file = place.needs_data() / mode.task / "validation.jsonl"
    with open(file, encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    return [(rows[prompt["doc"]], prompt["requests"]) for prompt in prompts]


def hellaswag_file(asked, path):
    """Six lines a document: context, number of the right ending, endings."""
    lines = []
    for row, requests in asked:
        texts = [requests[0]["context"], row["label"]] + [request["continuation"][1:] for request in requests]
        if any("\n" in text for text in texts):
            raise measure.Failed("a document with a line break does not fit --hellaswag's file")
        lines += texts
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def winogrande_file(asked, path):
    """index,"sentence",option1,option2,answer"""
    lines = []
    for index, (row, _) in enumerate(asked):
        if '"' in row["sentence"] or "," in row["option1"] + row["option2"]:
            raise measure.Failed(f"Winogrande row {index} does not fit --winogrande's file")
        lines.append(f'{index},"{row["sentence"]}",{row["option1"]},{row["option2"]},{row["answer"]}\n')
    # llama.cpp takes the file's last line break away, and does not read a line that ends without one.
    path.write_text("".join(lines) + "\n", encoding="utf-8")


def string(text):
    raw = text.encode("utf-8")
    return struct.pack("<I", len(raw)) + raw


def multiple_choice_file(asked, path):
    """Number of tasks, their places in the file (not used when all are read), the tasks."""
    tasks = []
    for row, requests in asked:
        answers = b"".join(string(request["continuation"][1:]) for request in requests)
        labels = [int(at == int(row["label"])) for at in range(len(requests))]
        single = struct.pack("<I", len(requests)) + answers + struct.pack(f"<{len(labels)}i", *labels)
        tasks.append(string(requests[0]["context"]) + single + struct.pack("<I", 0))
    first = 4 + 4 * len(tasks)
    ends = itertools.accumulate((len(task) for task in tasks), initial=first)
    starts = list(ends)[:-1]
    path.write_bytes(struct.pack(f"<{1 + len(tasks)}I", len(tasks), *starts) + b"".join(tasks))


WRITERS = {
    "--hellaswag": hellaswag_file,
    "--winogrande": winogrande_file,
    "--multiple-choice": multiple_choice_file,
}


class Llama:
    def __init__(self, place, mode, model, file):
        self.place, self.mode, self.model, self.file = place, mode, model, file

    def settings(self, kinds):
        """type, context, sequences at once: all on the first type, then the other types at the best."""
        return [(kinds[0], context, parallel) for context in (1024, 2048) for parallel in (4, 8)]

    def run(self, kind, context, parallel):
        source = "--binary-file" if self.mode.flag == "--multiple-choice" else "--file"
        command = [binaries() / "llama-perplexity", "--model", self.place.checkpoint(f"{self.model}-{kind}.gguf")]
        command += [self.mode.flag, f"{self.mode.flag}-tasks", self.mode.limit, source, self.file]
        command += ["--ctx-size", context, "--batch-size", context, "--parallel", parallel]
        command += ["--threads", self.place.threads, "--threads-batch", self.place.threads]
        run = self.place.run(command, "llama-perplexity")
        done, accuracy = score(run.text)
        if done != self.mode.limit:
            raise measure.Failed(f"llama-perplexity scored {done} of {self.mode.limit} documents")
        return run, accuracy

    def best(self, kinds):
        found = self.tried(self.settings(kinds))
        found += self.tried([(kind, *min(found)[1][1:]) for kind in kinds[1:]]) if found else []
        if not found:
            raise measure.Failed("no setting of llama-perplexity ran; logs/llama-perplexity.log has the reason")
        return min(found)[1]

    def tried(self, settings):
        found = []
        for setting in settings:
            try:
                found.append((self.run(*setting)[0].wall, setting))
                print(f"  {found[-1][0]:8.2f} s  {setting}", flush=True)
            except measure.Failed as error:
                print(f"  failed     {setting}: {error}", flush=True)
        return found


def score(text):
    """(documents, accuracy in percent) of the last line of scores."""
    lines = re.findall(r"(?m)^(\d+)\t([\d.]+)%?", text)
    return (int(lines[-1][0]), float(lines[-1][1])) if lines else (0, float("nan"))


def fireval_run(place, mode, model, folder):
    with tempfile.TemporaryDirectory() as results:
        command = [place.fireval, "eval", place.checkpoint(model), "--dtype", "bf16", "--protocol", PROTOCOL]
        command += ["--data", place.needs_data(), "--results", pathlib.Path(results) / "results", "--limit", mode.limit]
        run = place.run([*command, "--tasks", task_file(mode, folder)], "fireval", folder=folder)
        manifest = next(pathlib.Path(results).glob("results/runs/*/*/*.json"))
        estimates = json.loads(manifest.read_text(encoding="utf-8"))["estimates"]
    return run, 100 * estimates.get("acc_norm", estimates["acc"])["value"]


def mode_lines(place, asked, mode, model):
    case = f"{model}, {mode.name}, {mode.limit} documents"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        file = folder / "documents"
        WRITERS[mode.flag](documents(place, mode, folder), file)
        llama = Llama(place, mode, model, file)
        best = llama.best(asked.kinds.split(","))
        theirs, ours = measure.in_turn(
            place.pairs, lambda: llama.run(*best), lambda: fireval_run(place, mode, model, folder)
        )
    said = f"{best[0]}, context {best[1]}, {best[2]} sequences"
    peer = table.Side("llama.cpp", said, [run for run, _ in theirs], accuracy=f"{theirs[-1][1]:.2f}")
    own = table.Side("fireval", "bf16", [run for run, _ in ours], accuracy=f"{ours[-1][1]:.2f}")
    return table.pair_lines(PART, case, peer, own)


def lines(place, asked):
    for model, mode in itertools.product(asked.models.split(","), MODES):
        mode = dataclasses.replace(mode, limit=max(1, round(mode.limit * asked.share)))
        print(f"multiple choice: {model}, {mode.name}", flush=True)
        try:
            binaries()
            yield from mode_lines(place, asked, mode, model)
        except measure.Failed as error:
            yield table.not_run(PART, f"{model}, {mode.name}", "llama.cpp", error)


def add_flags(parser):
    parser.add_argument("--models", default="dense", help="checkpoints")
    parser.add_argument("--kinds", default="bf16,f16,q8_0,q4_0", help="types of llama.cpp's files")
    parser.add_argument("--share", type=float, default=1.0, help="of 400 documents without examples, 40 with")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / "multiple-choice", place.preface)


if __name__ == "__main__":
    main()
