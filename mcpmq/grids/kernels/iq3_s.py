"""`iq3_s`: blocks of 8 groups of 32 columns, whose scales are odd factors from 1 to 31 times an fp16.

value = sign * magnitude * factor * scale; the magnitudes of four columns are a vector of a table
"""

import numpy as np

from mcpmq.grids.kernels import vectors as vector_search
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, load_tile, reciprocal, round_to_half, store_block, store_half
from mcpmq.grids.kernels.vectors import Indices

COLUMNS, GROUPS, GROUP, VECTOR, NBYTES = 256, 8, 32, 4, 110
LEVELS = np.array([15, 16, 17.5, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5], np.float32)  # of the largest magnitude
LARGEST_FACTORS = np.array([31, 29, 27, 25, 23, 21, 19, 17], np.float32)  # of the largest scale
FACTOR_CODES, ROUNDS = F(15), 2

# The scales of a block, float32 [values * lanes].
STEP, ERROR, SQUARES, PRODUCTS = 8 * LANES, 9 * LANES, 10 * LANES, 11 * LANES  # of a group: its grid and sums
BEST_ERROR, BEST_STEP, BEST_SQUARES, LARGEST = 12 * LANES, 13 * LANES, 14 * LANES, 15 * LANES
SCALE, CANDIDATE, ALL_SQUARES, ALL_PRODUCTS = 16 * LANES, 17 * LANES, 18 * LANES, 19 * LANES  # of the block
SCALES_VALUES = 20


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes, vectors: Floats, nearest: Indices) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns].

    vectors: magnitudes, float32 [512, 4]. nearest: the index of the vector nearest to every vector of magnitudes.
    """
    tile, magnitudes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.float32)
    scales, block = np.empty(SCALES_VALUES * LANES, np.float32), np.empty((NBYTES, LANES), np.uint8)
    indices = np.empty((COLUMNS // VECTOR, LANES), np.int32)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            for column in range(COLUMNS):
                for lane in range(LANES):
                    magnitudes[column, lane] = abs(tile[column, lane])
            weights = importance[index * COLUMNS : (index + 1) * COLUMNS]
            search_block(magnitudes, weights, vectors, nearest, scales, indices)
            store_half(scales, SCALE, block, 0)
            store_indices(indices, block)
            store_signs(tile, block)
            store_factors(scales, block)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def search_block(
    tile: Floats, weights: Floats, vectors: Floats, nearest: Indices, scales: Floats, indices: Indices
) -> None:
    """Choose the scales of a block and the indices of its vectors."""
    curvatures = np.empty(GROUPS * LANES, np.float32)
    for group in range(GROUPS):
        search_group(tile, weights, vectors, nearest, group, scales)
        for lane in range(LANES):
            scales[group * LANES + lane] = scales[BEST_STEP + lane]
            curvatures[group * LANES + lane] = scales[BEST_SQUARES + lane]
    quantize_scales(scales, curvatures)
    for _ in range(ROUNDS):
        fill(scales, ALL_SQUARES, F(0))
        fill(scales, ALL_PRODUCTS, F(0))
        for group in range(GROUPS):
            improve_factor(tile, weights, vectors, group, scales, indices)
            add_equation(scales, group)
        for lane in range(LANES):
            squares = scales[ALL_SQUARES + lane]
            scales[SCALE + lane] += scales[ALL_PRODUCTS + lane] / squares if squares > F(0) else F(0)
            scales[SCALE + lane] = max(scales[SCALE + lane], F(0))
        round_to_half(scales, SCALE)
    for group in range(GROUPS):
        set_step(scales, group, F(0))
        round_group(tile, weights, vectors, group, scales, indices)


@kernel
def search_group(tile: Floats, weights: Floats, vectors: Floats, nearest: Indices, group: int, scales: Floats) -> None:
    """Choose the scale of a group by candidates: the largest magnitude gets each of `LEVELS`."""
    fill(scales, LARGEST, F(0))
    for column in range(group * GROUP, (group + 1) * GROUP):
        for lane in range(LANES):
            scales[LARGEST + lane] = max(scales[LARGEST + lane], tile[column, lane])
    fill(scales, BEST_ERROR, F(np.inf))
    for level in LEVELS:
        for lane in range(LANES):
            scales[STEP + lane] = scales[LARGEST + lane] / level
        sum_nearest_errors(tile, weights, vectors, nearest, group, scales)
        for lane in range(LANES):
            squares, products = scales[SQUARES + lane], scales[PRODUCTS + lane]
            change = products / squares if squares > F(0) else F(0)
            error = scales[ERROR + lane] - change * products
            is_better = error < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = error if is_better else scales[BEST_ERROR + lane]
            scales[BEST_STEP + lane] = scales[STEP + lane] + change if is_better else scales[BEST_STEP + lane]
            scales[BEST_SQUARES + lane] = squares if is_better else scales[BEST_SQUARES + lane]


@kernel
def sum_nearest_errors(
    tile: Floats, weights: Floats, vectors: Floats, nearest: Indices, group: int, scales: Floats
) -> None:
    """Round every column, take the nearest vector of the table and sum as `sum_errors`: fast, but not the best one."""
    clear_sums(scales)
    indices, inverse = np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = reciprocal(scales[STEP + lane])
    for first in range(group * GROUP, (group + 1) * GROUP, VECTOR):
        for lane in range(LANES):
            key = np.int32(0)
            for column in range(VECTOR - 1, -1, -1):
                digit = np.rint((tile[first + column, lane] * inverse[lane] - F(1)) * F(0.5))
                key = np.int32(key * 8 + np.int32(min(max(digit, F(0)), F(7))))
            indices[lane] = nearest[key]
        add_errors(tile, weights, vectors, first, indices, scales)


@kernel
def clear_sums(scales: Floats) -> None:
    """Set the sums of a group to zero."""
    fill(scales, ERROR, F(0))
    fill(scales, SQUARES, F(0))
    fill(scales, PRODUCTS, F(0))


@kernel
def add_errors(tile: Floats, weights: Floats, vectors: Floats, first: int, indices: Indices, scales: Floats) -> None:
    """Add a vector to the sums, with weights: magnitude^2, magnitude * residual, residual^2."""
    for column in range(VECTOR):
        weight = weights[first + column]
        for lane in range(LANES):
            magnitude = vectors[indices[lane], column]
            residual = tile[first + column, lane] - magnitude * scales[STEP + lane]
            scales[SQUARES + lane] += weight * magnitude * magnitude
            scales[PRODUCTS + lane] += weight * magnitude * residual
            scales[ERROR + lane] += weight * residual * residual


@kernel
def round_group(tile: Floats, weights: Floats, vectors: Floats, group: int, scales: Floats, indices: Indices) -> None:
    """Choose the best vectors of a group and sum their errors."""
    clear_sums(scales)
    targets, best = np.empty((VECTOR, LANES), np.float32), np.empty(LANES, np.float32)
    for first in range(group * GROUP, (group + 1) * GROUP, VECTOR):
        for column in range(VECTOR):
            for lane in range(LANES):
                targets[column, lane] = tile[first + column, lane] * reciprocal(scales[STEP + lane])
        chosen = indices[first // VECTOR]
        vector_search.nearest_diagonal(targets, weights[first : first + VECTOR], vectors, best, chosen)
        add_errors(tile, weights, vectors, first, chosen, scales)


@kernel
def quantize_scales(scales: Floats, curvatures: Floats) -> None:
    """Choose the fp16 of 8 scales with the least error, in second order, and replace the scales by codes of factors."""
    fill(scales, LARGEST, F(0))
    for position in range(0, GROUPS * LANES, LANES):
        for lane in range(LANES):
            scales[LARGEST + lane] = max(scales[LARGEST + lane], scales[position + lane])
    fill(scales, BEST_ERROR, F(np.inf))
    fill(scales, SCALE, F(0))
    for factor in LARGEST_FACTORS:
        for lane in range(LANES):
            scales[CANDIDATE + lane] = scales[LARGEST + lane] / factor
        round_to_half(scales, CANDIDATE)
        fill(scales, ERROR, F(0))
        for position in range(0, GROUPS * LANES, LANES):
            for lane in range(LANES):
                scale, candidate = scales[position + lane], scales[CANDIDATE + lane]
                error = scale - candidate * (F(2) * factor_code(scale, candidate) + F(1))
                scales[ERROR + lane] += curvatures[position + lane] * error * error
        for lane in range(LANES):
            is_better = scales[ERROR + lane] < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = scales[ERROR + lane] if is_better else scales[BEST_ERROR + lane]
            scales[SCALE + lane] = scales[CANDIDATE + lane] if is_better else scales[SCALE + lane]
    for position in range(0, GROUPS * LANES, LANES):
        for lane in range(LANES):
            scales[position + lane] = factor_code(scales[position + lane], scales[SCALE + lane])


@kernel
def factor_code(scale: F, whole: F) -> F:
    """Return the code of the factor nearest to a scale."""
    code = np.rint((scale / whole - F(1)) * F(0.5)) if whole > F(0) else F(0)
    return min(max(code, F(0)), FACTOR_CODES)


@kernel
def set_step(scales: Floats, group: int, change: F) -> None:
    """Set the step of a group with a changed code of its factor."""
    for lane in range(LANES):
        code = min(max(scales[group * LANES + lane] + change, F(0)), FACTOR_CODES)
        scales[STEP + lane] = scales[SCALE + lane] * (F(2) * code + F(1))


@kernel
def improve_factor(
    tile: Floats, weights: Floats, vectors: Floats, group: int, scales: Floats, indices: Indices
) -> None:
    """Replace the code of a factor by the neighbor with the least error, and set the sums of the group."""
    fill(scales, BEST_ERROR, F(np.inf))
    for candidate in range(-1, 2):
        set_step(scales, group, F(candidate))
        round_group(tile, weights, vectors, group, scales, indices)
        for lane in range(LANES):
            is_better = scales[ERROR + lane] < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = scales[ERROR + lane] if is_better else scales[BEST_ERROR + lane]
            scales[BEST_STEP + lane] = F(candidate) if is_better else scales[BEST_STEP + lane]
            scales[BEST_SQUARES + lane] = scales[SQUARES + lane] if is_better else scales[BEST_SQUARES + lane]
            scales[LARGEST + lane] = scales[PRODUCTS + lane] if is_better else scales[LARGEST + lane]
    for lane in range(LANES):
        code = scales[group * LANES + lane] + scales[BEST_STEP + lane]
        scales[group * LANES + lane] = min(max(code, F(0)), FACTOR_CODES)
        scales[SQUARES + lane], scales[PRODUCTS + lane] = scales[BEST_SQUARES + lane], scales[LARGEST + lane]


@kernel
def add_equation(scales: Floats, group: int) -> None:
    """Add the sums of a group to the equation of the best fp16."""
    for lane in range(LANES):
        factor = F(2) * scales[group * LANES + lane] + F(1)
        scales[ALL_SQUARES + lane] += factor * factor * scales[SQUARES + lane]
        scales[ALL_PRODUCTS + lane] += factor * scales[PRODUCTS + lane]


@kernel
def store_indices(indices: Indices, block: Bytes) -> None:
    """Write the lower eight bits of indices, then their ninth bits."""
    for byte in range(8):
        for lane in range(LANES):
            bits = np.uint8(0)
            for bit in range(8):
                index = indices[8 * byte + bit, lane]
                block[2 + 8 * byte + bit, lane] = np.uint8(index & 255)
                bits |= np.uint8(index >> 8) << np.uint8(bit)
            block[66 + byte, lane] = bits


@kernel
def store_signs(tile: Floats, block: Bytes) -> None:
    """Write a bit for every negative value."""
    for byte in range(COLUMNS // 8):
        for lane in range(LANES):
            bits = np.uint8(0)
            for bit in range(8):
                bits |= np.uint8(tile[8 * byte + bit, lane] < F(0)) << np.uint8(bit)
            block[74 + byte, lane] = bits


@kernel
def store_factors(scales: Floats, block: Bytes) -> None:
    """Write the codes of factors in nibbles."""
    for byte in range(GROUPS // 2):
        for lane in range(LANES):
            position = 2 * byte * LANES + lane
            low, high = np.uint8(scales[position]), np.uint8(scales[position + LANES])
            block[106 + byte, lane] = low | high << np.uint8(4)
