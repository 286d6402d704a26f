"""Hugging Face artifacts for tests, and what lies in them by their layouts' definitions."""

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.quantized_model import Quantized
from tests.gguf_tools import quantized_by


def hf_artifact(checkpoint: Path, folder: Path, name: str, **schemes: str) -> tuple[Quantized, Artifact]:
    """A checkpoint under a recipe, as it was quantized and in a format; globs as `quantized_by` takes them."""
    quantized = quantized_by(checkpoint, folder, **schemes)
    return quantized, export(quantized, cast(FormatName, name), folder / name)


def tensors_in(artifact: Artifact) -> dict[str, Tensor]:
    """Every tensor of every shard, read by safetensors itself."""
    return {
        name: value for file in sorted(artifact.path.glob("*.safetensors")) for name, value in load_file(file).items()
    }


def parts_in(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """What one module has."""
    return {name.removeprefix(f"{module}."): value for name, value in tensors.items() if name.startswith(f"{module}.")}


def code_in(words: Tensor, index: int, bits: int) -> int:
    """The `index`-th code of int32 words [any], the first in the lowest bits: the layout's definition."""
    word = int(words[index * bits // 32]) & 0xFFFFFFFF
    return word >> (index * bits % 32) & (2**bits - 1)


def same_weight(one: object, other: object) -> bool:
    """Whether two quantized weights are the same in every bit."""
    parts = [
        [getattr(weight, name) for name in ("scheme", "columns", "codes", "scale", "zero")] for weight in (one, other)
    ]
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(*parts, strict=True)
    )
