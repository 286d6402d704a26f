"""Quantize as llama-quantize does with an importance matrix: ggml's own function, called from the library of the wheel.

python -m benchmarks.real_weights.llama_quantize MODEL MODEL_OF_RECIPE IMATRIX RECIPE OUT.safetensors FACTS.json

The prebuilt binaries need a newer C library than common systems have; their blocks are those of
`ggml_quantize_chunk`, which is called for every matrix with its type and the mean squares of its inputs. The importance
matrix is of MODEL; the other model may have more columns, of zeros. OUT has the values of the blocks, float32, without
these columns, by the names of MODEL.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.torch_model import to_float
from mcpmq.families.family import TensorSpec
from mcpmq.grids import quantize
from mcpmq.plan import make_plan
from mcpmq.qtensor import GgmlTensor
from mcpmq.recipe import Recipe
from mcpmq.scheme import GgmlScheme


def read_matrices(
    model: Checkpoint, other: Checkpoint, imatrix: Path, recipe: str
) -> Iterator[tuple[TensorSpec, Tensor, Tensor]]:
    """Yield the quantized matrices of `other`, float32 [rows, columns], and their importance, float32 [columns]."""
    importance = read_importance(imatrix, model).mean_squares
    for tensor in make_plan(other, Recipe.load(recipe)).tensors:
        if tensor.is_quantized:
            weight, [mean_squares] = other.load_float32(tensor.spec), importance[tensor.name]
            yield tensor.spec, weight, pad(mean_squares, (0, weight.shape[1] - len(mean_squares)))


def quantize_model(
    model: Checkpoint, other: Checkpoint, imatrix: Path, recipe: str
) -> Iterator[tuple[GgmlTensor, Tensor]]:
    """Yield the blocks of every quantized matrix of `other`, and their values with the shape of `model`."""
    shapes = {spec.name: spec.shape for spec in model.specs}
    schemes = {tensor.name: tensor.scheme for tensor in make_plan(other, Recipe.load(recipe)).tensors}
    for spec, weight, importance in read_matrices(model, other, imatrix, recipe):
        scheme = schemes[spec.name]
        assert isinstance(scheme, GgmlScheme)
        blocks = quantize(weight, scheme, importance)
        assert isinstance(blocks, GgmlTensor)
        yield blocks, cropped(to_float(blocks, spec), shapes[spec.name])


def cropped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the first rows and columns."""
    return values[: shape[0], : shape[1]].contiguous()


def main(model_path: str, other_path: str, imatrix: str, recipe: str, out: str, facts: str) -> None:
    """Write the values and the bits per weight."""
    model, other = Checkpoint.open(model_path), Checkpoint.open(other_path)
    planned = [tensor.spec for tensor in make_plan(other, Recipe.load(recipe)).tensors if tensor.is_quantized]
    found = list(quantize_model(model, other, Path(imatrix), recipe))
    save_file({spec.hub_name: values for spec, (_, values) in zip(planned, found, strict=True)}, out)
    bits = 8 * sum(blocks.blocks.nbytes for blocks, _ in found) / sum(map(_weights, planned))
    Path(facts).write_text(json.dumps({"bits_per_weight": bits, "matrices": len(found)}))


def _weights(spec: TensorSpec) -> int:
    rows, columns = spec.shape
    return rows * columns


if __name__ == "__main__":
    main(*sys.argv[1:])
