"""`q6_k`: blocks of 16 groups of 16 columns, whose scales are signed 8-bit codes times an fp16.

value = code * scale_code * scale, with codes from -32 to 31
"""

import numpy as np

from mcpmq.grids.kernels import scaled
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import fill, load_tile, round_to_half, store_block, store_half, store_nibbles
from mcpmq.grids.kernels.scaled import STEP

COLUMNS, GROUPS, GROUP, NBYTES = 256, 16, 16, 210
LOWEST, HIGHEST, ZERO = F(-32), F(31), 32
CODE_LOWEST, CODE_HIGHEST = F(-128), F(127)
LEVELS, FINE = np.array([-32, -31, -30, -29, -33, 31], np.float32), F(0.5)

# The scales of a block, float32 [values * lanes]: 16 scale codes, the fp16, both sides of the equation of its refit.
SCALES_VALUES = 19
SCALE, SQUARES, PRODUCTS = 16 * LANES, 17 * LANES, 18 * LANES


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(scaled.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((NBYTES, LANES), np.uint8)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], state, scales)
            for group in range(GROUPS):
                set_grid(scales, group, F(0), state)
                columns = group * GROUP
                group_codes = codes[columns : columns + GROUP]
                scaled.round_to_codes(tile, columns, columns + GROUP, LOWEST, HIGHEST, ZERO, state, group_codes)
            store_nibbles(codes, 64, block, 0)
            store_upper_bits(codes, block)
            store_scale_codes(scales, block)
            store_half(scales, SCALE, block, 208)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def search_block(tile: Floats, weights: Floats, state: Floats, scales: Floats) -> None:
    """Choose the scales of a block."""
    for group in range(GROUPS):
        columns = group * GROUP
        scaled.search(tile, weights, columns, columns + GROUP, LEVELS, FINE, LOWEST, HIGHEST, False, state)
        for lane in range(LANES):
            scales[group * LANES + lane] = state[scaled.BEST_STEP + lane]
    quantize_scales(scales)
    fill(scales, SQUARES, F(0))
    fill(scales, PRODUCTS, F(0))
    for group in range(GROUPS):
        improve_code(tile, weights, state, scales, group)
        add_equation(tile, weights, state, scales, group)
    for lane in range(LANES):
        squares = scales[SQUARES + lane]
        scales[SCALE + lane] += scales[PRODUCTS + lane] / squares if squares > F(0) else F(0)
    round_to_half(scales, SCALE)


@kernel
def quantize_scales(scales: Floats) -> None:
    """Set the fp16 that the largest of 16 scales has the lowest code of, and replace the scales by codes."""
    fill(scales, SCALE, F(0))
    for position in range(0, GROUPS * LANES, LANES):
        for lane in range(LANES):
            scale, largest = scales[position + lane], scales[SCALE + lane]
            scales[SCALE + lane] = scale if abs(scale) > abs(largest) else largest
    for lane in range(LANES):
        scales[SCALE + lane] = scales[SCALE + lane] / CODE_LOWEST
    round_to_half(scales, SCALE)
    for position in range(0, GROUPS * LANES, LANES):
        for lane in range(LANES):
            whole = scales[SCALE + lane]
            code = np.rint(scales[position + lane] / whole) if whole != F(0) else F(0)
            scales[position + lane] = min(max(code, CODE_LOWEST), CODE_HIGHEST)


@kernel
def set_grid(scales: Floats, group: int, change: F, state: Floats) -> None:
    """Set the step of a group with a changed code."""
    for lane in range(LANES):
        code = min(max(scales[group * LANES + lane] + change, CODE_LOWEST), CODE_HIGHEST)
        state[STEP + lane] = scales[SCALE + lane] * code


@kernel
def improve_code(tile: Floats, weights: Floats, state: Floats, scales: Floats, group: int) -> None:
    """Replace the code of a group's scale by the neighbor with the least error."""
    fill(state, scaled.BEST_ERROR, F(np.inf))
    for candidate in range(-1, 2):
        set_grid(scales, group, F(candidate), state)
        columns = group * GROUP
        scaled.sum_residuals(tile, weights, columns, columns + GROUP, LOWEST, HIGHEST, state)
        for lane in range(LANES):
            is_better = state[scaled.ERROR + lane] < state[scaled.BEST_ERROR + lane]
            state[scaled.BEST_ERROR + lane] = (
                state[scaled.ERROR + lane] if is_better else state[scaled.BEST_ERROR + lane]
            )
            state[scaled.BEST_STEP + lane] = F(candidate) if is_better else state[scaled.BEST_STEP + lane]
    for lane in range(LANES):
        code = scales[group * LANES + lane] + state[scaled.BEST_STEP + lane]
        scales[group * LANES + lane] = min(max(code, CODE_LOWEST), CODE_HIGHEST)


@kernel
def add_equation(tile: Floats, weights: Floats, state: Floats, scales: Floats, group: int) -> None:
    """Add a group to the equation of the best fp16 for the codes."""
    set_grid(scales, group, F(0), state)
    scaled.sum_residuals(tile, weights, group * GROUP, (group + 1) * GROUP, LOWEST, HIGHEST, state)
    for lane in range(LANES):
        code = scales[group * LANES + lane]
        scales[SQUARES + lane] += code * code * state[scaled.SQUARES + lane]
        scales[PRODUCTS + lane] += code * state[scaled.PRODUCTS + lane]


@kernel
def store_upper_bits(codes: Bytes, block: Bytes) -> None:
    """Write the upper two bits: bits 2 * i of byte j of a half are those of its column 32 * i + j."""
    for half in range(2):
        for column in range(32):
            first = half * 128 + column
            for lane in range(LANES):
                low = codes[first, lane] >> 4 | codes[first + 32, lane] >> 4 << 2
                high = codes[first + 64, lane] >> 4 << 4 | codes[first + 96, lane] >> 4 << 6
                block[128 + half * 32 + column, lane] = np.uint8(low | high)


@kernel
def store_scale_codes(scales: Floats, block: Bytes) -> None:
    """Write the scale codes in two's complement."""
    for group in range(GROUPS):
        for lane in range(LANES):
            block[192 + group, lane] = np.uint8(np.int32(scales[group * LANES + lane]))
