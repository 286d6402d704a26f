"""The searches of `grids.kernels.affine` and `scales_and_minima` on tensors: all groups of a weight at a time.

The candidates and their order are the same; sums add in another order. Values are float32 [rows, blocks, groups,
columns], importance is float32 [blocks, groups, columns], and numbers of groups are float32 [rows, blocks, groups].
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mcpmq.grids.gpu.rounding import reciprocal, round_to_half
from mcpmq.grids.kernels.affine import FINE_STEPS, MARGIN, STEPS
from mcpmq.grids.kernels.k_quants import CODE_TOP, LARGEST_CODES
from mcpmq.grids.kernels.q2_k import CODE_TOP as Q2_K_CODE_TOP
from mcpmq.grids.kernels.q2_k import LARGEST_CODES as Q2_K_LARGEST_CODES
from mcpmq.grids.kernels.q2_k import STEPS as Q2_K_STEPS
from mcpmq.grids.kernels.scales_and_minima import MIN_DETERMINANT


class BlockGrid(NamedTuple):
    """The grid of a block type and its search, as in `grids.kernels.scales_and_minima`."""

    groups: int
    steps: tuple[float, ...]
    top: float
    code_top: float
    largest_codes: tuple[float, ...]
    rounds: int


def _floats(values: object) -> tuple[float, ...]:
    return tuple(map(float, values))  # type: ignore[call-overload]


_K_SCALES = float(CODE_TOP), _floats(LARGEST_CODES), 1
BLOCK_GRIDS = {
    "q4_k": BlockGrid(8, _floats(STEPS), 15.0, *_K_SCALES),
    "q5_k": BlockGrid(8, _floats(STEPS), 31.0, *_K_SCALES),
    "q2_k": BlockGrid(16, _floats(Q2_K_STEPS), 3.0, float(Q2_K_CODE_TOP), _floats(Q2_K_LARGEST_CODES), 3),
}


class _Sums(NamedTuple):
    """Weighted sums over a group: code, code^2, code * residual, residual, residual^2."""

    codes: Tensor
    squares: Tensor
    products: Tensor
    residuals: Tensor
    error: Tensor


def nearest_codes(values: Tensor, offset: Tensor, step: Tensor, top: float) -> Tensor:
    """Return the codes nearest to values, float32."""
    return (values - offset[..., None]).mul_(reciprocal(step)[..., None]).round_().clamp_(0, top)


def _residuals(values: Tensor, offset: Tensor, step: Tensor, top: float) -> tuple[Tensor, Tensor]:
    codes = nearest_codes(values, offset, step, top)
    return codes, (values - offset[..., None]).sub_(codes * step[..., None])


def _sum_residuals(values: Tensor, weights: Tensor, offset: Tensor, step: Tensor, top: float) -> _Sums:
    codes, residuals = _residuals(values, offset, step, top)
    weighted_codes, weighted_residuals = weights * codes, weights * residuals
    return _Sums(
        weighted_codes.sum(-1),
        (weighted_codes * codes).sum(-1),
        weighted_codes.mul_(residuals).sum(-1),
        weighted_residuals.sum(-1),
        weighted_residuals.mul_(residuals).sum(-1),
    )


def _sum_errors(values: Tensor, weights: Tensor, offset: Tensor, step: Tensor, top: float) -> Tensor:
    return _residuals(values, offset, step, top)[1].square_().mul_(weights).sum(-1)


@dataclass(slots=True)
class Found:
    """The best scale and offset of every group, half of the second derivative of the error by the scale, the number of
    steps in the width of the values, and the sum of the weights."""

    error: Tensor
    offset: Tensor
    step: Tensor
    squares: Tensor
    steps_in_width: Tensor
    weight: Tensor

    def update(self, sums: _Sums, candidate: tuple[Tensor, Tensor, Tensor], largest: float, margin: Tensor) -> None:
        """Replace the best numbers by those of least error for the codes of a candidate, if their error is smaller.

        candidate: offset, step, and steps in the width. largest: limit of the offset.
        """
        codes, squares, products, residuals, error = sums
        offset, step, steps_in_width = candidate
        determinant = self.weight * squares - codes * codes
        is_regular = determinant > 0
        inverse = torch.where(is_regular, 1 / determinant, 0)
        change = (self.weight * products - residuals * codes) * inverse
        shift = torch.where(is_regular, (squares * residuals - codes * products) * inverse, residuals / self.weight)
        is_limited = offset + shift > largest
        shift = torch.where(is_limited, largest - offset, shift)
        limited_change = torch.where(squares > 0, (products - shift * codes) / squares, 0)
        change = torch.where(is_limited, limited_change, change)
        error = error - 2 * (change * products + shift * residuals - change * shift * codes)
        error = error + change * change * squares + shift * shift * self.weight
        step = step + change
        is_better = (error + margin < self.error) & (step >= 0)
        self.error = torch.where(is_better, error, self.error)
        self.offset = torch.where(is_better, offset + shift, self.offset)
        self.step = torch.where(is_better, step, self.step)
        self.squares = torch.where(is_better, squares, self.squares)
        self.steps_in_width = torch.where(is_better, steps_in_width, self.steps_in_width)


def search(values: Tensor, weights: Tensor, steps: tuple[float, ...], top: float, largest: float) -> Found:
    """Choose a scale of at least 0 and an offset of at most `largest` for every group."""
    weight = weights.sum(-1)
    lowest = values.amin(-1).clamp(max=largest)
    width = (values.amax(-1) - lowest).clamp(min=0)
    mean = ((weights * values).sum(-1) / weight).clamp(max=largest)
    zero, margin = torch.zeros_like(lowest), float(MARGIN) * weight * width * width
    found = Found(torch.full_like(lowest, torch.inf), zero, zero, zero, zero, weight)

    def evaluate(offset: Tensor, step: Tensor, steps_in_width: Tensor) -> None:
        sums = _sum_residuals(values, weights, offset, step, top)
        found.update(sums, (offset, step, steps_in_width), largest, margin)

    for change in steps:
        evaluate(lowest, width / (top + change), torch.full_like(width, top + change))
    whole = torch.full_like(width, top)
    evaluate(lowest, (mean - lowest) / top, whole)
    evaluate(mean, (lowest + width - mean).clamp(min=0) / top, whole)
    center = found.steps_in_width
    for change in FINE_STEPS:
        evaluate(lowest, width / (center + change), center + change)
    return found


def choose_half(values: Tensor, weights: Tensor, found: Found, top: float) -> tuple[Tensor, Tensor]:
    """Return the best scale and offset rounded to fp16, or those of the whole range if their error is smaller."""
    lowest = values.amin(-1)
    whole = round_to_half(lowest), round_to_half((values.amax(-1) - lowest) / top)
    best = round_to_half(found.offset), round_to_half(found.step)
    is_better = _sum_errors(values, weights, *best, top) < _sum_errors(values, weights, *whole, top)
    return torch.where(is_better, best[1], whole[1]), torch.where(is_better, best[0], whole[0])


@dataclass(slots=True)
class BlockScales:
    """The scales of blocks: codes of the groups [rows, blocks, groups], and both fp16, float32 [rows, blocks, 1]."""

    scale_codes: Tensor
    minimum_codes: Tensor
    scale: Tensor
    minimum: Tensor

    def grid(self, grid: BlockGrid, scale_change: int = 0, minimum_change: int = 0) -> tuple[Tensor, Tensor]:
        """Return the offset and step of all groups with changed codes."""
        step = self.scale * (self.scale_codes + scale_change).clamp(0, grid.code_top)
        return -self.minimum * (self.minimum_codes + minimum_change).clamp(0, grid.code_top), step


def search_blocks(values: Tensor, weights: Tensor, grid: BlockGrid) -> BlockScales:
    """Choose the scales of blocks."""
    found = search(values, weights, grid.steps, grid.top, 0.0)
    curvature = found.weight.expand_as(found.step)
    scale_codes, scale = _quantize_scales(found.step, found.squares, grid)
    minimum_codes, minimum = _quantize_scales(-found.offset, curvature, grid)
    scales = BlockScales(scale_codes, minimum_codes, scale, minimum)
    for _ in range(grid.rounds):
        _improve_codes(values, weights, grid, scales)
        _refit(values, weights, grid, scales)
    return scales


def _quantize_scales(scales: Tensor, curvatures: Tensor, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """Return codes of scales, and their fp16 with the least error in second order."""
    largest = scales.amax(-1, keepdim=True).clamp(min=0)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for code in grid.largest_codes:
        candidate = round_to_half(largest / code)
        rounded = candidate * _scale_codes(scales, candidate, grid)
        error = (curvatures * (scales - rounded).square()).sum(-1, keepdim=True)
        best, least = torch.where(error < least, candidate, best), torch.minimum(error, least)
    return _scale_codes(scales, best, grid), best


def _scale_codes(scales: Tensor, whole: Tensor, grid: BlockGrid) -> Tensor:
    return torch.where(whole > 0, (scales / whole).round().clamp(max=grid.code_top), 0)


def _improve_codes(values: Tensor, weights: Tensor, grid: BlockGrid, scales: BlockScales) -> None:
    """Replace the codes of the scale and minimum of every group by the neighbors with the least error."""
    least = torch.full_like(scales.scale_codes, torch.inf)
    best_scale, best_minimum = torch.zeros_like(least), torch.zeros_like(least)
    for scale_change in (-1, 0, 1):
        for minimum_change in (-1, 0, 1):
            error = _sum_errors(values, weights, *scales.grid(grid, scale_change, minimum_change), grid.top)
            is_better = error < least
            least = torch.where(is_better, error, least)
            best_scale = torch.where(is_better, scale_change, best_scale)
            best_minimum = torch.where(is_better, minimum_change, best_minimum)
    scales.scale_codes = (scales.scale_codes + best_scale).clamp(0, grid.code_top)
    scales.minimum_codes = (scales.minimum_codes + best_minimum).clamp(0, grid.code_top)


def _refit(values: Tensor, weights: Tensor, grid: BlockGrid, scales: BlockScales) -> None:
    """Change both fp16 of a block to those with the least error for the codes."""
    sums = _sum_residuals(values, weights, *scales.grid(grid), grid.top)
    codes, minima = scales.scale_codes, scales.minimum_codes
    first = (codes * codes * sums.squares).sum(-1, keepdim=True)
    mixed = -(codes * minima * sums.codes).sum(-1, keepdim=True)
    second = (minima * minima * weights.sum(-1)).sum(-1, keepdim=True)
    scale_side = (codes * sums.products).sum(-1, keepdim=True)
    minimum_side = -(minima * sums.residuals).sum(-1, keepdim=True)
    determinant = first * second - mixed * mixed
    is_regular = determinant > float(MIN_DETERMINANT) * first * second
    inverse = torch.where(is_regular, 1 / determinant, 0)
    alone = torch.where(first > 0, scale_side / first, 0)
    change = torch.where(is_regular, (scale_side * second - minimum_side * mixed) * inverse, alone)
    minimum_change = (first * minimum_side - mixed * scale_side) * inverse
    scales.scale = round_to_half((scales.scale + change).clamp(min=0))
    scales.minimum = round_to_half((scales.minimum + minimum_change).clamp(min=0))
