"""Export a text checkpoint as int4 with the builder of onnxruntime-genai, which rounds to nearest in groups of 32.

python with_genai.py CHECKPOINT OUT
"""

import runpy
import sys
from pathlib import Path

import torch


def main(checkpoint: str, out: str) -> None:
    """Run the builder on one thread."""
    torch.set_num_threads(1)
    options = ["--extra_options", "algo_config=rtn", "block_size=32"]
    files = ["-i", checkpoint, "-o", out, "-c", str(Path(out, "cache"))]
    sys.argv = ["builder", *files, "-p", "int4", "-e", "cpu", *options]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
