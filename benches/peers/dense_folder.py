"""A GGUF file of the llama architecture with a byte-level tokenizer as a Hugging Face folder: the weights dequantised and
rounded to bf16 (or left in f32), the tokenizer as its pre-tokenizer name says. Runs in the environment lm-eval."""

import argparse
import json
import pathlib

import gguf
import numpy
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hub_name(name):
    stem = name.removesuffix(".weight")
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def unpermuted(weight, heads):
    """The GGUF interleaves the two halves of each head's rotary pairs; the hub keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


class Source:
    """The file, its fields by name."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)

    def field(self, name, otherwise=None):
        found = self.reader.get_field(name)
        return otherwise if found is None else found.contents()

    def tensors(self, dtype):
        """Every tensor under its name on the hub."""
        heads = {"attn_q": self.field("llama.attention.head_count"), "attn_k": self.field("llama.attention.head_count_kv")}
        for tensor in self.reader.tensors:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
            part = tensor.name.removesuffix(".weight").split(".")[-1]
            if part in heads:
                weight = unpermuted(weight, heads[part])
            yield hub_name(tensor.name), torch.from_numpy(weight.copy()).to(dtype).contiguous()

    def config(self, dtype):
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(self.field("tokenizer.ggml.tokens")),
            "hidden_size": self.field("llama.embedding_length"),
            "intermediate_size": self.field("llama.feed_forward_length"),
            "num_hidden_layers": self.field("llama.block_count"),
            "num_attention_heads": self.field("llama.attention.head_count"),
            "num_key_value_heads": self.field("llama.attention.head_count_kv"),
            "max_position_embeddings": self.field("llama.context_length"),
            # The file holds f32; its shortest decimal is the number that was meant.
            "rms_norm_eps": float(str(numpy.float32(self.field("llama.attention.layer_norm_rms_epsilon")))),
            "rope_theta": float(self.field("llama.rope.freq_base")),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self.reader.tensors),
            "hidden_act": "silu",
            "attention_bias": False,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.field("tokenizer.ggml.padding_token_id"),
            "torch_dtype": str(dtype).removeprefix("torch."),
        }

    def tokenizer(self):
        """Digits one by one, then bytes: what the pre-tokenizer `smollm` means."""
        kind = (self.field("tokenizer.ggml.model"), self.field("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise SystemExit(f"the tokenizer {kind} is not known here, only gpt2 with smollm")
        tokens = self.field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        model = tokenizers.models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges)
        made = tokenizers.Tokenizer(model)
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        as_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, as_bytes])
        made.decoder = tokenizers.decoders.ByteLevel()
        kinds = self.field("tokenizer.ggml.token_type")
        special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=made,
            bos_token=tokens[self.field("tokenizer.ggml.bos_token_id")],
            eos_token=tokens[self.field("tokenizer.ggml.eos_token_id")],
            pad_token=tokens[self.field("tokenizer.ggml.padding_token_id")],
            model_max_length=self.field("llama.context_length"),
        )


def save_tokenizer(tokenizer, out):
    """Under the class name that transformers has had all along, so that older ones open it too."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    source = Source(arguments.gguf)
    arguments.out.mkdir(parents=True)
    save_file(dict(source.tensors(dtype)), arguments.out / "model.safetensors", metadata={"format": "pt"})
    (arguments.out / "config.json").write_text(json.dumps(source.config(dtype), indent=2) + "\n", encoding="utf-8")
    save_tokenizer(source.tokenizer(), arguments.out)


if __name__ == "__main__":
    main()
