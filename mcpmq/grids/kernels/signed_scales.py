"""Blocks of 256 columns whose groups have scales that are signed codes times an fp16: `q3_k`, `q6_k`, `iq4_xs`.

value = level * scale_code * scale, with the levels of `scaled`
"""

from typing import NamedTuple

import numpy as np

from mcpmq.grids.kernels import scaled
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, round_to_half
from mcpmq.grids.kernels.scaled import STEP

COLUMNS, MAX_GROUPS = 256, 16

# The scales of a block, float32 [values * lanes]: scale codes, the fp16, both sides of the equation of its refit.
SCALES_VALUES = MAX_GROUPS + 6
SCALE, SQUARES, PRODUCTS = MAX_GROUPS * LANES, (MAX_GROUPS + 1) * LANES, (MAX_GROUPS + 2) * LANES
LARGEST, CANDIDATE, ERROR = (MAX_GROUPS + 3) * LANES, (MAX_GROUPS + 4) * LANES, (MAX_GROUPS + 5) * LANES
BEST_ERROR = SQUARES  # before there is an equation


class BlockGrid(NamedTuple):
    """The grid of a block type and its search; `levels` to `highest` are arguments of `scaled.search`.

    largest_codes: codes that the scale of largest magnitude gets. rounds: of better codes and a better fp16.
    """

    groups: int
    group_columns: int
    levels: Floats
    fine: F
    lowest: F
    highest: F
    code_lowest: F
    code_highest: F
    largest_codes: Floats
    rounds: int


@kernel
def search_block(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats) -> None:
    """Choose the scales of a block."""
    curvatures = np.empty(MAX_GROUPS * LANES, np.float32)
    for group in range(grid.groups):
        first = group * grid.group_columns
        scaled.search(
            tile, weights, first, first + grid.group_columns, grid.levels, grid.fine, grid.lowest, grid.highest, False,
            state,
        )  # fmt: skip
        for lane in range(LANES):
            scales[group * LANES + lane] = state[scaled.BEST_STEP + lane]
            curvatures[group * LANES + lane] = state[scaled.BEST_SQUARES + lane]
    quantize_scales(scales, curvatures, grid)
    for _ in range(grid.rounds):
        improve(tile, weights, grid, state, scales)


@kernel
def quantize_scales(scales: Floats, curvatures: Floats, grid: BlockGrid) -> None:
    """Choose the fp16 of the scales with the least error, in second order, and replace the scales by codes."""
    fill(scales, LARGEST, F(0))
    for position in range(0, grid.groups * LANES, LANES):
        for lane in range(LANES):
            scale, largest = scales[position + lane], scales[LARGEST + lane]
            scales[LARGEST + lane] = scale if abs(scale) > abs(largest) else largest
    fill(scales, BEST_ERROR, F(np.inf))
    fill(scales, SCALE, F(0))
    for largest_code in grid.largest_codes:
        for lane in range(LANES):
            scales[CANDIDATE + lane] = scales[LARGEST + lane] / largest_code
        round_to_half(scales, CANDIDATE)
        sum_scale_errors(scales, curvatures, grid)
        for lane in range(LANES):
            is_better = scales[ERROR + lane] < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = scales[ERROR + lane] if is_better else scales[BEST_ERROR + lane]
            scales[SCALE + lane] = scales[CANDIDATE + lane] if is_better else scales[SCALE + lane]
    for position in range(0, grid.groups * LANES, LANES):
        for lane in range(LANES):
            scales[position + lane] = scale_code(scales[position + lane], scales[SCALE + lane], grid)


@kernel
def sum_scale_errors(scales: Floats, curvatures: Floats, grid: BlockGrid) -> None:
    """Sum the squares of rounding errors of scales with the candidate, weighted by curvatures."""
    fill(scales, ERROR, F(0))
    for position in range(0, grid.groups * LANES, LANES):
        for lane in range(LANES):
            scale, candidate = scales[position + lane], scales[CANDIDATE + lane]
            error = scale - candidate * scale_code(scale, candidate, grid)
            scales[ERROR + lane] += curvatures[position + lane] * error * error


@kernel
def scale_code(scale: F, whole: F, grid: BlockGrid) -> F:
    """Return the code of a scale."""
    code = np.rint(scale / whole) if whole != F(0) else F(0)
    return min(max(code, grid.code_lowest), grid.code_highest)


@kernel
def improve(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats) -> None:
    """Improve the codes of all scales, then change the fp16 to the one with the least error for the levels."""
    fill(scales, SQUARES, F(0))
    fill(scales, PRODUCTS, F(0))
    for group in range(grid.groups):
        improve_code(tile, weights, grid, state, scales, group)
        add_equation(tile, weights, grid, state, scales, group)
    for lane in range(LANES):
        squares = scales[SQUARES + lane]
        scales[SCALE + lane] += scales[PRODUCTS + lane] / squares if squares > F(0) else F(0)
    round_to_half(scales, SCALE)


@kernel
def set_step(scales: Floats, group: int, change: F, grid: BlockGrid, state: Floats) -> None:
    """Set the step of a group with a changed code."""
    for lane in range(LANES):
        code = min(max(scales[group * LANES + lane] + change, grid.code_lowest), grid.code_highest)
        state[STEP + lane] = scales[SCALE + lane] * code


@kernel
def improve_code(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats, group: int) -> None:
    """Replace the code of a group's scale by the neighbor with the least error."""
    first = group * grid.group_columns
    fill(state, scaled.BEST_ERROR, F(np.inf))
    for candidate in range(-1, 2):
        set_step(scales, group, F(candidate), grid, state)
        scaled.evaluate(tile, weights, first, first + grid.group_columns, grid.lowest, grid.highest, state)
        for lane in range(LANES):
            error, best = state[scaled.ERROR + lane], state[scaled.BEST_ERROR + lane]
            state[scaled.BEST_ERROR + lane] = error if error < best else best
            state[scaled.BEST_STEP + lane] = F(candidate) if error < best else state[scaled.BEST_STEP + lane]
    for lane in range(LANES):
        code = scales[group * LANES + lane] + state[scaled.BEST_STEP + lane]
        scales[group * LANES + lane] = min(max(code, grid.code_lowest), grid.code_highest)


@kernel
def add_equation(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats, group: int) -> None:
    """Add a group to the equation of the best fp16 for the levels."""
    first = group * grid.group_columns
    set_step(scales, group, F(0), grid, state)
    scaled.evaluate(tile, weights, first, first + grid.group_columns, grid.lowest, grid.highest, state)
    for lane in range(LANES):
        code = scales[group * LANES + lane]
        scales[SQUARES + lane] += code * code * state[scaled.SQUARES + lane]
        scales[PRODUCTS + lane] += code * state[scaled.PRODUCTS + lane]


@kernel
def round_block(tile: Floats, grid: BlockGrid, zero: int, scales: Floats, state: Floats, codes: Bytes) -> None:
    """Round a block to codes, uint8 [columns, lanes]: levels plus `zero`, or positions in the table."""
    for group in range(grid.groups):
        first = group * grid.group_columns
        last = first + grid.group_columns
        set_step(scales, group, F(0), grid, state)
        if grid.lowest == grid.highest:
            scaled.round_to_table(tile, first, last, state, codes[first:last])
        else:
            scaled.round_to_codes(tile, first, last, grid.lowest, grid.highest, zero, state, codes[first:last])
