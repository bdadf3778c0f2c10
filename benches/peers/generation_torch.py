"""Greedy answers of transformers' `generate` to the prompts of a JSON Lines file (`fireval prompts`): batches padded on the
left, longest first, its own stop strings. Prints seconds of generating and every output, cut as the protocol cuts it.
With --count, counts the tokens of outputs that are there. Runs in the environment lm-eval; generation.py calls it."""

import argparse
import json
import os
import pathlib
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers as it is imported

import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=pathlib.Path, help="JSON Lines of `fireval prompts`")
    parser.add_argument("--count", type=pathlib.Path, help="a JSON list of texts whose tokens are to be counted")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read(path):
    with open(path, encoding="utf-8", newline="\n") as lines:
        documents = [json.loads(line) for line in lines]
    return [(document["doc"], document["requests"][0]) for document in documents]


def cut(text, stops):
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


class Generator:
    def __init__(self, asked):
        torch.set_num_threads(asked.threads)
        self.asked = asked
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model, padding_side="left")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            asked.model, dtype=getattr(torch, asked.dtype), attn_implementation="sdpa"
        ).eval()

    def batch(self, prompts, stops):
        """The texts after some prompts."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        made = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=self.asked.max_tokens, stop_strings=stops,
            tokenizer=self.tokenizer, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        new = made[:, inputs["input_ids"].shape[1] :]
        return [cut(text, stops) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def all(self, documents):
        """{document: text}"""
        ordered = sorted(documents, key=lambda one: -len(one[1]["context"]))
        texts = {}
        for at in range(0, len(ordered), self.asked.batch):
            some = ordered[at : at + self.asked.batch]
            made = self.batch([request["context"] for _, request in some], some[0][1]["until"])
            texts.update(zip([document for document, _ in some], made, strict=True))
        return texts


def main():
    asked = arguments()
    if asked.count:
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model)
        texts = json.loads(asked.count.read_text(encoding="utf-8"))
        print(json.dumps({"tokens": sum(len(tokenizer(text)["input_ids"]) for text in texts)}))
        return
    generator, documents = Generator(asked), read(asked.prompts)
    start = time.perf_counter()
    with torch.inference_mode():
        texts = generator.all(documents)
    print(json.dumps({"seconds": time.perf_counter() - start, "outputs": sorted(texts.items())}))


if __name__ == "__main__":
    main()
