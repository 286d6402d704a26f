"""Integer grids: one fp16 scale per group of columns, with or without a zero point per group.

The symmetric 4-bit grid has a signed scale, the value of largest magnitude over -8: equal to ggml's Q4_0 and
ONNX Runtime's MatMulNBits. The symmetric 8-bit grid spans -127..127: equal to ggml's Q8_0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.grids.levels import Levels
from mcpmq.grids.limits import float_bits, range_factor
from mcpmq.grids.scale_search import SHARES, ToUnits, search_scale
from mcpmq.qtensor import IntegerTensor
from mcpmq.scheme import IntegerScheme

CLIP_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of a group's full range, tried in the search
SEARCH_CHUNK_WEIGHTS = 1 << 19  # at a time, so that the floats stay in the cache
FP16_OVERFLOW = 65520.0  # the smallest value that is rounded to infinity
DEVICE_CHUNK_WEIGHTS = 1 << 26  # on devices other than the CPU: few large operations


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Scale and zero point of every group, float32 [rows, groups]: code `q` has the value (q - zero_point) * scale."""

    scale: Tensor
    zero_point: Tensor


def choose_grid(weight: Tensor, scheme: IntegerScheme, importance: Tensor | None = None) -> IntegerGrid:
    """Choose the grid of every group of a weight [rows, columns], with scales that are exact in fp16.

    Without `importance` the grid covers the full range of the group. `importance`, float32 [columns], is the mean
    square of the input of each column; the range is then clipped by the ratio with the least weighted square error.

    Raises:
        ScaleError: a scale is too large for fp16.
    """
    groups = _to_groups(weight.float(), scheme)
    if importance is None:
        return _grid_for_range(_full_range(groups, scheme), scheme)
    grouped_importance = _to_groups(importance.float()[None] * range_factor(importance), scheme)
    chunks = torch.split(groups, _chunk_rows(weight))
    grids = [_search_clipping(chunk, grouped_importance, scheme) for chunk in chunks]
    return IntegerGrid(torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero_point for grid in grids]))


def fit_grid(weight: Tensor, scheme: IntegerScheme, importance: Tensor) -> IntegerGrid:
    """Choose the grid of every group with the least error weighted by `importance`, float32 [columns].

    A finer search than that of `choose_grid`, for weights whose codes are chosen afterwards.

    Raises:
        ScaleError: a scale is too large for fp16.
    """
    grouped_importance = _to_groups(importance.float()[None] * range_factor(importance), scheme)
    rows = torch.split(weight, _chunk_rows(weight))
    grids = [_fit_groups(_to_groups(chunk.float(), scheme), grouped_importance, scheme) for chunk in rows]
    return IntegerGrid(torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero_point for grid in grids]))


