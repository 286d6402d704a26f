"""Test helpers for Hugging Face artifacts: export, tensors of a module, codes by the definition of the layout."""

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel
from tests.gguf_tools import quantize_with
from tests.rounding.oracle import same_bytes


def export_hf_artifact(checkpoint: Path, folder: Path, name: str, **schemes: str) -> tuple[QuantizedModel, Artifact]:
    """Quantize and export a checkpoint; `schemes` are those of `quantize_with`."""
    quantized = quantize_with(checkpoint, folder, **schemes)
    return quantized, export(quantized, cast(FormatName, name), folder / name)


def load_tensors(artifact: Artifact) -> dict[str, Tensor]:
    """Load the tensors of all shards with safetensors."""
    return {
        name: value for file in sorted(artifact.path.glob("*.safetensors")) for name, value in load_file(file).items()
    }


def module_tensors(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """Return the tensors of one module, by their names in it."""
    return {name.removeprefix(f"{module}."): value for name, value in tensors.items() if name.startswith(f"{module}.")}


def code_at(words: Tensor, index: int, bits: int) -> int:
    """Return a code of int32 words [any], the first in the lowest bits, by the definition of the layout."""
    word = int(words[index * bits // 32]) & 0xFFFFFFFF
    return word >> index * bits % 32 & (1 << bits) - 1


def same_weight(one: QTensor | Tensor, other: QTensor | Tensor) -> bool:
    """Return whether two weights of the same scheme are equal in every bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    assert not isinstance(other, Tensor)
    return one.scheme == other.scheme and same_bytes(one, other)
