"""Quantize with a type of ik_llama.cpp and an importance matrix, in the environment of that package.

python -m benchmarks.real_weights.ik_llama MODEL MODEL_OF_RECIPE IMATRIX RECIPE OUT.safetensors FACTS.json TYPE

The arguments are those of `llama_quantize`; the schemes of the recipe only say which matrices are quantized.
"""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers.artifacts import HERE as PEERS
from benchmarks.peers.artifacts import tool_python
from benchmarks.real_weights.llama_quantize import cropped, read_matrices
from mcpmq.checkpoint import Checkpoint

ENVIRONMENT = "llamacpp"


def main(model_path: str, other_path: str, imatrix: str, recipe: str, out: str, facts: str, name: str) -> None:
    """Write the values and the bits per weight."""
    model, tensors = Checkpoint.open(model_path), dict[str, Tensor]()
    matrices, values = Path(out).with_suffix(".matrices"), Path(out).with_suffix(".values")
    for spec, weight, importance in read_matrices(model, Checkpoint.open(other_path), Path(imatrix), recipe):
        tensors |= {f"{spec.hub_name}.weight": weight.contiguous(), f"{spec.hub_name}.importance": importance}
    save_file(tensors, matrices)
    script = PEERS / "tools" / "with_ik_llama.py"
    subprocess.run([tool_python(ENVIRONMENT), "-P", script, matrices, values, facts, name], check=True)
    shapes = {spec.hub_name: spec.shape for spec in model.specs}
    save_file({one: cropped(found, shapes[one]) for one, found in load_file(values).items()}, out)
    for path in (matrices, values):
        path.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