def _chunk_rows(weight: Tensor) -> int:
    on_cpu = weight.device.type == "cpu"
    return max(1, (SEARCH_CHUNK_WEIGHTS if on_cpu else DEVICE_CHUNK_WEIGHTS) // weight.shape[1])


def _fit_groups(groups: Tensor, importance: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    full_range = _full_range(groups, scheme)
    starts = [_grid_for_range(share * full_range, scheme) for share in SHARES]

    def to_units(index: int) -> ToUnits:
        zero_point = starts[index].zero_point[..., None]
        return lambda steps: steps.round_().clamp_(scheme.qmin - zero_point, scheme.qmax - zero_point)

    found = search_scale(groups, importance, [grid.scale for grid in starts], to_units)
    zero_points = torch.stack([grid.zero_point for grid in starts])
    return IntegerGrid(_to_fp16(found.scale), zero_points.gather(0, found.start[None])[0])


def _search_clipping(groups: Tensor, importance: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    full_range = _full_range(groups, scheme)
    best = _grid_for_range(full_range, scheme)
    least_error = _weighted_error(groups, best, importance, scheme)
    for ratio in CLIP_RATIOS:
        grid = _grid_for_range(ratio * full_range, scheme)
        error = _weighted_error(groups, grid, importance, scheme)
        better = error < least_error
        least_error = torch.where(better, error, least_error)
        scale = torch.where(better, grid.scale, best.scale)
        best = IntegerGrid(scale, torch.where(better, grid.zero_point, best.zero_point))
    return best


def _weighted_error(groups: Tensor, grid: IntegerGrid, importance: Tensor, scheme: IntegerScheme) -> Tensor:
    """Return the weighted square error of every group, [rows, groups]."""
    scale, zero_point = grid.scale[..., None], grid.zero_point[..., None]
    steps = _nearest_codes(groups, grid, scheme).sub_(zero_point)
    return steps.mul_(scale).sub_(groups).square_().mul_(importance).sum(-1)


def _full_range(groups: Tensor, scheme: IntegerScheme) -> Tensor:
    """Return the absolute maximum [1, rows, groups] if symmetric, else minimum and maximum [2, rows, groups]."""
    if not scheme.symmetric:
        return torch.stack([groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)])
    return (_signed_absmax(groups) if scheme.scale_divisor < 0 else groups.abs().amax(-1))[None]


def _grid_for_range(value_range: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    if scheme.symmetric:
        scale = _to_fp16(value_range[0] / scheme.scale_divisor)
        return IntegerGrid(scale, torch.full_like(scale, scheme.zero_point))
    minimum, maximum = value_range
    scale = _to_fp16((maximum - minimum) / scheme.scale_divisor)
    return IntegerGrid(scale, (-minimum / scale).round().clamp(scheme.qmin, scheme.qmax))


def _nearest_codes(groups: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> Tensor:
    """Return the nearest codes, float32, of values [rows, groups, group size]."""
    codes = (groups / grid.scale[..., None]).round_().add_(grid.zero_point[..., None])
    return codes.clamp_(scheme.qmin, scheme.qmax)


def quantize(weight: Tensor, scheme: IntegerScheme, importance: Tensor | None = None) -> IntegerTensor:
    """Round a weight [rows, columns] to nearest on the grid that `choose_grid` chooses."""
    if importance is None and scheme.symmetric and weight.device.type == "cpu":
        return _cover_range(weight, scheme)
    return round_to_grid(weight, choose_grid(weight, scheme, importance), scheme)


def _cover_range(weight: Tensor, scheme: IntegerScheme) -> IntegerTensor:
    """Round to nearest on the symmetric grid of the full range, with compiled loops: the same codes, in less time."""
    from mcpmq.grids.kernels import integer_groups  # numba takes a second to import

    bits, shift = float_bits(weight)
    group = scheme.group_columns(weight.shape[1])
    largest = np.empty((len(bits), scheme.num_groups(weight.shape[1])), np.uint32)
    find = integer_groups.signed_largest if scheme.scale_divisor < 0 else integer_groups.largest_magnitudes
    find(bits, shift, group, largest)
    scales, halves = np.empty(largest.shape, np.float32), np.empty(largest.shape, np.uint16)
    values, divisor = largest.view(np.float32), np.float32(scheme.scale_divisor)
    top = integer_groups.round_scales(values.reshape(-1), divisor, scales.reshape(-1), halves.reshape(-1))
    if not top < FP16_OVERFLOW:
        raise _scale_error(float(top))
    codes = np.empty(bits.shape, np.uint8)
    zero, lowest, highest = np.float32(scheme.zero_point), np.float32(scheme.qmin), np.float32(scheme.qmax)
    integer_groups.round_to_codes(bits, shift, group, scales, zero, lowest, highest, codes)
    return IntegerTensor(scheme, torch.from_numpy(codes), torch.from_numpy(halves.view(np.float16)), None)


def round_to_grid(weight: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> IntegerTensor:
    """Round a weight [rows, columns] to the nearest codes of a grid."""
    codes = _nearest_codes(_to_groups(weight.float(), scheme), grid, scheme)
    return to_qtensor(codes.flatten(1)[:, : weight.shape[1]].to(torch.uint8), grid, scheme)


def scale_columns(columns: int, scheme: IntegerScheme) -> int:
    """Return how many of `columns` columns have the same scale: a group."""
    return scheme.group_columns(columns)


def levels(grid: IntegerGrid, columns: int, scheme: IntegerScheme) -> Levels:
    """Return the values on the grid of `columns` columns."""
    return Levels(
        groups=[column // scale_columns(columns, scheme) for column in range(columns)],
        scale=grid.scale.T.contiguous(),
        zero_point=grid.zero_point.T.contiguous(),
        qmin=scheme.qmin,
        qmax=scheme.qmax,
        has_fp16_scales=True,
    )


def rescale(grid: IntegerGrid, scale: Tensor, scheme: IntegerScheme) -> IntegerGrid:
    """Return the grid with other scales, float32 [groups, rows] that fp16 represents."""
    return replace(grid, scale=scale.T.contiguous())


def concat(grids: Sequence[IntegerGrid]) -> IntegerGrid:
    """Concatenate the grids of consecutive columns."""
    return IntegerGrid(torch.cat([grid.scale for grid in grids], 1), torch.cat([grid.zero_point for grid in grids], 1))


def assemble(grid: IntegerGrid, codes: Tensor, columns: int, scheme: IntegerScheme) -> IntegerTensor:
    """Combine codes uint8 [rows, columns] with their grid."""
    return to_qtensor(codes[:, :columns], grid, scheme)


def to_qtensor(codes: Tensor, grid: IntegerGrid, scheme: IntegerScheme) -> IntegerTensor:
    """Combine codes uint8 [rows, columns] with their grid."""
    zero_point = None if scheme.symmetric else grid.zero_point.to(torch.uint8)
    return IntegerTensor(scheme, codes, grid.scale.half(), zero_point)


def dequantize(weight: IntegerTensor) -> Tensor:
    """Return the values: float32 [rows, columns]."""
    scale = _to_columns(weight.scale, weight)
    zero_point = weight.scheme.zero_point if weight.zero_point is None else _to_columns(weight.zero_point, weight)
    values: Tensor = (weight.codes.float() - zero_point) * scale
    return values


def _to_columns(group_values: Tensor, weight: IntegerTensor) -> Tensor:
    """Repeat a value per group for every column of the group: [rows, groups] -> float32 [rows, columns]."""
    group_columns = weight.scheme.group_columns(weight.columns)
    return group_values.float().repeat_interleave(group_columns, 1)[:, : weight.columns]


def _to_groups(weight: Tensor, scheme: IntegerScheme) -> Tensor:
    """Reshape to [rows, groups, group size]; zeros fill the last group, which changes neither minimum nor maximum."""
    group_columns = scheme.group_columns(weight.shape[1])
    padding = -weight.shape[1] % group_columns
    return torch.nn.functional.pad(weight, (0, padding)).reshape(len(weight), -1, group_columns)


def _signed_absmax(groups: Tensor) -> Tensor:
    """Return the value of largest magnitude of every group, with its sign."""
    return groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _to_fp16(scale: Tensor) -> Tensor:
    """Round scales to fp16; 1 where a group is all zeros or its scale underflows."""
    rounded = scale.half().float()
    if rounded.isinf().any():
        raise _scale_error(float(scale.abs().max()))
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def _scale_error(largest: float) -> ScaleError:
    return ScaleError(f"a scale of {largest:.3g} is too large for fp16", 'use `"keep"` for this weight')
