"""`iq4_xs`: blocks of 8 groups of 32 columns, whose scales are signed 6-bit codes times an fp16.

value = level * scale_code * scale, with the levels of `iq4_nl`
"""

import numpy as np

from mcpmq.grids.kernels import scaled
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_block, store_half, store_nibbles
from mcpmq.grids.kernels.signed_scales import COLUMNS, SCALE, SCALES_VALUES, BlockGrid, round_block, search_block
from mcpmq.grids.kernels.small_blocks import IQ4_NL_LEVELS

GROUPS, GROUP, NBYTES = 8, 32, 136
FINE, TABLE = F(2.5), F(0)
CODE_LOWEST, CODE_HIGHEST, CODE_ZERO = F(-32), F(31), 32
LARGEST_CODES = np.array([-32, -31, -30, -29, -28, -27, -26, -25, -24, 31], np.float32)


@kernel
def quantize(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    tile, codes = np.empty((COLUMNS, LANES), np.float32), np.empty((COLUMNS, LANES), np.uint8)
    state, scales = np.empty(scaled.STATE_VALUES * LANES, np.float32), np.empty(SCALES_VALUES * LANES, np.float32)
    block = np.empty((NBYTES, LANES), np.uint8)
    grid = BlockGrid(GROUPS, GROUP, IQ4_NL_LEVELS, FINE, TABLE, TABLE, CODE_LOWEST, CODE_HIGHEST, LARGEST_CODES, 2)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            load_tile(values, row, index * COLUMNS, tile)
            search_block(tile, importance[index * COLUMNS : (index + 1) * COLUMNS], grid, state, scales)
            round_block(tile, grid, 0, scales, state, codes)
            store_half(scales, SCALE, block, 0)
            store_scale_codes(scales, block)
            store_nibbles(codes, 16, block, 8)
            store_block(block, blocks, row, index * NBYTES)


@kernel
def store_scale_codes(scales: Floats, block: Bytes) -> None:
    """Write scale codes plus 32: two upper bits each in bytes 2 and 3, the others in nibbles from byte 4."""
    for byte in range(2, 8):
        for lane in range(LANES):
            block[byte, lane] = np.uint8(0)
    for group in range(GROUPS):
        for lane in range(LANES):
            code = np.uint8(np.int32(scales[group * LANES + lane]) + CODE_ZERO)
            block[2 + group // 4, lane] |= (code >> np.uint8(4)) << np.uint8(2 * (group % 4))
            block[4 + group // 2, lane] |= (code & np.uint8(15)) << np.uint8(4 * (group % 2))
