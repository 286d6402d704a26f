"""Loads a checkpoint with gptqmodel and computes logits: what runs in the environment that gptqmodel has for itself.

python gptqmodel_logits.py CHECKPOINT INPUTS OUT   INPUTS: embeddings float32 [1, tokens, hidden] by name, safetensors
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}  # with one core it would refuse to load

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file, save_file

BACKENDS = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}


def main(checkpoint: Path, inputs: Path, out: Path) -> None:
    """Write the logits of every input, float32, and say which layer computed them."""
    method = json.loads((checkpoint / "config.json").read_text())["quantization_config"]["quant_method"]
    loaded = GPTQModel.load(str(checkpoint), device="cpu", backend=BACKENDS[method], dtype=torch.float16)
    with torch.inference_mode():
        logits = {
            name: loaded.model(inputs_embeds=embeddings.half(), use_cache=False).logits.float()
            for name, embeddings in load_file(inputs).items()
        }
    packages = {package: version(package) for package in ("gptqmodel", "torch", "transformers")}
    layer = type(loaded.model.model.layers[0].mlp.down_proj).__name__
    save_file(logits, out, {"versions": json.dumps(packages), "layer": layer})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
