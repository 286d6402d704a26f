"""The vector of a table, of four columns, with the least weighted error, for many rows at a time.

Vectors are magnitudes, float32 [vectors, 4]. Signs are those of the values.
"""

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.kernels.compiler import LANES, F, Floats, kernel

COLUMNS = 4
Indices = NDArray[np.int32]

# Values of every lane in the state of `nearest_in_metric`, float32 [`STATE_VALUES` * lanes].
STATE_VALUES = 16
SIGNS, LINEAR, MIXED, SCORE, CHOSEN = 0, 4 * LANES, 8 * LANES, 14 * LANES, 15 * LANES
PAIRS = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], np.int64)


@kernel
def nearest_diagonal(targets: Floats, weights: Floats, vectors: Floats, best: Floats, indices: Indices) -> None:
    """Choose the vectors with the least sum of weights * (vector - target)^2.

    targets: magnitudes, float32 [4, lanes]. weights: float32 [4]. The result is in `indices`, int32 [lanes]; `best`,
    float32 [lanes], is working memory.
    """
    for lane in range(LANES):
        best[lane], indices[lane] = F(np.inf), 0
    for index in range(len(vectors)):
        first, second, third, fourth = vectors[index]
        square = weights[0] * first * first + weights[1] * second * second
        square += weights[2] * third * third + weights[3] * fourth * fourth
        first, second = F(2) * weights[0] * first, F(2) * weights[1] * second
        third, fourth = F(2) * weights[2] * third, F(2) * weights[3] * fourth
        for lane in range(LANES):
            product = first * targets[0, lane] + second * targets[1, lane]
            product += third * targets[2, lane] + fourth * targets[3, lane]
            score = square - product
            is_better = score < best[lane]
            best[lane] = score if is_better else best[lane]
            indices[lane] = index if is_better else indices[lane]


@kernel
def nearest_in_metric(targets: Floats, metric: Floats, vectors: Floats, values: Floats) -> None:
    """Choose signed vectors with a small (vector - target)^T metric (vector - target).

    The vector is the best one with the signs of the targets; then each sign changes if that lowers the error.

    targets, values: float32 [4, rows]. metric: float32 [4, 4], positive definite.
    """
    state = np.empty(STATE_VALUES * LANES, np.float32)
    for start in range(0, targets.shape[1], LANES):
        lanes = min(LANES, targets.shape[1] - start)
        set_coefficients(targets, metric, start, lanes, state)
        search_signed(metric, vectors, lanes, state)
        for lane in range(lanes):
            index = int(state[CHOSEN + lane])
            for column in range(COLUMNS):
                values[column, start + lane] = state[SIGNS + column * LANES + lane] * vectors[index, column]
        change_signs(targets, metric, start, lanes, values)


@kernel
def set_coefficients(targets: Floats, metric: Floats, start: int, lanes: int, state: Floats) -> None:
    """Set signs and the coefficients of the error as a function of magnitudes."""
    for column in range(COLUMNS):
        for lane in range(lanes):
            state[SIGNS + column * LANES + lane] = F(-1) if targets[column, start + lane] < F(0) else F(1)
    for column in range(COLUMNS):
        for lane in range(lanes):
            linear = F(0)
            for other in range(COLUMNS):
                linear += metric[column, other] * targets[other, start + lane]
            state[LINEAR + column * LANES + lane] = F(-2) * linear * state[SIGNS + column * LANES + lane]
    for pair in range(len(PAIRS)):
        first, second = PAIRS[pair]
        for lane in range(lanes):
            sign = state[SIGNS + first * LANES + lane] * state[SIGNS + second * LANES + lane]
            state[MIXED + pair * LANES + lane] = F(2) * metric[first, second] * sign


@kernel
def search_signed(metric: Floats, vectors: Floats, lanes: int, state: Floats) -> None:
    """Find the vector of magnitudes with the least error."""
    for lane in range(lanes):
        state[SCORE + lane], state[CHOSEN + lane] = F(np.inf), F(0)
    for index in range(len(vectors)):
        a, b, c, d = vectors[index]
        square = metric[0, 0] * a * a + metric[1, 1] * b * b + metric[2, 2] * c * c + metric[3, 3] * d * d
        ab, ac, ad, bc, bd, cd = a * b, a * c, a * d, b * c, b * d, c * d
        chosen = F(index)
        for lane in range(lanes):
            score = square + a * state[LINEAR + lane] + b * state[LINEAR + LANES + lane]
            score += c * state[LINEAR + 2 * LANES + lane] + d * state[LINEAR + 3 * LANES + lane]
            score += ab * state[MIXED + lane] + ac * state[MIXED + LANES + lane]
            score += ad * state[MIXED + 2 * LANES + lane] + bc * state[MIXED + 3 * LANES + lane]
            score += bd * state[MIXED + 4 * LANES + lane] + cd * state[MIXED + 5 * LANES + lane]
            is_better = score < state[SCORE + lane]
            state[SCORE + lane] = score if is_better else state[SCORE + lane]
            state[CHOSEN + lane] = chosen if is_better else state[CHOSEN + lane]


@kernel
def change_signs(targets: Floats, metric: Floats, start: int, lanes: int, values: Floats) -> None:
    """Change the sign of each column where that lowers the error."""
    for column in range(COLUMNS):
        for row in range(start, start + lanes):
            slope = F(0)
            for other in range(COLUMNS):
                slope += metric[column, other] * (values[other, row] - targets[other, row])
            value = values[column, row]
            is_better = metric[column, column] * value * value < slope * value
            values[column, row] = -value if is_better else value
