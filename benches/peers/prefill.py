"""Prefill: a forward pass of 8 x 512 and of 1 x 2048 random tokens, only each sequence's last row wanted, by transformers
with torch, by llama.cpp and by fireval (`cargo bench --bench prefill`), on the dense model and its mixtures.

Each peer's settings are tried once; its best is then run in turn with fireval. Seconds are those inside the programs,
without loading; memory is the whole process's. The best token after each sequence is held against torch's in f32."""

import itertools
import json

import measure
import places
import table
import tries

PART = "prefill"
CASES = {"8 x 512": (8, 512), "1 x 2048": (1, 2048)}
TORCH_DTYPES = {"bfloat16": "bf16", "float32": "f32"}


class Pass:
    """One program's run of a case: the JSON line with the case's tokens, and the process that printed it."""

    def __init__(self, run, tokens):
        lines = [json.loads(line) for line in run.text.splitlines() if line.startswith("{")]
        self.line = next(line for line in reversed(lines) if line.get("tokens") == tokens)
        self.peak_rate = next((line["flops"] / line["seconds"] for line in lines if line.get("what") == "peak"), None)
        self.run = run
        self.seconds = self.line["seconds"]

    def cpu(self):
        return self.line.get("processor", float("nan"))

    def note(self):
        if "flops" not in self.line:
            return ""
        rate = self.line["flops"] / self.seconds
        share = f", {100 * rate / self.peak_rate:.0f} % of the peak measured beside it" if self.peak_rate else ""
        return f"{rate / 1e9:.0f} GFLOP/s{share}"


class Case:
    """A model and a shape, and every program's command for it."""

    def __init__(self, place, asked, model, shape):
        self.place, self.model, self.shape, self.repeats = place, model, shape, asked.repeats
        self.sequences, self.tokens = CASES[shape]
        self.compiles = model == "dense" and not asked.no_compile
        if asked.tiny:
            self.tokens //= 16
        self.name = f"{model}, {self.sequences} x {self.tokens}"
        self.reference = None  # torch's in f32: the best tokens and their log-probabilities

    def call(self, program, command, environment=None, repeats=None):
        shape = ["--sequences", self.sequences, "--tokens", self.tokens]
        counted = ["--threads", self.place.threads, "--repeats", repeats or self.repeats]
        run = self.place.run([*command, *shape, *counted], f"prefill-{program}", environment)
        return Pass(run, self.sequences * self.tokens)

    def torch(self, dtype, batch, compiled, kept, experts, repeats=None):
        command = [self.place.python("lm-eval"), places.HERE / "prefill_torch.py"]
        command += ["--model", self.place.checkpoint(self.model), "--dtype", dtype, "--batch", batch]
        command += ["--compile"] if compiled else []
        command += ["--experts", experts] if experts else []
        return self.call("torch", command, measure.KEEP_FREED_MEMORY if kept else None, repeats)

    def llama(self, kind, batch, ubatch, flash, repeats=None):
        command = [self.place.python("llama-cpp"), places.HERE / "prefill_llama.py"]
        command += ["--model", self.place.checkpoint(f"{self.model}-{kind}.gguf"), "--batch", batch]
        return self.call("llama", [*command, "--ubatch", ubatch, "--flash", flash], None, repeats)

    def fireval(self, binary):
        """benches/prefill.rs."""
        command = [binary, "--model", self.place.checkpoint(self.model), "--dtype", "bf16"]
        return self.call("fireval", command)

    def torch_settings(self, dtype):
        """dtype, batch, compiled, freed memory kept, experts_implementation: what is tried."""
        batches = sorted({1, self.sequences})
        # The third way, batched_mm, copies an expert's weights for every token: minutes for what takes seconds here.
        experts = [None] if self.model == "dense" else ["eager", "grouped_mm"]
        settings = [(dtype, *rest) for rest in itertools.product(batches, [False], [False, True], experts)]
        return settings + ([(dtype, batch, True, True, None) for batch in batches] if self.compiles else [])

    def llama_settings(self, kind):
        """type of the file, batch, tokens computed together, fused attention: what is tried."""
        return list(itertools.product([kind], sorted({1, self.sequences}), [512, 2048], ["on", "off"]))

    def agreement(self, last):
        """Best tokens equal to torch's in f32, and how far their log-probabilities are apart where they are equal."""
        if not last or not self.reference:
            return "" if self.reference is None else "not compared"
        same = [(one, other) for one, other in zip(last, self.reference) if one[0] == other[0]]
        apart = max((abs(one[1] - other[1]) for one, other in same), default=float("nan"))
        return f"best token {len(same)}/{len(self.reference)} as torch f32, log-probability within {apart:.3f}"

    def side(self, program, setting, passes):
        return table.Side(
            program, setting, [one.run for one in passes], self.sequences * self.tokens,
            self.agreement(passes[-1].line.get("last")), passes[-1].note(),
            [one.seconds for one in passes], [one.cpu() for one in passes],
        )  # fmt: skip


