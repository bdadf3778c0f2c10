"""Training: a step of LoRA on every linear, experts and router too, on 8 x 512 random tokens, by transformers with peft and
by fireval (`cargo bench --bench training`), with the frozen linears as the checkpoint has them and in 4 bits.

The peers' settings (today's packages and those in which experts are linears, sequences in a call, ways through the
experts) are tried once each; for bf16 and for f32 the fastest is run in turn with fireval. Seconds are those of a step
inside the programs, memory is the whole process's. No adapter changes the first loss (B is zero), so it is held against
the peer's on the same ids and weights; both are the mean cross-entropy, without the routers' share."""

import itertools
import json

import measure
import places
import table
import tries

PART = "training"
DTYPES = {"bfloat16": "bf16", "float32": "f32"}


class Steps:
    """One program's run of a case: its line of JSON, and the process that printed it."""

    def __init__(self, run):
        lines = [json.loads(line) for line in run.text.splitlines() if line.startswith("{")]
        self.line = next(line for line in lines if "losses" in line)
        self.run = run
        self.seconds = self.line["seconds"]


class Case:
    """A model, what its frozen linears are held in, and each program's command."""

    def __init__(self, place, asked, model, frozen):
        self.place, self.model, self.frozen, self.repeats = place, model, frozen, asked.repeats
        self.sequences, self.tokens = (2, 32) if asked.tiny else (8, 512)
        self.name = f"{model}, {frozen}, {self.sequences} x {self.tokens}"

    def call(self, program, command, environment, repeats):
        command = [*command, "--model", self.place.checkpoint(self.model), "--threads", self.place.threads]
        command += ["--sequences", self.sequences, "--tokens", self.tokens, "--repeats", repeats]
        command += ["--nf4"] if self.frozen == "nf4" else []
        return Steps(self.place.run(command, f"training-{program}", environment))

    def peer(self, packages, dtype, batch, kept, experts, repeats=None):
        command = [self.place.python(packages), places.HERE / "training_torch.py", "--dtype", dtype, "--batch", batch]
        command += ["--experts", experts] if experts else []
        return self.call(packages, command, measure.KEEP_FREED_MEMORY if kept else None, repeats or self.repeats)

    def fireval(self, binary, dtype):
        """benches/training.rs."""
        return self.call("fireval", [binary, "--dtype", dtype], None, self.repeats)

    def settings(self, dtype):
        """packages, dtype, sequences in a call, freed memory kept, experts_implementation: what is tried."""
        experts = [None] if self.model == "dense" else ["eager", "grouped_mm"]
        ways = [("peft-v4", None)] + [("peft", way) for way in experts]
        batches = sorted({1, self.sequences})
        return [
            (packages, dtype, batch, kept, way)
            for (packages, way), batch, kept in itertools.product(ways, batches, [False, True])
        ]

    def side(self, program, setting, steps, accuracy, note):
        lines = [one.line for one in steps]
        return table.Side(
            program, setting, [one.run for one in steps], self.sequences * self.tokens, accuracy, note,
            [line["seconds"] for line in lines], [line["processor"] for line in lines],
        )  # fmt: skip


def said(packages, dtype, batch, kept, experts):
    more = [(kept, "freed memory kept"), (experts, f"experts {experts}")]
    return ", ".join([packages, dtype, f"{batch} sequences a call"] + [text for wanted, text in more if wanted])


def first_loss(steps):
    return f"first loss {steps.line['losses'][0]:.5f}"


def apart(theirs, ours):
    return f"{first_loss(ours)}, {ours.line['losses'][0] - theirs.line['losses'][0]:+.5f} from the peer's"


def in_four_bits(line):
    """bitsandbytes leaves what is no linear as it is: the table says how much of the model that was."""
    plain = line["frozen_numbers_not_in_4_bits"]
    return f"{line['linears_in_4_bits']} linears in 4 bits, {plain / 1e6:.0f} M frozen numbers are not"


def contest(case, binary, dtype):
    """The best of the peer's settings in `dtype`, in turn with fireval in bf16 and where the peer's is f32 in f32 too."""
    seconds = tries.tried(case.peer, case.settings(dtype))
    best = seconds[0][1]
    for own in ["bf16"] if dtype == "bfloat16" else ["bf16", "f32"]:
        theirs, ours = measure.in_turn(case.place.pairs, lambda: case.peer(*best), lambda: case.fireval(binary, own))
        note = tries.next_best(seconds, said)
        if case.frozen == "nf4":
            note = "; ".join(part for part in [in_four_bits(theirs[0].line), note] if part)
        peer = case.side(f"transformers, peft {DTYPES[dtype]}", said(*best), theirs, first_loss(theirs[0]), note)
        share = f"{100 * ours[-1].line['share_of_gemm']:.0f} % of a large product's speed measured beside it"
        yield from table.pair_lines(
            PART, case.name, peer, case.side("fireval", own, ours, apart(theirs[0], ours[0]), share)
        )


def lines(place, asked):
    try:
        binary = tries.bench_binary("training")
    except measure.Failed as error:
        yield table.not_run(PART, "all", "fireval", error)
        return
    for model, frozen, dtype in itertools.product(asked.models.split(","), asked.frozen.split(","), DTYPES):
        case = Case(place, asked, model, frozen)
        print(f"training: {case.name}, {DTYPES[dtype]}", flush=True)
        try:
            yield from contest(case, binary, dtype)
        except measure.Failed as error:
            yield table.not_run(PART, case.name, f"transformers, peft {DTYPES[dtype]}", error)


def add_flags(parser):
    parser.add_argument("--models", default="mixture-4,dense", help="checkpoints")
    parser.add_argument("--frozen", default="nf4,plain", help="the frozen linears: nf4, plain (the dtype trained in)")
    parser.add_argument("--repeats", type=int, default=3, help="steps inside a run, of which the median counts")
    parser.add_argument("--tiny", action="store_true", help="2 x 32 tokens, to try the script")


def main():
    parser = places.parser(__doc__)
    add_flags(parser)
    asked = parser.parse_args()
    place = places.Place.of(asked)
    table.keep(lines(place, asked), place.out / PART, place.preface)


if __name__ == "__main__":
    main()
