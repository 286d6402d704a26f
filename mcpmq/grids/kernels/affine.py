"""The scale and offset of groups of columns: value = code * scale + offset, with codes from 0 to `top`.

Candidates divide the range of a group by different numbers of steps. The codes of each candidate give the scale and
offset of least weighted error in closed form; sums of residuals, not of values, keep float32 exact enough.

`state` is float32 [`STATE_VALUES` * lanes]: one array with constant positions, so that loops over lanes become vectors.
"""

import numpy as np

from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, reciprocal, round_to_half

UNROLLED = 8
# Steps in the range of a group, relative to the highest code. With fewer, steps are larger; with more, values clip.
STEPS = np.array([0, -2.2, -1.4, -0.8, -0.4, 0.4, 0.8], np.float32)
FINE_STEPS = (-0.12, 0.12)  # relative to the best of `STEPS`
# A smaller improvement is noise: equal groups must get equal scales. Relative to the weighted square of the range.
MARGIN = F(1e-9)

STATE_VALUES = 18
OFFSET, STEP = 0 * LANES, 1 * LANES  # the grid that is evaluated
CODES, SQUARES, PRODUCTS, RESIDUALS, ERROR = 2 * LANES, 3 * LANES, 4 * LANES, 5 * LANES, 6 * LANES  # its sums
BEST_ERROR, BEST_OFFSET, BEST_STEP, BEST_SQUARES = 7 * LANES, 8 * LANES, 9 * LANES, 10 * LANES
WIDTH, CENTER, STEPS_IN_WIDTH, BEST_STEPS = 11 * LANES, 12 * LANES, 13 * LANES, 14 * LANES
LOWEST, MEAN = 15 * LANES, 16 * LANES


@kernel
def sum_residuals(tile: Floats, weights: Floats, first: int, stop: int, top: F, state: Floats) -> None:
    """Round columns to codes and sum, with weights: code, code^2, code * residual, residual, residual^2."""
    for position in range(CODES, ERROR + LANES):
        state[position] = F(0)
    for start in range(first, stop, UNROLLED):
        for lane in range(LANES):
            codes, squares, products = state[CODES + lane], state[SQUARES + lane], state[PRODUCTS + lane]
            residuals, error = state[RESIDUALS + lane], state[ERROR + lane]
            offset, step = state[OFFSET + lane], state[STEP + lane]
            inverse = reciprocal(step)
            for column in range(start, start + UNROLLED):
                value = tile[column, lane] - offset
                code = min(max(np.rint(value * inverse), F(0)), top)
                residual = value - code * step
                weighted_code, weighted_residual = weights[column] * code, weights[column] * residual
                codes += weighted_code
                squares += weighted_code * code
                products += weighted_code * residual
                residuals += weighted_residual
                error += weighted_residual * residual
            state[CODES + lane], state[SQUARES + lane], state[PRODUCTS + lane] = codes, squares, products
            state[RESIDUALS + lane], state[ERROR + lane] = residuals, error


@kernel
def sum_errors(tile: Floats, weights: Floats, first: int, stop: int, top: F, state: Floats) -> None:
    """Round columns to codes and sum the weighted squares of residuals."""
    fill(state, ERROR, F(0))
    for start in range(first, stop, UNROLLED):
        for lane in range(LANES):
            error, offset, step = state[ERROR + lane], state[OFFSET + lane], state[STEP + lane]
            inverse = reciprocal(step)
            for column in range(start, start + UNROLLED):
                value = tile[column, lane] - offset
                residual = value - min(max(np.rint(value * inverse), F(0)), top) * step
                error += weights[column] * residual * residual
            state[ERROR + lane] = error


@kernel
def update_best(weight: F, largest_offset: F, state: Floats) -> None:
    """Replace the best scale and offset by those of least error for the summed codes, if their error is smaller."""
    for lane in range(LANES):
        codes, squares, products = state[CODES + lane], state[SQUARES + lane], state[PRODUCTS + lane]
        residuals, offset = state[RESIDUALS + lane], state[OFFSET + lane]
        determinant = weight * squares - codes * codes
        inverse = F(1) / determinant if determinant > F(0) else F(0)
        change = (weight * products - residuals * codes) * inverse
        shift = (squares * residuals - codes * products) * inverse if determinant > F(0) else residuals / weight
        is_limited = offset + shift > largest_offset
        shift = largest_offset - offset if is_limited else shift
        limited_change = (products - shift * codes) / squares if squares > F(0) else F(0)
        change = limited_change if is_limited else change
        error = state[ERROR + lane] - F(2) * (change * products + shift * residuals - change * shift * codes)
        error += change * change * squares + shift * shift * weight
        step = state[STEP + lane] + change
        margin = MARGIN * weight * state[WIDTH + lane] * state[WIDTH + lane]
        is_better = (error + margin < state[BEST_ERROR + lane]) & (step >= F(0))
        state[BEST_ERROR + lane] = error if is_better else state[BEST_ERROR + lane]
        state[BEST_OFFSET + lane] = offset + shift if is_better else state[BEST_OFFSET + lane]
        state[BEST_STEP + lane] = step if is_better else state[BEST_STEP + lane]
        state[BEST_SQUARES + lane] = squares if is_better else state[BEST_SQUARES + lane]
        state[BEST_STEPS + lane] = state[STEPS_IN_WIDTH + lane] if is_better else state[BEST_STEPS + lane]


