"""Logits of adapters, as transformers and peft compute them: the other side of tests/peft.rs.

    python logits.py JOBS.json

JOBS is a list of objects with `model`, `adapter`, `out` (paths) and `ids`. Each model is loaded in f32 with its adapter on
it, and `logits`, (tokens, vocabulary), go into the safetensors file `out`. What peft warns of is printed.
"""

import json
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM


def opened(model, adapter):
    config = AutoConfig.from_pretrained(model)
    if hasattr(config, "num_local_experts"):
        config.num_experts = config.num_local_experts  # what transformers 4 calls it in a Qwen3-MoE
    base = AutoModelForCausalLM.from_pretrained(
        model, config=config, torch_dtype=torch.float32, attn_implementation="eager"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = PeftModel.from_pretrained(base, adapter).eval()
    for warning in caught:
        print(f"{adapter}: {warning.message}", file=sys.stderr)
    return tuned


def main():
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    for job in jobs:
        with torch.no_grad():
            logits = opened(job["model"], job["adapter"])(input_ids=torch.tensor([job["ids"]])).logits[0]
        save_file({"logits": logits.float().contiguous()}, job["out"])


if __name__ == "__main__":
    main()
