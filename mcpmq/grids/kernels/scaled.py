"""The scale of groups of columns: value = level * scale, with levels that are integers or the table of `iq4_nl`.

Candidates give the value of largest magnitude different levels, of both signs. The levels of each candidate give the
scale of least weighted error in closed form.

`state` is float32 [`STATE_VALUES` * lanes], as in `affine`.
"""

import numpy as np

from mcpmq.grids.ggml_blocks import IQ4_NL_VALUES
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, reciprocal, round_to_half

UNROLLED = 8
FINE_FACTORS = np.array([-1, 1], np.float32)
STATE_VALUES = 12
STEP, SQUARES, PRODUCTS, ERROR = 0 * LANES, 1 * LANES, 2 * LANES, 3 * LANES  # a grid and its sums
BEST_ERROR, BEST_STEP, BEST_LEVEL = 4 * LANES, 5 * LANES, 6 * LANES
LARGEST, LEVEL = 7 * LANES, 8 * LANES
EXACT_ERROR, EXACT_STEP = 9 * LANES, 10 * LANES  # of the best candidate itself, without the closed form
BEST_SQUARES = 11 * LANES

TABLE = np.array(IQ4_NL_VALUES, np.float32)
FIRST_LEVEL, MIDPOINTS, GAPS = F(TABLE[0]), (TABLE[1:] + TABLE[:-1]) / 2, TABLE[1:] - TABLE[:-1]


@kernel
def nearest_in_table(value: F) -> F:
    """Return the nearest of `IQ4_NL_VALUES`."""
    level = FIRST_LEVEL
    for index in range(len(GAPS)):
        level += GAPS[index] if value > MIDPOINTS[index] else F(0)
    return level


@kernel
def sum_residuals(tile: Floats, weights: Floats, first: int, stop: int, lowest: F, highest: F, state: Floats) -> None:
    """Round columns to integers in a range and sum, with weights: level^2, level * residual, residual^2."""
    for position in range(SQUARES, ERROR + LANES):
        state[position] = F(0)
    for start in range(first, stop, UNROLLED):
        for lane in range(LANES):
            step, squares = state[STEP + lane], state[SQUARES + lane]
            products, error = state[PRODUCTS + lane], state[ERROR + lane]
            inverse = reciprocal(step)
            for column in range(start, start + UNROLLED):
                value = tile[column, lane]
                level = min(max(np.rint(value * inverse), lowest), highest)
                residual = value - level * step
                weighted_level = weights[column] * level
                squares += weighted_level * level
                products += weighted_level * residual
                error += weights[column] * residual * residual
            state[SQUARES + lane], state[PRODUCTS + lane], state[ERROR + lane] = squares, products, error


@kernel
def sum_table_residuals(tile: Floats, weights: Floats, first: int, stop: int, state: Floats) -> None:
    """Round columns to levels of the table and sum, as `sum_residuals`."""
    for position in range(SQUARES, ERROR + LANES):
        state[position] = F(0)
    for start in range(first, stop, UNROLLED):
        for lane in range(LANES):
            step, squares = state[STEP + lane], state[SQUARES + lane]
            products, error = state[PRODUCTS + lane], state[ERROR + lane]
            inverse = reciprocal(step)
            for column in range(start, start + UNROLLED):
                value = tile[column, lane]
                level = nearest_in_table(value * inverse)
                residual = value - level * step
                weighted_level = weights[column] * level
                squares += weighted_level * level
                products += weighted_level * residual
                error += weights[column] * residual * residual
            state[SQUARES + lane], state[PRODUCTS + lane], state[ERROR + lane] = squares, products, error


@kernel
def update_best(state: Floats, with_level: bool) -> None:
    """Replace the best scale, and level, by that of least error for the summed levels, if its error is smaller."""
    for lane in range(LANES):
        is_better = state[ERROR + lane] < state[EXACT_ERROR + lane]
        state[EXACT_ERROR + lane] = state[ERROR + lane] if is_better else state[EXACT_ERROR + lane]
        state[EXACT_STEP + lane] = state[STEP + lane] if is_better else state[EXACT_STEP + lane]
    for lane in range(LANES):
        squares, products = state[SQUARES + lane], state[PRODUCTS + lane]
        change = products / squares if squares > F(0) else F(0)
        error = state[ERROR + lane] - change * products
        is_better = error < state[BEST_ERROR + lane]
        state[BEST_ERROR + lane] = error if is_better else state[BEST_ERROR + lane]
        state[BEST_STEP + lane] = state[STEP + lane] + change if is_better else state[BEST_STEP + lane]
        state[BEST_LEVEL + lane] = state[LEVEL + lane] if is_better & with_level else state[BEST_LEVEL + lane]
        state[BEST_SQUARES + lane] = squares if is_better else state[BEST_SQUARES + lane]


