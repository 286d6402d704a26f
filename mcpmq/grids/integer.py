"""Integer grids: 4 or 8 bits, one fp16 scale a group of columns, with or without a zero point.

The symmetric 4-bit grid has a signed scale, the value of largest magnitude over -8: exactly ggml's Q4_0 and
ONNX Runtime's MatMulNBits. The symmetric 8-bit grid spans -127..127: exactly ggml's Q8_0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.errors import RecipeError
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of what would cover a group: tried where importance is known
SEARCHED_WEIGHTS = 1 << 19  # at a time: their floats stay in the cache


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """The value of code `q` in group `g` is (q - zero[g]) * scale[g]; both float32 [rows, groups]."""

    scale: Tensor
    zero: Tensor


def fit(weight: Tensor, scheme: IntegerScheme, importance: Tensor | None = None) -> IntegerGrid:
    """The grid of every group of a weight [rows, columns]: it covers all values. Scales are already rounded to fp16.

    `importance`, float32 [columns], says how much an error in each column matters (the mean square of its inputs); a
    grid may then fall short of the largest values, by the share that makes the weighted square error least.

    Raises:
        RecipeError: a weight is so large that fp16 cannot hold its scale.
    """
    groups = _grouped(weight.float(), scheme)
    if importance is None:
        return _reaching(_reach(groups, scheme), scheme)
    matters = _grouped(importance.float()[None], scheme)
    pieces = torch.split(groups, max(1, SEARCHED_WEIGHTS // weight.shape[1]))
    found = [_search(piece, matters, scheme) for piece in pieces]
    return IntegerGrid(torch.cat([grid.scale for grid in found]), torch.cat([grid.zero for grid in found]))


def _search(groups: Tensor, matters: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    reach = _reach(groups, scheme)
    best = _reaching(reach, scheme)
    least = _error(groups, best, matters, scheme)
    for share in SHARES:
        grid = _reaching(share * reach, scheme)
        error = _error(groups, grid, matters, scheme)
        better = error < least
        least = torch.where(better, error, least)
        best = IntegerGrid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero))
    return best


def _error(groups: Tensor, grid: IntegerGrid, matters: Tensor, scheme: IntegerScheme) -> Tensor:
    """The weighted square error of every group, [rows, groups]."""
    scale, zero = grid.scale[..., None], grid.zero[..., None]
    steps = _codes(groups, grid, scheme).sub_(zero)
    return steps.mul_(scale).sub_(groups).square_().mul_(matters).sum(-1)


def _reach(groups: Tensor, scheme: IntegerScheme) -> Tensor:
    """The ends of every group, [1 or 2, rows, groups]: what a grid must reach to cover it."""
    if not scheme.symmetric:
        return torch.stack([groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)])
    return (_extreme(groups) if scheme.bits == 4 else groups.abs().amax(-1))[None]


def _reaching(reach: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    if scheme.symmetric:
        scale = _fp16(reach[0] / (-8 if scheme.bits == 4 else 127))
        return IntegerGrid(scale, torch.full_like(scale, 2 ** (scheme.bits - 1)))
    low, high = reach
    scale = _fp16((high - low) / (2**scheme.bits - 1))
    return IntegerGrid(scale, (-low / scale).round().clamp(0, 2**scheme.bits - 1))


def _codes(groups: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> Tensor:
    """The nearest codes, float32, to values [rows, groups, group size]."""
    codes = (groups / grid.scale[..., None]).round_().add_(grid.zero[..., None])
    return codes.clamp_(_lowest(scheme), 2**scheme.bits - 1)


def round_to(weight: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> QTensor:
    """The nearest code for every value of a weight [rows, columns]."""
    groups = _grouped(weight.float(), scheme)
    codes = _codes(groups, grid, scheme)
    return with_codes(codes.flatten(1)[:, : weight.shape[1]].to(torch.uint8), grid, scheme)


def _lowest(scheme: IntegerScheme) -> int:
    return 1 if scheme.symmetric and scheme.bits == 8 else 0  # -127..127, as Q8_0


def levels(grid: IntegerGrid, columns: int, scheme: IntegerScheme) -> Levels:
    """The values that a weight of so many columns can take on a grid."""
    width = scheme.group_size or columns
    return Levels(
        groups=[column // width for column in range(columns)],
        scale=grid.scale.T.contiguous(),
        zero=grid.zero.T.contiguous(),
        lowest=_lowest(scheme),
        highest=2**scheme.bits - 1,
    )


def with_codes(codes: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> QTensor:
    """Chosen codes, uint8 [rows, columns], on their grid."""
    zero = None if scheme.symmetric else grid.zero.to(torch.uint8)
    return QTensor(scheme, codes.shape[1], codes, grid.scale.half(), zero)


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
