"""`q4_k` and `q5_k`: blocks of 8 groups, whose scales and minima are 6-bit codes times two fp16.

value = code * scale_code * scale - minimum_code * minimum
"""

import numpy as np

from mcpmq.grids.kernels import affine
from mcpmq.grids.kernels.affine import OFFSET, STEP
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, load_tile, round_to_half, store_bits, store_block, store_half, store_nibbles

COLUMNS, GROUPS, GROUP = 256, 8, affine.GROUP_COLUMNS
CODE_TOP = F(63)  # 6 bits
MIN_DETERMINANT = F(1e-6)  # of the equations of both fp16, relative to the product of the diagonal

# The code of the largest scale: with a lower one, codes of small scales have other fractions.
LARGEST_CODES = np.array([63, 61, 59, 57, 55, 53, 51, 49, 47], np.float32)

# The scales of a block, float32 [values * lanes]: 8 scale codes, 8 minimum codes, both fp16, equations of their refit.
SCALES_VALUES = 23
MINIMUM_CODES, SCALE, MINIMUM, EQUATIONS = 8 * LANES, 16 * LANES, 17 * LANES, 18 * LANES
LARGEST, CANDIDATE, ERROR, BEST_ERROR = 18 * LANES, 19 * LANES, 20 * LANES, 21 * LANES  # before there are equations


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes, bits: int) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    nbytes, top = 144 if bits == 4 else 176, F(2**bits - 1)
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(affine.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((nbytes, LANES), np.uint8)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], top, state, scales)
            for group in range(GROUPS):
                set_grid(scales, group, F(0), F(0), state)
                group_codes = codes[group * GROUP : (group + 1) * GROUP]
                affine.round_to_codes(tile, group * GROUP, top, state, group_codes)
            store_half(scales, SCALE, block, 0)
            store_half(scales, MINIMUM, block, 2)
            store_codes_6_bit(scales, block)
            if bits == 5:
                store_bits(codes, 4, block, 16)
            store_nibbles(codes, GROUP, block, nbytes - COLUMNS // 2)
            store_block(block, blocks, row, index * nbytes)


@kernel
def search_block(tile: Floats, weights: Floats, top: F, state: Floats, scales: Floats) -> None:
    """Choose the scales of a block."""
    curvatures = np.empty(2 * GROUPS * LANES, np.float32)
    for group in range(GROUPS):
        weight = affine.search(tile, weights, group * GROUP, top, F(0), state)
        for lane in range(LANES):
            position = group * LANES + lane
            scales[position], curvatures[position] = state[affine.BEST_STEP + lane], state[affine.BEST_SQUARES + lane]
            position += MINIMUM_CODES
            scales[position], curvatures[position] = -state[affine.BEST_OFFSET + lane], weight
    quantize_scales(scales, curvatures, 0, SCALE)
    quantize_scales(scales, curvatures, MINIMUM_CODES, MINIMUM)
    for group in range(GROUPS):
        improve_codes(tile, weights, top, state, scales, group)
    refit(tile, weights, top, state, scales)


@kernel
def quantize_scales(scales: Floats, curvatures: Floats, first: int, total: int) -> None:
    """Choose the fp16 of 8 scales with the least error, in second order, and replace the scales by codes."""
    fill(scales, LARGEST, F(0))
    for group in range(GROUPS):
        for lane in range(LANES):
            scales[LARGEST + lane] = max(scales[LARGEST + lane], scales[first + group * LANES + lane])
    fill(scales, BEST_ERROR, F(np.inf))
    for largest_code in LARGEST_CODES:
        for lane in range(LANES):
            scales[CANDIDATE + lane] = scales[LARGEST + lane] / largest_code
        round_to_half(scales, CANDIDATE)
        sum_scale_errors(scales, curvatures, first)
        for lane in range(LANES):
            is_better = scales[ERROR + lane] < scales[BEST_ERROR + lane]
            scales[BEST_ERROR + lane] = scales[ERROR + lane] if is_better else scales[BEST_ERROR + lane]
            scales[total + lane] = scales[CANDIDATE + lane] if is_better else scales[total + lane]
    for group in range(GROUPS):
        for lane in range(LANES):
            code = scale_code(scales[first + group * LANES + lane], scales[total + lane])
            scales[first + group * LANES + lane] = code


@kernel
def sum_scale_errors(scales: Floats, curvatures: Floats, first: int) -> None:
    """Sum the squares of rounding errors of 8 scales with the candidate, weighted by curvatures."""
    fill(scales, ERROR, F(0))
    for group in range(GROUPS):
        for lane in range(LANES):
            scale, candidate = scales[first + group * LANES + lane], scales[CANDIDATE + lane]
            error = scale - candidate * scale_code(scale, candidate)
            scales[ERROR + lane] += curvatures[first + group * LANES + lane] * error * error


@kernel
def scale_code(scale: F, whole: F) -> F:
    """Return the 6-bit code of a scale."""
    return min(np.rint(scale / whole), CODE_TOP) if whole > F(0) else F(0)


@kernel
def set_grid(scales: Floats, group: int, scale_change: F, minimum_change: F, state: Floats) -> None:
    """Set the offset and step of a group with changed codes."""
    for lane in range(LANES):
        scale_code, minimum_code = scales[group * LANES + lane], scales[MINIMUM_CODES + group * LANES + lane]
        state[STEP + lane] = scales[SCALE + lane] * min(max(scale_code + scale_change, F(0)), CODE_TOP)
        state[OFFSET + lane] = -scales[MINIMUM + lane] * min(max(minimum_code + minimum_change, F(0)), CODE_TOP)


@kernel
def improve_codes(tile: Floats, weights: Floats, top: F, state: Floats, scales: Floats, group: int) -> None:
    """Replace the codes of the scale and minimum of a group by the neighbors with the least error."""
    best, best_scale, best_minimum = affine.BEST_ERROR, affine.BEST_STEP, affine.BEST_OFFSET
    fill(state, best, F(np.inf))
    for candidate in range(9):
        scale_change, minimum_change = F(candidate // 3 - 1), F(candidate % 3 - 1)
        set_grid(scales, group, scale_change, minimum_change, state)
        affine.sum_errors(tile, weights, group * GROUP, top, state)
        for lane in range(LANES):
            is_better = state[affine.ERROR + lane] < state[best + lane]
            state[best + lane] = state[affine.ERROR + lane] if is_better else state[best + lane]
            state[best_scale + lane] = scale_change if is_better else state[best_scale + lane]
            state[best_minimum + lane] = minimum_change if is_better else state[best_minimum + lane]
    for lane in range(LANES):
        scale, minimum = group * LANES + lane, MINIMUM_CODES + group * LANES + lane
        scales[scale] = min(max(scales[scale] + state[best_scale + lane], F(0)), CODE_TOP)
        scales[minimum] = min(max(scales[minimum] + state[best_minimum + lane], F(0)), CODE_TOP)


@kernel
def refit(tile: Floats, weights: Floats, top: F, state: Floats, scales: Floats) -> None:
    """Change both fp16 of a block to those with the least error for the codes."""
    for equation in range(5):
        fill(scales, EQUATIONS + equation * LANES, F(0))
    for group in range(GROUPS):
        weight = F(0)
        for column in range(group * GROUP, (group + 1) * GROUP):
            weight += weights[column]
        set_grid(scales, group, F(0), F(0), state)
        affine.sum_residuals(tile, weights, group * GROUP, top, state)
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
def store_codes_6_bit(scales: Floats, block: Bytes) -> None:
    """Write codes of 6 bits: 4 bits of the last four scales and minima together, their upper bits above the others."""
    for group in range(4):
        for lane in range(LANES):
            position = group * LANES + lane
            scale, minimum = np.uint8(scales[position]), np.uint8(scales[MINIMUM_CODES + position])
            position += 4 * LANES
            last_scale, last_minimum = np.uint8(scales[position]), np.uint8(scales[MINIMUM_CODES + position])
            block[4 + group, lane] = scale | (last_scale >> 4) << 6
            block[8 + group, lane] = minimum | (last_minimum >> 4) << 6
            block[12 + group, lane] = (last_scale & 15) | (last_minimum & 15) << 4
