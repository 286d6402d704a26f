"""The searches of `grids.kernels.scaled` and `signed_scales` on tensors: all groups of a weight at a time.

The candidates and their order are the same; sums add in another order. Shapes are those of `grids.gpu.affine`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mcpmq.grids.ggml_blocks import IQ4_NL_VALUES
from mcpmq.grids.gpu.rounding import reciprocal, round_to_half
from mcpmq.grids.kernels import iq4_xs, q3_k, q6_k, small_blocks
from mcpmq.grids.kernels.scaled import FINE_FACTORS


class Levels(NamedTuple):
    """Levels of values at a scale of 1: integers from lowest to highest, or the table of `iq4_nl` if both are equal.

    candidates: levels that the value of largest magnitude gets. fine: distance of two more from the best, or 0.
    """

    candidates: tuple[float, ...]
    fine: float
    lowest: float
    highest: float

    @property
    def is_table(self) -> bool:
        return self.lowest == self.highest


class BlockGrid(NamedTuple):
    """The grid of a block type and its search, as in `grids.kernels.signed_scales`."""

    groups: int
    levels: Levels
    code_lowest: float
    code_highest: float
    largest_codes: tuple[float, ...]
    rounds: int


def _floats(values: object) -> tuple[float, ...]:
    return tuple(map(float, values))  # type: ignore[call-overload]


_Q3_K = Levels(_floats(q3_k.LEVELS), float(q3_k.FINE), -4.0, 3.0)
_Q6_K = Levels(_floats(q6_k.LEVELS), float(q6_k.FINE), -32.0, 31.0)
TABLE_LEVELS = Levels(_floats(small_blocks.IQ4_NL_LEVELS), 2.5, 0.0, 0.0)
BLOCK_GRIDS = {
    "q3_k": BlockGrid(16, _Q3_K, -32.0, 31.0, _floats(q3_k.LARGEST_CODES), 3),
    "q6_k": BlockGrid(16, _Q6_K, -128.0, 127.0, _floats(q6_k.LARGEST_CODES), 1),
    "iq4_xs": BlockGrid(8, TABLE_LEVELS, -32.0, 31.0, _floats(iq4_xs.LARGEST_CODES), 2),
}
SMALL_BLOCKS = {  # with an fp16 scale
    "q4_0": Levels(_floats(small_blocks.Q4_0_LEVELS), 0.2, -8.0, 7.0),
    "q5_0": Levels(_floats(small_blocks.Q5_0_LEVELS), 0.2, -16.0, 15.0),
    "q8_0": Levels(_floats(small_blocks.Q8_0_LEVELS), 0.0, -127.0, 127.0),
    "iq4_nl": TABLE_LEVELS,
}


def nearest_codes(values: Tensor, step: Tensor, levels: Levels) -> Tensor:
    """Return the nearest integers, float32, or positions in the table."""
    units = values * reciprocal(step)[..., None]
    if not levels.is_table:
        return units.round_().clamp_(levels.lowest, levels.highest)
    table = torch.tensor(IQ4_NL_VALUES, dtype=torch.float32, device=values.device)
    return torch.bucketize(units, (table[1:] + table[:-1]) / 2, out_int32=True)


def _nearest_levels(values: Tensor, step: Tensor, levels: Levels) -> Tensor:
    codes = nearest_codes(values, step, levels)
    if not levels.is_table:
        return codes
    return torch.tensor(IQ4_NL_VALUES, dtype=torch.float32, device=values.device)[codes]


def _sum_residuals(values: Tensor, weights: Tensor, step: Tensor, levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
    """Return weighted sums over groups: level^2, level * residual, residual^2."""
    nearest = _nearest_levels(values, step, levels)
    residuals, weighted = values - nearest * step[..., None], weights * nearest
    error = residuals.square().mul_(weights).sum(-1)
    return nearest.mul_(weighted).sum(-1), weighted.mul_(residuals).sum(-1), error


@dataclass(slots=True)
class Found:
    """The best scale of every group, half of the second derivative of the error by it, and the level of the value of
    largest magnitude; and the best candidate itself, without the closed form."""

    error: Tensor
    step: Tensor
    level: Tensor
    squares: Tensor
    exact_error: Tensor
    exact_step: Tensor

    def update(self, sums: tuple[Tensor, Tensor, Tensor], step: Tensor, level: Tensor | None) -> None:
        """Replace the best scale, and level, by that of least error for the levels, if its error is smaller."""
        squares, products, error = sums
        is_exact = error < self.exact_error
        self.exact_step = torch.where(is_exact, step, self.exact_step)
        self.exact_error = torch.where(is_exact, error, self.exact_error)
        change = torch.where(squares > 0, products / squares, 0)
        error = error - change * products
        is_better = error < self.error
        self.error = torch.where(is_better, error, self.error)
        self.step = torch.where(is_better, step + change, self.step)
        self.squares = torch.where(is_better, squares, self.squares)
        if level is not None:
            self.level = torch.where(is_better, level, self.level)


def search(values: Tensor, weights: Tensor, levels: Levels, is_half: bool) -> Found:
    """Choose the scale of every group; with `is_half`, the scales of candidates are fp16."""
    largest = values.gather(-1, values.abs().argmax(-1, keepdim=True)).squeeze(-1)
    infinite, zero = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    found = Found(infinite, zero, zero, zero, infinite, zero)

    def evaluate(level: Tensor, has_level: bool) -> None:
        step = round_to_half(largest / level) if is_half else largest / level
        found.update(_sum_residuals(values, weights, step, levels), step, level if has_level else None)

    for candidate in levels.candidates:
        evaluate(torch.full_like(largest, candidate), has_level=True)
    for factor in _floats(FINE_FACTORS) if levels.fine else ():
        evaluate(found.level + levels.fine * factor, has_level=False)
    return found


def choose_half(values: Tensor, weights: Tensor, levels: Levels) -> Tensor:
    """Return the scale of every group in fp16: that of least error, or of the best candidate if that is better."""
    found = search(values, weights, levels, is_half=True)
    step = round_to_half(found.step)
    error = _sum_residuals(values, weights, step, levels)[2]
    return torch.where(error < found.exact_error, step, found.exact_step)


def search_blocks(values: Tensor, weights: Tensor, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """Return the codes of scales [rows, blocks, groups] and their fp16, float32 [rows, blocks, 1]."""
    found = search(values, weights, grid.levels, is_half=False)
    codes, scale = _quantize_scales(found.step, found.squares, grid)
    for _ in range(grid.rounds):
        codes, scale = _improve(values, weights, grid, codes, scale)
    return codes, scale


def _quantize_scales(scales: Tensor, curvatures: Tensor, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """Return codes of scales, and their fp16 with the least error in second order."""
    largest = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for code in grid.largest_codes:
        candidate = round_to_half(largest / code)
        error = (scales - candidate * _scale_codes(scales, candidate, grid)).square_().mul_(curvatures)
        total = error.sum(-1, keepdim=True)
        best, least = torch.where(total < least, candidate, best), torch.minimum(total, least)
    return _scale_codes(scales, best, grid), best


def _scale_codes(scales: Tensor, whole: Tensor, grid: BlockGrid) -> Tensor:
    codes = torch.where(whole != 0, (scales / whole).round(), 0)
    return codes.clamp(grid.code_lowest, grid.code_highest)


def _improve(values: Tensor, weights: Tensor, grid: BlockGrid, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Improve the codes of all scales, then change the fp16 to the one with the least error for the levels."""
    best, least = codes, torch.full_like(codes, torch.inf)
    for change in (-1, 0, 1):
        changed = (codes + change).clamp(grid.code_lowest, grid.code_highest)
        error = _sum_residuals(values, weights, scale * changed, grid.levels)[2]
        best, least = torch.where(error < least, changed, best), torch.minimum(error, least)
    squares, products, _ = _sum_residuals(values, weights, scale * best, grid.levels)
    total = (best * best * squares).sum(-1, keepdim=True)
    better_scale = scale + torch.where(total > 0, (best * products).sum(-1, keepdim=True) / total, 0)
    return best, round_to_half(better_scale)
