"""Parts of kernels that all block types share: tiles of rows, fp16 values and nibbles in lanes."""

import numpy as np

from mcpmq.grids.kernels.compiler import LANES, TINY, Bytes, F, Floats, kernel

HALF_MAX, HALF_MIN_NORMAL = F(65504), F(2.0**-14)
SPLIT = F(2**13 + 1)  # of Veltkamp: keeps 11 of 24 bits
SUBNORMAL_MAGIC = F(0.5)  # float32 values near it are 2^-24 apart, as subnormal fp16 values


@kernel
def load_tile(values: Floats, first_row: int, first_column: int, tile: Floats) -> None:
    """Transpose columns of `LANES` rows into a tile [columns, lanes]; lanes without a row are zero."""
    rows, columns = min(LANES, len(values) - first_row), min(len(tile), values.shape[1] - first_column)
    for lane in range(rows):
        for column in range(columns):
            tile[column, lane] = values[first_row + lane, first_column + column]
    for column in range(columns):
        for lane in range(rows, LANES):
            tile[column, lane] = F(0)


@kernel
def store_block(block: Bytes, blocks: Bytes, first_row: int, first_byte: int) -> None:
    """Transpose a block [bytes, lanes] of `LANES` rows into the rows of blocks."""
    for lane in range(min(LANES, len(blocks) - first_row)):
        for byte in range(len(block)):
            blocks[first_row + lane, first_byte + byte] = block[byte, lane]


@kernel
def fill(state: Floats, start: int, value: F) -> None:
    """Set a value of every lane in a state, float32 [values * lanes]."""
    for lane in range(start, start + LANES):
        state[lane] = value


@kernel
def round_to_half(state: Floats, start: int) -> None:
    """Round a value of every lane to fp16, in place; larger ones to its largest."""
    for lane in range(start, start + LANES):
        value = min(max(state[lane], -HALF_MAX), HALF_MAX)
        split = value * SPLIT
        normal = split - (split - value)
        subnormal = np.copysign((abs(value) + SUBNORMAL_MAGIC) - SUBNORMAL_MAGIC, value)
        state[lane] = normal if abs(value) >= HALF_MIN_NORMAL else subnormal


@kernel
def store_half(state: Floats, start: int, block: Bytes, first_byte: int) -> None:
    """Write a value of every lane, which fp16 represents, as two bytes, the lower one first."""
    all_bits = state.view(np.uint32)
    for lane in range(LANES):
        bits, magnitude = all_bits[start + lane], abs(state[start + lane])
        sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
        normal = ((bits >> np.uint32(13)) & np.uint32(0x3FFFF)) - np.uint32(112 << 10)
        half = sign | (normal if magnitude >= HALF_MIN_NORMAL else np.uint32(magnitude * F(2**24)))
        block[first_byte, lane] = half & np.uint32(0xFF)
        block[first_byte + 1, lane] = half >> np.uint32(8)


@kernel
def store_nibbles(codes: Bytes, width: int, block: Bytes, first_byte: int) -> None:
    """Write the lower four bits of codes [columns, lanes]: those of `width` columns low, of the next ones high."""
    for start in range(0, len(codes), 2 * width):
        for column in range(start, start + width):
            byte = first_byte + start // 2 + column - start
            for lane in range(LANES):
                high = np.uint8(codes[column + width, lane] << np.uint8(4))
                block[byte, lane] = (codes[column, lane] & np.uint8(15)) | high


@kernel
def store_bits(codes: Bytes, bit: int, block: Bytes, first_byte: int) -> None:
    """Write a bit of codes [256, lanes]: bit i of byte j is that of column 32 * i + j."""
    shift = np.uint8(bit)
    for column in range(32):
        for lane in range(LANES):
            byte = np.uint8(0)
            for part in range(8):
                byte |= (codes[32 * part + column, lane] >> shift & np.uint8(1)) << np.uint8(part)
            block[first_byte + column, lane] = byte


@kernel
def store_pairs(codes: Bytes, first_bit: int, block: Bytes, first_byte: int) -> None:
    """Write two bits of codes [256, lanes]: bits 2 * i of byte j of a half are those of its column 32 * i + j."""
    shift = np.uint8(first_bit)
    for half in range(2):
        for column in range(32):
            first = half * 128 + column
            for lane in range(LANES):
                byte = np.uint8(0)
                for part in range(4):
                    pair = codes[first + 32 * part, lane] >> shift & np.uint8(3)
                    byte |= pair << np.uint8(2 * part)
                block[first_byte + half * 32 + column, lane] = byte


@kernel
def reciprocal(step: F) -> F:
    """Return 1 / step, or 0 if the step is zero: then every code is the one of zero."""
    return F(1) / step if abs(step) > TINY else F(0)
