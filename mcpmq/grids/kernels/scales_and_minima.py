"""Blocks of 256 columns whose groups have scales and minima that are codes times two fp16: `q2_k`, `q4_k`, `q5_k`.

value = code * scale_code * scale - minimum_code * minimum
"""

from typing import NamedTuple

import numpy as np

from mcpmq.grids.kernels import affine
from mcpmq.grids.kernels.affine import OFFSET, STEP
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, round_to_half

COLUMNS, MAX_GROUPS = 256, 16
MIN_DETERMINANT = F(1e-6)  # of the equations of both fp16, relative to the product of the diagonal

# The scales of a block, float32 [values * lanes]: scale codes, minimum codes, both fp16, equations of their refit.
SCALES_VALUES = 2 * MAX_GROUPS + 7
MINIMUM_CODES, SCALE, MINIMUM = MAX_GROUPS * LANES, 2 * MAX_GROUPS * LANES, (2 * MAX_GROUPS + 1) * LANES
EQUATIONS = (2 * MAX_GROUPS + 2) * LANES
LARGEST, CANDIDATE, ERROR, BEST_ERROR = (EQUATIONS + value * LANES for value in range(4))  # before there are equations


class BlockGrid(NamedTuple):
    """The grid of a block type and its search.

    steps, top: arguments of `affine.search`. code_top: the highest code of a scale or minimum. largest_codes: codes
    that the largest of them gets: with a lower one, codes of small scales have other fractions. rounds: of better codes
    and better fp16.
    """

    groups: int
    group_columns: int
    steps: Floats
    top: F
    code_top: F
    largest_codes: Floats
    rounds: int


@kernel
def search_block(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats) -> None:
    """Choose the scales of a block."""
    curvatures = np.empty(2 * MAX_GROUPS * LANES, np.float32)
    for group in range(grid.groups):
        first = group * grid.group_columns
        weight = affine.search(tile, weights, first, first + grid.group_columns, grid.steps, grid.top, F(0), state)
        for lane in range(LANES):
            position = group * LANES + lane
            scales[position], curvatures[position] = state[affine.BEST_STEP + lane], state[affine.BEST_SQUARES + lane]
            position += MINIMUM_CODES
            scales[position], curvatures[position] = -state[affine.BEST_OFFSET + lane], weight
    quantize_scales(scales, curvatures, 0, SCALE, grid)
    quantize_scales(scales, curvatures, MINIMUM_CODES, MINIMUM, grid)
    for _ in range(grid.rounds):
        for group in range(grid.groups):
            improve_codes(tile, weights, grid, state, scales, group)
        refit(tile, weights, grid, state, scales)


@kernel
def quantize_scales(scales: Floats, curvatures: Floats, first: int, total: int, grid: BlockGrid) -> None:
    """Choose the fp16 of scales with the least error, in second order, and replace the scales by codes."""
    fill(scales, LARGEST, F(0))
    for group in range(grid.groups):
        for lane in range(LANES):
            scales[LARGEST + lane] = max(scales[LARGEST + lane], scales[first + group * LANES + lane])
    fill(scales, BEST_ERROR, F(np.inf))
    for largest_code in grid.largest_codes:
        for lane in range(LANES):
            scales[CANDIDATE + lane] = scales[LARGEST + lane] / largest_code
        round_to_half(scales, CANDIDATE)
        sum_scale_errors(scales, curvatures, first, grid)
        for lane in range(LANES):
            is_better = scales[ERROR + lane] < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = scales[ERROR + lane] if is_better else scales[BEST_ERROR + lane]
            scales[total + lane] = scales[CANDIDATE + lane] if is_better else scales[total + lane]
    for group in range(grid.groups):
        for lane in range(LANES):
            code = scale_code(scales[first + group * LANES + lane], scales[total + lane], grid)
            scales[first + group * LANES + lane] = code


@kernel
def sum_scale_errors(scales: Floats, curvatures: Floats, first: int, grid: BlockGrid) -> None:
    """Sum the squares of rounding errors of scales with the candidate, weighted by curvatures."""
    fill(scales, ERROR, F(0))
    for group in range(grid.groups):
        for lane in range(LANES):
            scale, candidate = scales[first + group * LANES + lane], scales[CANDIDATE + lane]
            error = scale - candidate * scale_code(scale, candidate, grid)
            scales[ERROR + lane] += curvatures[first + group * LANES + lane] * error * error


@kernel
def scale_code(scale: F, whole: F, grid: BlockGrid) -> F:
    """Return the code of a scale."""
    return min(np.rint(scale / whole), grid.code_top) if whole > F(0) else F(0)


