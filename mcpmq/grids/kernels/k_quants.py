"""`q4_k` and `q5_k`: blocks of 8 groups, whose scales and minima are 6-bit codes times two fp16.

value = code * scale_code * scale - minimum_code * minimum
"""

import numpy as np

from mcpmq.grids.kernels import affine
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_bits, store_block, store_half, store_nibbles
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

GROUPS, GROUP = 8, 32
CODE_TOP = F(63)  # 6 bits
LARGEST_CODES = np.array([63, 61, 59, 57, 55, 53, 51, 49, 47], np.float32)


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes, bits: int) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    nbytes, top = 144 if bits == 4 else 176, F(2**bits - 1)
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(affine.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((nbytes, LANES), np.uint8)
    grid = BlockGrid(GROUPS, GROUP, affine.STEPS, top, CODE_TOP, LARGEST_CODES, 1)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], grid, state, scales)
            round_block(tile, grid, scales, state, codes)
            store_half(scales, SCALE, block, 0)
            store_half(scales, MINIMUM, block, 2)
            store_codes_6_bit(scales, block)
            if bits == 5:
                store_bits(codes, 4, block, 16)
            store_nibbles(codes, GROUP, block, nbytes - COLUMNS // 2)
            store_block(block, blocks, row, index * nbytes)


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
