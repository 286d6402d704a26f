"""Load an artifact with transformers and the installed quantization package, and compute logits.

python logits.py ARTIFACT DTYPE INPUTS OUT   INPUTS: safetensors file with model inputs named `SAMPLE|ARGUMENT`

Imports only `mcpmq.families`, so that it runs in environments where mcpmq cannot be installed.
"""

import json
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}  # gptqmodel does not load with one worker

import torch
from safetensors.torch import load_file, save_file
from transformers import AwqConfig, GPTQConfig
from transformers.utils.quantization_config import AwqBackend

from mcpmq.families import family_of

PACKAGES = {
    "gptq": ("transformers", "optimum", "gptqmodel"),
    "awq": ("transformers", "gptqmodel"),
    "bitsandbytes": ("transformers", "bitsandbytes"),
    "compressed-tensors": ("transformers", "compressed-tensors"),
}
# The plain kernels of gptqmodel; the default PyTorch kernel rounds scales and zero points to bfloat16.
KERNELS = {"gptq": GPTQConfig(bits=4, backend="torch"), "awq": AwqConfig(backend=AwqBackend.TORCH_AWQ)}
LAYER = "llm.model.layers.0.mlp.down_proj"


def main(artifact: Path, dtype: str, inputs: Path, out: Path) -> None:
    """Write the logits of every sample, float32 [tokens, vocabulary], with the package versions."""
    config = json.loads((artifact / "config.json").read_text())
    method = config.pop("quantization_config")["quant_method"]
    module, _, function = family_of(config).torch_builder.partition(":")
    model_class: Any = type(getattr(import_module(module), function)(config))
    kernel = {"quantization_config": KERNELS[method]} if method in KERNELS else {}
    model = model_class.from_pretrained(artifact, dtype=getattr(torch, dtype), device_map="cpu", **kernel)
    samples: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(inputs).items():
        sample, _, argument = name.partition("|")
        samples.setdefault(sample, {})[argument] = value
    with torch.inference_mode():
        logits = {name: model(**tensors, use_cache=False).logits[0].float() for name, tensors in samples.items()}
    facts = {
        "packages": {package: version(package) for package in PACKAGES[method]},
        "compute_dtype": dtype,
        "layer_class": type(model.get_submodule(LAYER)).__name__,
    }
    save_file(logits, out, {"facts": json.dumps(facts)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
