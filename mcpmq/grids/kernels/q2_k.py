"""`q2_k`: blocks of 16 groups of 16 columns, whose scales and minima are 4-bit codes times two fp16.

value = code * scale_code * scale - minimum_code * minimum
"""

import numpy as np

from mcpmq.grids.kernels import affine
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_block, store_half, store_pairs
from mcpmq.grids.kernels.scales_and_minima import (
    COLUMNS,
    MINIMUM,
    MINIMUM_CODES,
    SCALE,
    SCALES_VALUES,
    BlockGrid,
    round_block,
    search_block,
)

GROUPS, GROUP, NBYTES = 16, 16, 84
STEPS = np.array([0, -1.2, -0.8, -0.5, -0.25, 0.3, 0.6, 0.9], np.float32)
TOP, CODE_TOP = F(3), F(15)
LARGEST_CODES = np.array([15, 14, 13, 12, 11, 10, 9, 8, 16, 17], np.float32)


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(affine.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((NBYTES, LANES), np.uint8)
    grid = BlockGrid(GROUPS, GROUP, STEPS, TOP, CODE_TOP, LARGEST_CODES, 3)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], grid, state, scales)
            round_block(tile, grid, scales, state, codes)
            store_scale_codes(scales, block)
            store_pairs(codes, 0, block, 16)
            store_half(scales, SCALE, block, 80)
            store_half(scales, MINIMUM, block, 82)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def store_scale_codes(scales: Floats, block: Bytes) -> None:
    """Write the codes of scales in the lower four bits and those of minima in the upper ones."""
    for group in range(GROUPS):
        for lane in range(LANES):
            position = group * LANES + lane
            scale, minimum = np.uint8(scales[position]), np.uint8(scales[MINIMUM_CODES + position])
            block[group, lane] = scale | minimum << np.uint8(4)
