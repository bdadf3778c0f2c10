"""GSM8K, five examples, up to 256 tokens an answer: transformers' `generate` in batches against `fireval eval`, the same
prompts and stop strings, start to finish. Tokens a second counts the tokens of the answers as they are kept, so a token
that a program computes and throws away counts for nothing."""

import itertools
import json
import pathlib
import re
import tempfile

import measure
import places
import table

PART = "generation"
PROTOCOL = "lm-eval-latest"


def is_right(output, answer):
    """lm-eval's strict match: the first `#### number` against the number of the right answer."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", output)
    return found is not None and plain(found.group(1)) == plain(answer.split("#### ")[-1])


def plain(number):
    return re.sub(r"\.$", "", number.strip().replace(",", "").replace("$", ""))


class Contest:
    def __init__(self, place, asked, model, folder):
        self.place, self.limit, self.name = place, asked.limit, model
        self.model, self.folder = place.checkpoint(model), folder
        self.prompts = folder / "prompts.jsonl"
        batches = [int(size) for size in asked.batches.split(",")]
        self.settings = list(itertools.product(asked.dtypes.split(","), batches))

    def prepare(self):
        command = [self.place.fireval, "prompts", "gsm8k", "--protocol", PROTOCOL, "--limit", self.limit]
        run = self.place.run([*command, "--data", self.place.needs_data()], "fireval-prompts", folder=self.folder)
        lines = [line for line in run.text.split("\n") if line.startswith("{")]
        self.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with open(self.place.needs_data() / "gsm8k" / "test.jsonl", encoding="utf-8", newline="\n") as rows:
            self.answers = [json.loads(row)["answer"] for row in rows]

    def torch(self, dtype, batch):
        """(what it cost, [document, text] of each)"""
        command = [self.place.python("lm-eval"), places.HERE / "generation_torch.py", "--model", self.model]
        command += ["--dtype", dtype, "--prompts", self.prompts, "--batch", batch, "--threads", self.place.threads]
        run = self.place.run(command, "generation-torch", measure.KEEP_FREED_MEMORY)
        return run, json.loads(run.text.strip().splitlines()[-1])["outputs"]

    def fireval(self, dtype="bf16"):
        with tempfile.TemporaryDirectory() as results:
            samples = pathlib.Path(results) / "samples.jsonl"
            command = [self.place.fireval, "eval", self.model, "--dtype", dtype, "--protocol", PROTOCOL]
            command += ["--data", self.place.needs_data(), "--tasks", "gsm8k", "--limit", self.limit]
            command += ["--results", pathlib.Path(results) / "results", "--samples", samples]
            run = self.place.run(command, "fireval", folder=results)
            with open(samples, encoding="utf-8", newline="\n") as lines:
                outputs = [[line["doc"], line["output"]] for line in map(json.loads, lines)]
        return run, sorted(outputs)

    def tokens(self, outputs):
        listed = self.folder / "outputs.json"
        listed.write_text(json.dumps([text for _, text in outputs]), encoding="utf-8")
        command = [self.place.python("lm-eval"), places.HERE / "generation_torch.py", "--model", self.model]
        run = self.place.run([*command, "--count", listed], "generation-count")
        return json.loads(run.text.strip().splitlines()[-1])["tokens"]

    def best_setting(self):
        """dtype, batch"""
        seconds = {}
        for dtype, batch in self.settings:
            try:
                seconds[dtype, batch] = self.torch(dtype, batch)[0].wall
                print(f"  {seconds[dtype, batch]:8.1f} s  {dtype}, batch {batch}", flush=True)
            except measure.Failed as error:
                print(f"  failed     {dtype}, batch {batch}: {error}", flush=True)
        if not seconds:
            raise measure.Failed("no setting ran; logs/generation-torch.log has the reason")
        return min(seconds, key=seconds.get)

    def side(self, program, setting, runs):
        outputs = runs[-1][1]
        right = sum(is_right(text, self.answers[document]) for document, text in outputs)
        accuracy = f"{right} of {len(outputs)} right (strict match)"
        return table.Side(program, setting, [run for run, _ in runs], self.tokens(outputs), accuracy)

    def lines(self):
        self.prepare()
        dtype, batch = self.best_setting()
        theirs, ours = measure.in_turn(self.place.pairs, lambda: self.torch(dtype, batch), self.fireval)
        peer = self.side("transformers generate", f"{dtype}, batch {batch}", theirs)
        own = self.side("fireval", "bf16", ours)
        same = sum(one == other for one, other in zip(theirs[-1][1], ours[-1][1], strict=True))
        own.note = f"{same} of {len(ours[-1][1])} texts equal to the peer's"
        return table.pair_lines(PART, f"{self.name}, GSM8K, {self.limit} documents", peer, own)


def lines(place, asked):
    for model in asked.models.split(","):
        print(f"generation: {model}", flush=True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                yield from Contest(place, asked, model, pathlib.Path(folder)).lines()
        except measure.Failed as error:
            yield table.not_run(PART, model, "transformers generate", error)


def add_flags(parser):
    parser.add_argument("--models", default="dense,mixture-4", help="checkpoints")
    parser.add_argument("--limit", type=int, default=20, help="documents")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of generate, to try")
    parser.add_argument("--batches", default="4,10,20", help="batch sizes of generate to try")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / "generation", place.preface)


if __name__ == "__main__":
    main()
