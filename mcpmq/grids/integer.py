"""Integer grids: 4 or 8 bits, one fp16 scale a group of columns, with or without a zero point.

The symmetric 4-bit grid has a signed scale, the value of largest magnitude over -8: exactly ggml's Q4_0 and
ONNX Runtime's MatMulNBits. The symmetric 8-bit grid spans -127..127: exactly ggml's Q8_0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.errors import RecipeError
from mcpmq.qtensor import QTensor
from mcpmq.recipe import IntegerScheme


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """The value of code `q` in group `g` is (q - zero[g]) * scale[g]; both float32 [rows, groups]."""

    scale: Tensor
    zero: Tensor


def fit(weight: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    """The grid that covers every group of a weight [rows, columns]. Scales are already rounded to fp16.

    Raises:
        RecipeError: a weight is so large that fp16 cannot hold its scale.
    """
    groups = _grouped(weight.float(), scheme)
    if scheme.symmetric:
        extreme = _extreme(groups) / -8 if scheme.bits == 4 else groups.abs().amax(-1) / 127
        return IntegerGrid(_fp16(extreme), torch.full_like(extreme, 2 ** (scheme.bits - 1)))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = _fp16((high - low) / (2**scheme.bits - 1))
    return IntegerGrid(scale, (-low / scale).round().clamp(0, 2**scheme.bits - 1))


def round_to(weight: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> QTensor:
    """The nearest code for every value of a weight [rows, columns]."""
    groups = _grouped(weight.float(), scheme)
    lowest = 1 if scheme.symmetric and scheme.bits == 8 else 0  # -127..127, as Q8_0
    codes = (groups / grid.scale[..., None]).round_().add_(grid.zero[..., None]).clamp_(lowest, 2**scheme.bits - 1)
    zero = None if scheme.symmetric else grid.zero.to(torch.uint8)
    columns = weight.shape[1]
    return QTensor(scheme, columns, codes.flatten(1)[:, :columns].to(torch.uint8), grid.scale.half(), zero)


def dequantize(weight: QTensor) -> Tensor:
    """float32 [rows, columns]."""
    assert isinstance(weight.scheme, IntegerScheme)
    assert weight.scale is not None
    width = weight.scheme.group_size or weight.columns
    scale = weight.scale.float().repeat_interleave(width, 1)[:, : weight.columns]
    zero: Tensor | int = 2 ** (weight.scheme.bits - 1)
    if weight.zero is not None:
        zero = weight.zero.float().repeat_interleave(width, 1)[:, : weight.columns]
    values: Tensor = (weight.codes.float() - zero) * scale
    return values


def _grouped(weight: Tensor, scheme: IntegerScheme) -> Tensor:
    """[rows, groups, group size]; a ragged last group is filled with zeros, which change no extreme."""
    width = scheme.group_size or weight.shape[1]
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % width)).reshape(len(weight), -1, width)


def _extreme(groups: Tensor) -> Tensor:
    """The value of largest magnitude of every group, with its sign."""
    return groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _fp16(scale: Tensor) -> Tensor:
    """Rounded to fp16; 1 where the group is all zeros, or too small for fp16 to hold its scale."""
    rounded = scale.half().float()
    if rounded.isinf().any():
        largest = float(scale.abs().max())
        raise RecipeError(f"a scale of {largest:.3g} is too large for fp16", 'write `"bf16"` for this weight')
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)