@kernel
def find_largest(tile: Floats, first: int, stop: int, state: Floats) -> None:
    """Find the value of largest magnitude, with its sign."""
    fill(state, LARGEST, F(0))
    for column in range(first, stop):
        for lane in range(LANES):
            value, largest = tile[column, lane], state[LARGEST + lane]
            state[LARGEST + lane] = value if abs(value) > abs(largest) else largest


@kernel
def search(
    tile: Floats,
    weights: Floats,
    first: int,
    stop: int,
    levels: Floats,
    fine: F,
    lowest: F,
    highest: F,
    is_half: bool,
    state: Floats,
) -> None:
    """Choose the scale of columns of a tile, float32 [columns, lanes]: `BEST_STEP`.

    Half of the second derivative of the error by it is `BEST_SQUARES`.

    The value of largest magnitude gets each of `levels`, then the best one minus and plus `fine`, unless it is 0.
    Levels are the integers from `lowest` to `highest`, or the table if both are equal. With `is_half`, the scales of
    candidates are fp16.
    """
    find_largest(tile, first, stop, state)
    fill(state, BEST_ERROR, F(np.inf))
    fill(state, EXACT_ERROR, F(np.inf))
    for candidate in range(len(levels) + (len(FINE_FACTORS) if fine > F(0) else 0)):
        if candidate < len(levels):
            fill(state, LEVEL, levels[candidate])
        else:
            change = fine * FINE_FACTORS[candidate - len(levels)]
            for lane in range(LANES):
                state[LEVEL + lane] = state[BEST_LEVEL + lane] + change
        for lane in range(LANES):
            state[STEP + lane] = state[LARGEST + lane] / state[LEVEL + lane]
        if is_half:
            round_to_half(state, STEP)
        evaluate(tile, weights, first, stop, lowest, highest, state)
        update_best(state, candidate < len(levels))


@kernel
def evaluate(tile: Floats, weights: Floats, first: int, stop: int, lowest: F, highest: F, state: Floats) -> None:
    """Sum the residuals of the grid, of integers or of the table if `lowest` and `highest` are equal."""
    if lowest == highest:
        sum_table_residuals(tile, weights, first, stop, state)
    else:
        sum_residuals(tile, weights, first, stop, lowest, highest, state)


@kernel
def choose_half(tile: Floats, weights: Floats, first: int, stop: int, lowest: F, highest: F, state: Floats) -> None:
    """Set `STEP` to the best scale rounded to fp16, or to that of the best candidate if its error is smaller."""
    for lane in range(LANES):
        state[STEP + lane] = state[BEST_STEP + lane]
    round_to_half(state, STEP)
    evaluate(tile, weights, first, stop, lowest, highest, state)
    for lane in range(LANES):
        is_better = state[ERROR + lane] < state[EXACT_ERROR + lane]
        state[STEP + lane] = state[STEP + lane] if is_better else state[EXACT_STEP + lane]


@kernel
def round_to_codes(
    tile: Floats, first: int, stop: int, lowest: F, highest: F, zero: int, state: Floats, codes: Bytes
) -> None:
    """Round columns to codes, integers plus `zero`: uint8 [stop - first, lanes]."""
    for column in range(first, stop):
        for lane in range(LANES):
            level = np.rint(tile[column, lane] * reciprocal(state[STEP + lane]))
            codes[column - first, lane] = np.uint8(np.int32(min(max(level, lowest), highest)) + zero)


@kernel
def round_to_table(tile: Floats, first: int, stop: int, state: Floats, codes: Bytes) -> None:
    """Round columns to the positions of levels in the table: uint8 [stop - first, lanes]."""
    for column in range(first, stop):
        for lane in range(LANES):
            value = tile[column, lane] * reciprocal(state[STEP + lane])
            code = 0
            for index in range(len(MIDPOINTS)):
                code += value > MIDPOINTS[index]
            codes[column - first, lane] = np.uint8(code)
