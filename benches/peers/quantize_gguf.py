"""A GGUF file in another type, through llama.cpp's own quantisation. Runs in the environment llama-cpp."""

import argparse
import ctypes

import llama_cpp

TYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, required=True)
    arguments = parser.parse_args()
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = TYPES[arguments.type]
    wanted.allow_requantize = True  # the published file has 4-bit weights: they are widened, then rounded anew
    wanted.pure = arguments.type in ("bf16", "f16")
    llama_cpp.llama_backend_init()
    code = llama_cpp.llama_model_quantize(
        arguments.source.encode(), arguments.out.encode(), ctypes.byref(wanted)
    )
    raise SystemExit(code)


if __name__ == "__main__":
    main()
