"""One forward pass of random tokens through transformers and torch, logits of each sequence's last position only. Runs in
the environment lm-eval; prefill.py calls it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers as it is imported

import torch
import transformers

import passes
import random_ids


def arguments():
    parser = passes.parser(__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="sequences in one call")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--experts", default=None, help="transformers' experts_implementation of a mixture")
    return parser.parse_args()


def load(asked):
    extra = {"experts_implementation": asked.experts} if asked.experts else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked.model, dtype=getattr(torch, asked.dtype), attn_implementation="sdpa", **extra
    )
    model.eval()
    return torch.compile(model) if asked.compile else model


def last_logits(model, batch):
    return model(input_ids=batch, use_cache=False, logits_to_keep=1).logits[:, -1]


def main():
    asked = arguments()
    torch.set_num_threads(asked.threads)
    model = load(asked)
    ids = torch.tensor(random_ids.sequences(asked.sequences, asked.tokens, model.config.vocab_size))

    def forward():
        with torch.inference_mode():
            logits = torch.cat([last_logits(model, part) for part in ids.split(asked.batch)])
            values, best = torch.log_softmax(logits.float(), -1).max(-1)
        return list(zip(best.tolist(), values.tolist()))

    passes.report(asked, forward)


if __name__ == "__main__":
    main()