@kernel
def find_range(tile: Floats, weights: Floats, first: int, stop: int, largest_offset: F, state: Floats) -> F:
    """Find the lowest value and the mean, at most `largest_offset`, and the width up to the highest value.

    Return the sum of the weights.
    """
    weight = F(0)
    fill(state, LOWEST, largest_offset)
    fill(state, WIDTH, F(-np.inf))
    fill(state, MEAN, F(0))
    for column in range(first, stop):
        weight += weights[column]
        for lane in range(LANES):
            state[LOWEST + lane] = min(state[LOWEST + lane], tile[column, lane])
            state[WIDTH + lane] = max(state[WIDTH + lane], tile[column, lane])
            state[MEAN + lane] += weights[column] * tile[column, lane]
    for lane in range(LANES):
        state[WIDTH + lane] = max(state[WIDTH + lane] - state[LOWEST + lane], F(0))
        state[MEAN + lane] = min(state[MEAN + lane] / weight, largest_offset)
    return weight


@kernel
def search(
    tile: Floats, weights: Floats, first: int, stop: int, steps: Floats, top: F, largest_offset: F, state: Floats
) -> F:
    """Choose a scale of at least 0 and an offset of at most `largest_offset` for columns of a tile.

    `tile` is float32 [columns, lanes], `weights` are float32 [columns]. `steps` are changes of `top`. The result is
    `BEST_STEP` and `BEST_OFFSET`. Half of the second derivatives of the error by them are `BEST_SQUARES` and the
    returned sum of the weights.
    """
    weight = find_range(tile, weights, first, stop, largest_offset, state)
    fill(state, BEST_ERROR, F(np.inf))
    for change in steps:
        set_steps(top, change, state)
        sum_residuals(tile, weights, first, stop, top, state)
        update_best(weight, largest_offset, state)
    for from_mean in (False, True):
        set_range_of_mean(top, from_mean, state)
        sum_residuals(tile, weights, first, stop, top, state)
        update_best(weight, largest_offset, state)
    for lane in range(LANES):
        state[CENTER + lane] = state[BEST_STEPS + lane]
    for candidate in range(len(FINE_STEPS)):
        set_steps(F(0), F(FINE_STEPS[candidate]), state)
        sum_residuals(tile, weights, first, stop, top, state)
        update_best(weight, largest_offset, state)
    return weight


@kernel
def set_steps(top: F, change: F, state: Floats) -> None:
    """Divide the range into `top` or, if it is 0, `CENTER` steps plus a change."""
    for lane in range(LANES):
        state[STEPS_IN_WIDTH + lane] = (top if top > F(0) else state[CENTER + lane]) + change
        state[STEP + lane] = state[WIDTH + lane] / state[STEPS_IN_WIDTH + lane]
        state[OFFSET + lane] = state[LOWEST + lane]


@kernel
def set_range_of_mean(top: F, from_mean: bool, state: Floats) -> None:
    """Divide the range above or below the mean: next to an outlier, the other values share a code."""
    for lane in range(LANES):
        lowest, mean = state[LOWEST + lane], state[MEAN + lane]
        above = max(lowest + state[WIDTH + lane] - mean, F(0))
        state[STEPS_IN_WIDTH + lane] = top
        state[OFFSET + lane] = mean if from_mean else lowest
        state[STEP + lane] = (above if from_mean else mean - lowest) / top


@kernel
def choose_half(tile: Floats, weights: Floats, first: int, stop: int, top: F, state: Floats) -> None:
    """Set the best scale and offset rounded to fp16, or those of the whole range if their error is smaller."""
    set_steps(top, F(0), state)
    round_to_half(state, STEP)
    round_to_half(state, OFFSET)
    sum_errors(tile, weights, first, stop, top, state)
    for lane in range(LANES):
        state[CENTER + lane], state[WIDTH + lane] = state[OFFSET + lane], state[STEP + lane]
        state[OFFSET + lane], state[STEP + lane] = state[BEST_OFFSET + lane], state[BEST_STEP + lane]
        state[BEST_ERROR + lane] = state[ERROR + lane]
    round_to_half(state, STEP)
    round_to_half(state, OFFSET)
    sum_errors(tile, weights, first, stop, top, state)
    for lane in range(LANES):
        is_better = state[ERROR + lane] < state[BEST_ERROR + lane]
        state[OFFSET + lane] = state[OFFSET + lane] if is_better else state[CENTER + lane]
        state[STEP + lane] = state[STEP + lane] if is_better else state[WIDTH + lane]


@kernel
def round_to_codes(tile: Floats, first: int, stop: int, top: F, state: Floats, codes: Bytes) -> None:
    """Round columns to codes: uint8 [stop - first, lanes]."""
    for column in range(first, stop):
        for lane in range(LANES):
            code = np.rint((tile[column, lane] - state[OFFSET + lane]) * reciprocal(state[STEP + lane]))
            codes[column - first, lane] = np.uint8(min(max(code, F(0)), top))