@kernel
def set_grid(scales: Floats, group: int, scale_change: F, minimum_change: F, grid: BlockGrid, state: Floats) -> None:
    """Set the offset and step of a group with changed codes."""
    for lane in range(LANES):
        scale_code, minimum_code = scales[group * LANES + lane], scales[MINIMUM_CODES + group * LANES + lane]
        state[STEP + lane] = scales[SCALE + lane] * min(max(scale_code + scale_change, F(0)), grid.code_top)
        state[OFFSET + lane] = -scales[MINIMUM + lane] * min(max(minimum_code + minimum_change, F(0)), grid.code_top)


@kernel
def improve_codes(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats, group: int) -> None:
    """Replace the codes of the scale and minimum of a group by the neighbors with the least error."""
    best, best_scale, best_minimum = affine.BEST_ERROR, affine.BEST_STEP, affine.BEST_OFFSET
    first = group * grid.group_columns
    fill(state, best, F(np.inf))
    for candidate in range(9):
        scale_change, minimum_change = F(candidate // 3 - 1), F(candidate % 3 - 1)
        set_grid(scales, group, scale_change, minimum_change, grid, state)
        affine.sum_errors(tile, weights, first, first + grid.group_columns, grid.top, state)
        for lane in range(LANES):
            is_better = state[affine.ERROR + lane] < state[best + lane]
            state[best + lane] = state[affine.ERROR + lane] if is_better else state[best + lane]
            state[best_scale + lane] = scale_change if is_better else state[best_scale + lane]
            state[best_minimum + lane] = minimum_change if is_better else state[best_minimum + lane]
    for lane in range(LANES):
        scale, minimum = group * LANES + lane, MINIMUM_CODES + group * LANES + lane
        scales[scale] = min(max(scales[scale] + state[best_scale + lane], F(0)), grid.code_top)
        scales[minimum] = min(max(scales[minimum] + state[best_minimum + lane], F(0)), grid.code_top)


@kernel
def refit(tile: Floats, weights: Floats, grid: BlockGrid, state: Floats, scales: Floats) -> None:
    """Change both fp16 of a block to those with the least error for the codes."""
    for equation in range(5):
        fill(scales, EQUATIONS + equation * LANES, F(0))
    for group in range(grid.groups):
        first, weight = group * grid.group_columns, F(0)
        for column in range(first, first + grid.group_columns):
            weight += weights[column]
        set_grid(scales, group, F(0), F(0), grid, state)
        affine.sum_residuals(tile, weights, first, first + grid.group_columns, grid.top, state)
        for lane in range(LANES):
            scale, minimum = scales[group * LANES + lane], scales[MINIMUM_CODES + group * LANES + lane]
            scales[EQUATIONS + lane] += scale * scale * state[affine.SQUARES + lane]
            scales[EQUATIONS + LANES + lane] -= scale * minimum * state[affine.CODES + lane]
            scales[EQUATIONS + 2 * LANES + lane] += minimum * minimum * weight
            scales[EQUATIONS + 3 * LANES + lane] += scale * state[affine.PRODUCTS + lane]
            scales[EQUATIONS + 4 * LANES + lane] -= minimum * state[affine.RESIDUALS + lane]
    solve(scales)
    round_to_half(scales, SCALE)
    round_to_half(scales, MINIMUM)


@kernel
def solve(scales: Floats) -> None:
    """Add the solution of the equations to both fp16, or to the scale alone if they are nearly singular."""
    for lane in range(LANES):
        first, mixed = scales[EQUATIONS + lane], scales[EQUATIONS + LANES + lane]
        second = scales[EQUATIONS + 2 * LANES + lane]
        scale_side, minimum_side = scales[EQUATIONS + 3 * LANES + lane], scales[EQUATIONS + 4 * LANES + lane]
        determinant = first * second - mixed * mixed
        is_regular = determinant > MIN_DETERMINANT * first * second
        inverse = F(1) / determinant if is_regular else F(0)
        alone = scale_side / first if first > F(0) else F(0)
        change = (scale_side * second - minimum_side * mixed) * inverse if is_regular else alone
        minimum_change = (first * minimum_side - mixed * scale_side) * inverse
        scales[SCALE + lane] = max(scales[SCALE + lane] + change, F(0))
        scales[MINIMUM + lane] = max(scales[MINIMUM + lane] + minimum_change, F(0))


@kernel
def round_block(tile: Floats, grid: BlockGrid, scales: Floats, state: Floats, codes: Bytes) -> None:
    """Round a block to codes: uint8 [columns, lanes]."""
    for group in range(grid.groups):
        first = group * grid.group_columns
        last = first + grid.group_columns
        set_grid(scales, group, F(0), F(0), grid, state)
        affine.round_to_codes(tile, first, last, grid.top, state, codes[first:last])
