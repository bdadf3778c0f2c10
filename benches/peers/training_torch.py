"""Steps of LoRA training on random tokens through transformers, peft and torch: a pair on every linear, experts and router
too, gradient checkpointing, clipping, AdamW. Runs in the environments peft and peft-v4; training.py calls it.

transformers 5 holds a mixture's experts as one parameter for all of w1 and w3 and one for all of w2; peft makes of the
names below a pair of the same ranks for each expert on those (w1 and w3 together: rank 32). transformers 4 has linears."""

import json
import os
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers as it is imported

import peft
import torch
import transformers

import passes
import random_ids

MIXTURE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]
DENSE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    parser = passes.parser(__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--nf4", action="store_true", help="frozen linears in 4 bits, by bitsandbytes")
    parser.add_argument("--batch", type=int, default=8, help="sequences in one call")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--experts", default=None, help="transformers' experts_implementation of a mixture")
    parser.add_argument("--adapter-dtype", choices=["float32", "model"], default="float32", help="of the pairs")
    return parser.parse_args()


def quantization(dtype):
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def load(asked):
    dtype = getattr(torch, asked.dtype)
    extra = {"experts_implementation": asked.experts} if asked.experts else {}
    if asked.nf4:
        extra |= {"quantization_config": quantization(dtype), "device_map": "cpu"}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked.model, dtype=dtype, attn_implementation="sdpa", **extra
    )
    model.config.use_cache = False
    mixture = hasattr(model.config, "num_local_experts")
    if mixture:
        model.config.output_router_logits = True  # with it the load-balancing loss is part of the loss
    targets = MIXTURE if mixture else DENSE
    lora = peft.LoraConfig(r=asked.rank, lora_alpha=asked.rank, lora_dropout=0.0, target_modules=targets)
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=asked.adapter_dtype == "float32")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model


def quantized(model):
    """(linears in 4 bits, numbers of the layers that are not)"""
    modules = [module for module in model.modules() if not type(module).__module__.startswith("peft.")]
    four_bits = sum(type(module).__name__ == "Linear4bit" for module in modules)
    plain = sum(
        numbers.numel()
        for name, numbers in model.named_parameters()
        if "layers" in name and "lora_" not in name and numbers.dim() > 1 and numbers.is_floating_point()
    )
    return four_bits, plain


class Steps:
    """A model, its optimiser and the batch that every step learns."""

    def __init__(self, asked, model):
        self.model, self.batch = model, asked.batch
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-4, weight_decay=0.0, fused=True)
        self.ids = torch.tensor(random_ids.sequences(asked.sequences, asked.tokens, model.config.vocab_size))

    def step(self):
        """One update; the mean cross-entropy before it. What is learnt has the load-balancing loss in it too."""
        parts = self.ids.split(self.batch)
        total = 0.0
        for part in parts:
            out = self.model(input_ids=part, labels=part)
            (out.loss / len(parts)).backward()
            total += (out.loss.item() - self.balance(out)) / len(parts)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def balance(self, out):
        """The routers' share of a loss."""
        if getattr(out, "aux_loss", None) is None:
            return 0.0
        return self.model.config.router_aux_loss_coef * out.aux_loss.item()


def report(asked, steps):
    seconds, cpu, losses = [], [], []
    for index in range(asked.warm_up + asked.repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(steps.step())
        if index >= asked.warm_up:
            seconds.append(time.perf_counter() - wall_start)
            cpu.append(time.process_time() - cpu_start)
    four_bits, plain = quantized(steps.model)
    line = {
        "what": f"training {asked.sequences} x {asked.tokens}",
        "seconds": statistics.median(seconds),
        "processor": statistics.median(cpu),
        "tokens": asked.sequences * asked.tokens,
        "losses": losses,
        "trained": sum(parameter.numel() for parameter in steps.trained),
        "linears_in_4_bits": four_bits,
        "frozen_numbers_not_in_4_bits": plain,
    }
    print(json.dumps(line), flush=True)


def main():
    asked = arguments()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    report(asked, Steps(asked, load(asked)))


if __name__ == "__main__":
    main()