def tried_llama(case, kinds):
    """All settings on the first type, the best of them on the others."""
    first = tries.tried(case.llama, case.llama_settings(kinds[0]))
    others = [(kind, *first[0][1][1:]) for kind in kinds[1:]]
    return sorted(first + (tries.tried(case.llama, others) if others else []), key=lambda one: one[0])


def said_torch(dtype, batch, compiled, kept, experts):
    more = [(compiled, "compiled"), (kept, "freed memory kept"), (experts, f"experts {experts}")]
    return ", ".join([dtype, f"batch {batch}"] + [text for wanted, text in more if wanted])


def said_llama(kind, batch, ubatch, flash):
    return f"{kind}, batch {batch}, ubatch {ubatch}, flash attention {flash}"


def against(case, program, call, said, seconds, binary):
    """A peer at the best setting of `seconds`, in turn with fireval where its bench is there, else alone."""
    best = seconds[0][1]
    if isinstance(binary, str):
        theirs, ours = measure.in_turn(case.place.pairs, lambda: call(*best), lambda: case.fireval(binary))
    else:
        theirs, ours = [call(*best) for _ in range(case.place.pairs)], None
    peer = case.side(program, said(*best), theirs)
    peer.note = tries.next_best(seconds, said)
    if ours is None:
        return [peer.line(PART, case.name)]
    return table.pair_lines(PART, case.name, peer, case.side("fireval", "bf16", ours))


def case_lines(case, binary, dtypes, kinds):
    try:
        case.reference = case.torch("float32", 1, False, True, None, repeats=1).line["last"]
    except measure.Failed as error:
        yield table.not_run(PART, case.name, "torch f32 as the reference", error)
    contests = [
        (f"transformers {short}", case.torch, said_torch, lambda dtype=dtype: tries.tried(case.torch, case.torch_settings(dtype)))
        for dtype, short in TORCH_DTYPES.items()
        if dtype in dtypes
    ]
    contests.append(("llama.cpp", case.llama, said_llama, lambda: tried_llama(case, kinds)))
    for program, call, said, try_settings in contests:
        try:
            yield from against(case, program, call, said, try_settings(), binary)
        except measure.Failed as error:
            yield table.not_run(PART, case.name, program, error)
    if not isinstance(binary, str):
        yield table.not_run(PART, case.name, "fireval", binary)


def lines(place, asked):
    try:
        binary = tries.bench_binary("prefill")
    except measure.Failed as error:
        binary = error  # the reason, for the table
    for model, shape in itertools.product(asked.models.split(","), CASES):
        print(f"prefill: {model}, {shape}", flush=True)
        yield from case_lines(Case(place, asked, model, shape), binary, asked.dtypes.split(","), asked.kinds.split(","))


def add_flags(parser):
    parser.add_argument("--models", default="dense,mixture-4,mixture-8", help="checkpoints")
    parser.add_argument("--dtypes", default=",".join(TORCH_DTYPES), help="of torch, to try")
    parser.add_argument("--kinds", default="bf16,f16,q8_0,q4_0", help="types of llama.cpp's files")
    parser.add_argument("--repeats", type=int, default=3, help="passes inside a run, of which the median counts")
    parser.add_argument("--no-compile", action="store_true", help="never try torch.compile, which takes minutes")
    parser.add_argument("--tiny", action="store_true", help="a sixteenth of the tokens, to try the script")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / PART, place.preface)


if __name__ == "__main__":
    main()
