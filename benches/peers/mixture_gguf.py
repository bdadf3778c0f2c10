"""An upcycled Mixtral's folder as a bf16 GGUF file: all that is not a feed-forward comes from the GGUF of the dense model
it was made from, the experts and routers from the folder. Runs in the environment lm-eval."""

import argparse
import json
import pathlib

import gguf
import torch
from safetensors import safe_open

BF16 = gguf.GGMLQuantizationType.BF16
EXPERT_NAMES = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}


class Folder:
    """The tensors of a folder by name, whichever of its files holds them."""

    def __init__(self, path):
        self.files = [safe_open(file, "pt") for file in sorted(path.glob("*.safetensors"))]
        self.config = json.loads((path / "config.json").read_text(encoding="utf-8"))

    def tensor(self, name):
        return next(file.get_tensor(name) for file in self.files if name in file.keys()).to(torch.float32).numpy()


def copy_fields(reader, writer):
    """Every key but the writer's own."""
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)


def copy_tensors(reader, writer):
    for tensor in reader.tensors:
        if ".ffn_" in tensor.name and not tensor.name.endswith("ffn_norm.weight"):
            continue
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        add(writer, tensor.name, weight, tensor.tensor_type == gguf.GGMLQuantizationType.F32)


def add(writer, name, weight, keep_f32=False):
    if keep_f32:
        writer.add_tensor(name, weight.astype("float32"))
    else:
        writer.add_tensor(name, gguf.quantize(weight, BF16), raw_dtype=BF16)


def add_experts(folder, writer):
    config = folder.config
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}.block_sparse_moe"
        add(writer, f"blk.{layer}.ffn_gate_inp.weight", folder.tensor(f"{place}.gate.weight"), keep_f32=True)
        for name, short in EXPERT_NAMES.items():
            experts = range(config["num_local_experts"])
            stacked = torch.stack([torch.from_numpy(folder.tensor(f"{place}.experts.{e}.{short}.weight")) for e in experts])
            add(writer, f"blk.{layer}.{name}.weight", stacked.numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", help="the GGUF file")
    parser.add_argument("folder", type=pathlib.Path, help="what `fireval upcycle` wrote")
    parser.add_argument("out")
    arguments = parser.parse_args()
    reader, folder = gguf.GGUFReader(arguments.dense), Folder(arguments.folder)
    writer = gguf.GGUFWriter(arguments.out, "llama")
    copy_fields(reader, writer)
    writer.add_expert_count(folder.config["num_local_experts"])
    writer.add_expert_used_count(folder.config["num_experts_per_tok"])
    copy_tensors(reader, writer)
    add_experts(folder, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
