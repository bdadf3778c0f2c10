"""Installs each peer from PyPI, in an environment of its own.

lm-eval: today's harness with transformers and torch. llama-cpp: llama-cpp-python, built for this processor.
peft, peft-v4: the trainer, with today's transformers and with the last in which a mixture's experts are linears.
lm-eval-v1: what the leaderboard's harness of June 2023 imports, where LMEVAL_V1 names a checkout of it (commit
b281b0921b636bc36ad05c0b0b0763bd6dd43463 of EleutherAI's lm-evaluation-harness); the checkout itself is used in place."""

import os
import pathlib
import subprocess
import sys
import venv

import places

PEERS = ["lm-eval", "llama-cpp", "peft", "peft-v4", "lm-eval-v1"]


def install(peers, name):
    """Makes the environment `name` unless its list of requirements is what was installed last."""
    requirements = places.HERE / "requirements" / f"{name}.txt"
    folder = peers / name
    done = folder / "installed.txt"
    if done.exists() and done.read_text(encoding="utf-8") == requirements.read_text(encoding="utf-8"):
        print(f"{name}: there already")
        return
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    done.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{name}: installed")


def main():
    parser = places.parser(__doc__)
    parser.add_argument("--only", choices=PEERS, action="append", help="these alone")
    arguments = parser.parse_args()
    peers = pathlib.Path(arguments.peers).resolve()
    failed = False
    for name in arguments.only or PEERS:
        if name == "lm-eval-v1" and not os.environ.get("LMEVAL_V1"):
            print("lm-eval-v1: skipped, LMEVAL_V1 names no checkout")
            continue
        try:
            install(peers, name)
        except subprocess.CalledProcessError as error:
            failed = True
            print(f"{name}: NOT installed, pip ended with {error.returncode}", file=sys.stderr)
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
