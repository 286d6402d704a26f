"""`q6_k`: blocks of 16 groups of 16 columns, whose scales are signed 8-bit codes times an fp16.

value = code * scale_code * scale, with codes from -32 to 31
"""

import numpy as np

from mcpmq.grids.kernels import scaled
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_block, store_half, store_nibbles, store_pairs
from mcpmq.grids.kernels.signed_scales import COLUMNS, SCALE, SCALES_VALUES, BlockGrid, round_block, search_block

GROUPS, GROUP, NBYTES = 16, 16, 210
LEVELS, FINE = np.array([-32, -31, -30, -29, -33, 31], np.float32), F(0.5)
LOWEST, HIGHEST, ZERO = F(-32), F(31), 32
CODE_LOWEST, CODE_HIGHEST, LARGEST_CODES = F(-128), F(127), np.array([-128], np.float32)


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(scaled.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((NBYTES, LANES), np.uint8)
    grid = BlockGrid(GROUPS, GROUP, LEVELS, FINE, LOWEST, HIGHEST, CODE_LOWEST, CODE_HIGHEST, LARGEST_CODES, 1)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], grid, state, scales)
            round_block(tile, grid, ZERO, scales, state, codes)
            store_nibbles(codes, 64, block, 0)
            store_pairs(codes, 4, block, 128)
            store_scale_codes(scales, block)
            store_half(scales, SCALE, block, 208)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def store_scale_codes(scales: Floats, block: Bytes) -> None:
    """Write the scale codes in two's complement."""
    for group in range(GROUPS):
        for lane in range(LANES):
            block[192 + group, lane] = np.uint8(np.int32(scales[group * LANES + lane]))
