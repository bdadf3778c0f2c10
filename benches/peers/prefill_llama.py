"""One pass of random tokens through llama.cpp, by llama-cpp-python's low-level interface, logits of each sequence's last
token only. Runs in the environment llama-cpp; prefill.py calls it."""

import math

import llama_cpp
import numpy

import passes
import random_ids


def arguments():
    parser = passes.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="sequences in one call of llama_decode")
    parser.add_argument("--ubatch", type=int, default=512, help="tokens that are computed together")
    parser.add_argument("--flash", choices=["on", "off"], default="on", help="fused attention")
    return parser.parse_args()


class Model:
    def __init__(self, asked):
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(asked.model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp can't open {asked.model}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = llama_cpp.llama_init_from_model(self.model, self.wanted(asked))

    @staticmethod
    def wanted(asked):
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = asked.batch * asked.tokens
        wanted.n_ubatch = min(asked.ubatch, wanted.n_batch)
        wanted.n_seq_max = asked.batch
        wanted.n_threads = wanted.n_threads_batch = asked.threads
        wanted.flash_attn_type = 1 if asked.flash == "on" else 0
        return wanted

    def batch(self, sequences):
        """A llama_batch of whole sequences, and the places whose logits are wanted."""
        total = sum(len(ids) for ids in sequences)
        batch, at, ends = llama_cpp.llama_batch_init(total, 0, 1), 0, []
        for number, ids in enumerate(sequences):
            for position, token in enumerate(ids):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                batch.logits[at] = position + 1 == len(ids)
                at += 1
            ends.append(at - 1)
        batch.n_tokens = total
        return batch, ends

    def forward(self, batch, ends):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        return [self.best(end) for end in ends]

    def best(self, end):
        logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, end), (self.vocabulary,))
        best = int(logits.argmax())
        return best, -math.log(float(numpy.exp(logits.astype(numpy.float64) - float(logits[best])).sum()))


def main():
    asked = arguments()
    asked.batch = min(asked.batch, asked.sequences)
    model = Model(asked)
    sequences = random_ids.sequences(asked.sequences, asked.tokens, model.vocabulary)
    parts = [sequences[at : at + asked.batch] for at in range(0, len(sequences), asked.batch)]
    batches = [model.batch(part) for part in parts]

    def forward():
        return [best for batch, ends in batches for best in model.forward(batch, ends)]

    passes.report(asked, forward)


if __name__ == "__main__":
    main()
