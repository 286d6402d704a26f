"""Blocks of 32 columns: `q4_0`, `q5_0`, `q8_0` and `iq4_nl` with an fp16 scale, `q4_1` also with an fp16 offset."""

import numpy as np

from mcpmq.grids.kernels import affine, scaled
from mcpmq.grids.kernels.affine import OFFSET
from mcpmq.grids.kernels.compiler import LANES, Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import load_tile, store_block, store_half, store_nibbles

COLUMNS, TILE_COLUMNS = 32, 256  # of a block; transposed at a time
Q4_1_TOP = F(15)
# Levels of the value of largest magnitude, and the distance of two fine candidates from the best of them.
Q4_0_LEVELS = np.array([-8, -7.5, -7, -6.4, -5.7, -8.4, 7, 6.4, 5.7, 7.5], np.float32)
Q5_0_LEVELS = np.array([-16, -15.4, -14.7, -13.8, -12.5, -16.4, 15, 14.3, 13, 15.5], np.float32)
Q8_0_LEVELS = np.array([127, 126.4, 125.6], np.float32)
IQ4_NL_LEVELS = np.array([-127, -118, -108, -97, -133, 113, 119, 107, 100], np.float32)


@kernel
def quantize_q4_0(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    quantize_scaled(values, importance, blocks, Q4_0_LEVELS, F(0.2), F(-8), F(7), 8, 18)


@kernel
def quantize_q5_0(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    quantize_scaled(values, importance, blocks, Q5_0_LEVELS, F(0.2), F(-16), F(15), 16, 22)


@kernel
def quantize_q8_0(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    quantize_scaled(values, importance, blocks, Q8_0_LEVELS, F(0), F(-127), F(127), 0, 34)


@kernel
def quantize_iq4_nl(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    quantize_scaled(values, importance, blocks, IQ4_NL_LEVELS, F(2.5), F(0), F(0), 0, 18)


@kernel
def quantize_scaled(
    values: Floats,
    importance: Floats,
    blocks: Bytes,
    levels: Floats,
    fine: F,
    lowest: F,
    highest: F,
    zero: int,
    nbytes: int,
) -> None:
    """Quantize to blocks of a scale and codes, with arguments of `scaled.search`; codes are integers plus `zero`."""
    weights, tile = importance, np.empty((TILE_COLUMNS, LANES), np.float32)
    codes = np.empty((COLUMNS, LANES), np.uint8)
    state, block = np.empty(scaled.STATE_VALUES * LANES, np.float32), np.empty((nbytes, LANES), np.uint8)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            first = index * COLUMNS % TILE_COLUMNS
            if first == 0:
                load_tile(values, row, index * COLUMNS, tile)
                weights = importance[index * COLUMNS : index * COLUMNS + TILE_COLUMNS]
            scaled.search(tile, weights, first, first + COLUMNS, levels, fine, lowest, highest, True, state)
            scaled.choose_half(tile, weights, first, first + COLUMNS, lowest, highest, state)
            if lowest == highest:
                scaled.round_to_table(tile, first, first + COLUMNS, state, codes)
            else:
                scaled.round_to_codes(tile, first, first + COLUMNS, lowest, highest, zero, state, codes)
            store_half(state, scaled.STEP, block, 0)
            store_codes(codes, block)
            store_block(block, blocks, row, index * nbytes)


@kernel
def store_codes(codes: Bytes, block: Bytes) -> None:
    """Write codes behind the scale: bytes, or fifth bits and nibbles, or nibbles, by the size of the block."""
    if len(block) == 34:
        for column in range(COLUMNS):
            for lane in range(LANES):
                block[2 + column, lane] = codes[column, lane]
        return
    if len(block) == 22:
        for byte in range(4):
            for lane in range(LANES):
                bits = np.uint8(0)
                for bit in range(8):
                    bits |= (codes[byte * 8 + bit, lane] >> np.uint8(4)) << np.uint8(bit)
                block[2 + byte, lane] = bits
    store_nibbles(codes, COLUMNS // 2, block, len(block) - COLUMNS // 2)


@kernel
def quantize_q4_1(values: Floats, importance: Floats, blocks: Bytes) -> None:
    """Quantize rows, float32 [rows, columns], to blocks uint8 [rows, bytes]; `importance` is float32 [columns]."""
    weights, tile = importance, np.empty((TILE_COLUMNS, LANES), np.float32)
    codes = np.empty((COLUMNS, LANES), np.uint8)
    state, block = np.empty(affine.STATE_VALUES * LANES, np.float32), np.empty((20, LANES), np.uint8)
    for row in range(0, len(values), LANES):
        for index in range(values.shape[1] // COLUMNS):
            first = index * COLUMNS % TILE_COLUMNS
            if first == 0:
                load_tile(values, row, index * COLUMNS, tile)
                weights = importance[index * COLUMNS : index * COLUMNS + TILE_COLUMNS]
            affine.search(tile, weights, first, first + COLUMNS, affine.STEPS, Q4_1_TOP, F(np.inf), state)
            affine.choose_half(tile, weights, first, first + COLUMNS, Q4_1_TOP, state)
            affine.round_to_codes(tile, first, first + COLUMNS, Q4_1_TOP, state, codes)
            store_half(state, affine.STEP, block, 0)
            store_half(state, OFFSET, block, 2)
            store_nibbles(codes, COLUMNS // 2, block, 4)
            store_block(block, blocks, row, index * 20)


KERNELS = {
    "q4_0": quantize_q4_0,
    "q4_1": quantize_q4_1,
    "q5_0": quantize_q5_0,
    "q8_0": quantize_q8_0,
    "iq4_nl": quantize_iq4_nl,
}
