"""Round to nearest on integer grids: largest magnitudes of groups of columns, codes, and ggml's blocks of codes.

Values are given as unsigned integers with the bits of a float, bfloat16 or float32: `widen` returns the float32. So
weights are read once in their stored dtype, and comparisons of magnitudes are those of integers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.kernels.compiler import Bytes, F, Floats, kernel

BLOCK = 32  # columns of a block of ggml
SIGN, MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
Bits = NDArray[Any]  # uint16 of bfloat16, or uint32 of float32
Words = NDArray[np.uint32]


@kernel
def largest_magnitudes(bits: Bits, shift: int, group: int, largest: Words) -> None:
    """Write the largest magnitude of every group of columns, as the bits of a float32 [rows, groups]; NaN is largest.

    `shift` is 16 for bfloat16 and 0 for float32. The last group may be smaller.
    """
    rows, columns = bits.shape
    for row in range(rows):
        for index in range(largest.shape[1]):
            found = np.uint32(0)
            for column in range(index * group, min((index + 1) * group, columns)):
                found = max(found, np.uint32(bits[row, column]) << np.uint32(shift) & MAGNITUDE)
            largest[row, index] = found


@kernel
def signed_largest(bits: Bits, shift: int, group: int, largest: Words) -> None:
    """Write the value of largest magnitude of every group, the first of several, as `largest_magnitudes`."""
    largest_magnitudes(bits, shift, group, largest)
    rows, columns = bits.shape
    for row in range(rows):
        for index in range(largest.shape[1]):
            for column in range(index * group, min((index + 1) * group, columns)):
                value = np.uint32(bits[row, column]) << np.uint32(shift)
                if value & MAGNITUDE == largest[row, index]:
                    largest[row, index] = value
                    break


@kernel
def round_to_codes(
    bits: Bits, shift: int, group: int, scales: Floats, zero: F, lowest: F, highest: F, codes: Bytes
) -> None:
    """Write the codes nearest to values over the scale of their group, plus `zero`, in a range."""
    rows, columns = bits.shape
    buffer = np.empty(columns, np.uint32)
    values = buffer.view(np.float32)
    for row in range(rows):
        for column in range(columns):
            buffer[column] = np.uint32(bits[row, column]) << np.uint32(shift)
        for index in range(scales.shape[1]):
            scale = scales[row, index]
            for column in range(index * group, min((index + 1) * group, columns)):
                code = np.rint(values[column] / scale) + zero
                codes[row, column] = np.uint8(np.int32(min(max(code, lowest), highest)))


@kernel
def pack_blocks(codes: Bytes, scales: Bytes, group: int, blocks: Bytes) -> None:
    """Write codes [rows, columns] and fp16 scales [rows, 2 * groups] as blocks of Q8_0 or Q4_0 [rows, bytes of a row].

    Layout: block_q8_0 and block_q4_0 of ggml-common.h; 8-bit codes change from a zero point of 128 to two's complement.
    """
    rows, columns = codes.shape
    count = columns // BLOCK
    nbytes = blocks.shape[1] // count
    for row in range(rows):
        for index in range(count):
            start, first = index * nbytes, index * BLOCK
            place = 2 * (first // group)
            blocks[row, start], blocks[row, start + 1] = scales[row, place], scales[row, place + 1]
            if nbytes == 2 + BLOCK:
                for column in range(BLOCK):
                    blocks[row, start + 2 + column] = codes[row, first + column] ^ np.uint8(0x80)
            else:
                for column in range(BLOCK // 2):
                    high = codes[row, first + BLOCK // 2 + column] << np.uint8(4)
                    blocks[row, start + 2 + column] = codes[row, first + column] | high
