"""`q3_k`: blocks of 16 groups of 16 columns, whose scales are signed 6-bit codes times an fp16.

value = code * scale_code * scale, with codes from -4 to 3
"""

import numpy as np

from mcpmq.grids.kernels import scaled
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_bits, store_block, store_half, store_pairs
from mcpmq.grids.kernels.signed_scales import COLUMNS, SCALE, SCALES_VALUES, BlockGrid, round_block, search_block

GROUPS, GROUP, NBYTES = 16, 16, 110
# With importance the value of largest magnitude may count for little, so that its level is far outside of the range.
NEGATIVE_LEVELS = (-4, -4.3, -4.7, -5.2, -3.8, -3.6, -3.4, -3.2, -3, -2.8, -2.6, -2.4, -2.1, -1.8)
POSITIVE_LEVELS = (4.2, 3.7, 3.4, 3.2, 3, 2.8, 2.6, 2.4, 2.2, 2, 1.7)
LEVELS, FINE = np.array(NEGATIVE_LEVELS + POSITIVE_LEVELS, np.float32), F(0.07)
LOWEST, HIGHEST, ZERO = F(-4), F(3), 4
CODE_LOWEST, CODE_HIGHEST, CODE_ZERO = F(-32), F(31), 32
LARGEST_CODES = np.array([-32, -31, -30, -29, -28, -27, -26, -25, -24, 31, 29], np.float32)


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(scaled.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((NBYTES, LANES), np.uint8)
    grid = BlockGrid(GROUPS, GROUP, LEVELS, FINE, LOWEST, HIGHEST, CODE_LOWEST, CODE_HIGHEST, LARGEST_CODES, 3)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], grid, state, scales)
            round_block(tile, grid, ZERO, scales, state, codes)
            store_bits(codes, 2, block, 0)
            store_pairs(codes, 0, block, 32)
            store_scale_codes(scales, block)
            store_half(scales, SCALE, block, 108)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def store_scale_codes(scales: Floats, block: Bytes) -> None:
    """Write scale codes plus 32: nibbles in 8 bytes from byte 96, then the two upper bits in 4 bytes."""
    for byte in range(96, 108):
        for lane in range(LANES):
            block[byte, lane] = np.uint8(0)
    for group in range(GROUPS):
        for lane in range(LANES):
            code = np.uint8(np.int32(scales[group * LANES + lane]) + CODE_ZERO)
            block[96 + group % 8, lane] |= (code & np.uint8(15)) << np.uint8(4 * (group // 8))
            block[104 + group % 4, lane] |= (code >> np.uint8(4)) << np.uint8(2 * (group // 4))
