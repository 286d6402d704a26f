"""Has transformers load an artifact with the packages that are installed beside it, and computes logits.

python logits.py ARTIFACT DTYPE INPUTS OUT   INPUTS: what the model takes, as `SAMPLE|ARGUMENT`, in a safetensors file

Needs nothing of mcpmq but its families, so that it runs wherever a reader installs.
"""

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}  # on one core gptqmodel would refuse to load

import torch
from safetensors.torch import load_file, save_file
from transformers import AwqConfig, GPTQConfig

from mcpmq.families import family_of

PACKAGES = {
    "gptq": ("transformers", "optimum", "gptqmodel"),
    "awq": ("transformers", "gptqmodel"),
    "bitsandbytes": ("transformers", "bitsandbytes"),
    "compressed-tensors": ("transformers", "compressed-tensors"),
}
# gptqmodel's plain kernels: by itself it takes one of PyTorch's, which rounds scales and zeros to bfloat16.
KERNELS = {"gptq": GPTQConfig(bits=4, backend="torch"), "awq": AwqConfig(backend="torch_awq")}
LAYER = "llm.model.layers.0.mlp.down_proj"


def main(artifact: Path, dtype: str, inputs: Path, out: Path) -> None:
    """Write the logits of every sample, float32 [tokens, vocabulary], with who computed them."""
    config = json.loads((artifact / "config.json").read_text())
    method = config.pop("quantization_config")["quant_method"]
    module, _, function = family_of(config).native.partition(":")
    native: Any = type(getattr(import_module(module), function)(config))
    chosen = {"quantization_config": KERNELS[method]} if method in KERNELS else {}
    model = native.from_pretrained(artifact, dtype=getattr(torch, dtype), device_map="cpu", **chosen)
    samples: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(inputs).items():
        sample, _, argument = name.partition("|")
        samples.setdefault(sample, {})[argument] = value
    with torch.inference_mode():
        logits = {name: model(**given, use_cache=False).logits[0].float() for name, given in samples.items()}
    told = {"reader": {package: version(package) for package in PACKAGES[method]}, "computed_in": dtype}
    save_file(logits, out, {"facts": json.dumps(told | {"layer": type(model.get_submodule(LAYER)).__name__})})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
