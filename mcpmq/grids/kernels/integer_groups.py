"""Round to nearest on integer grids: largest magnitudes of groups of columns, codes, and ggml's blocks of codes.

Values are given as unsigned integers with the bits of a float, bfloat16 or float32. So weights are read once in their
stored dtype, and comparisons of magnitudes are those of integers. Innermost loops run over slices from their first
element: with an index of the whole array numba checks for negative ones, and the loop has no vector instructions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.kernels.compiler import Bytes, F, Floats, kernel
from mcpmq.grids.kernels.lanes import HALF_MIN_NORMAL, SUBNORMAL_MAGIC

BLOCK = 32  # columns of a block of ggml
SIGN, MAGNITUDE, ALL_BITS = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0xFFFFFFFF)
DROPPED_BITS = np.uint32(13)  # of the fraction of a float32, which fp16 does not have
HALF_STEP, KEPT_BITS = np.uint32(0xFFF), np.uint32(0xFFFFE000)
EXPONENT_CHANGE = np.uint32(112 << 10)  # the exponents of float32 and fp16 have other offsets
Bits = NDArray[Any]  # uint16 of bfloat16, or uint32 of float32
Words = NDArray[np.uint32]


@kernel
def _widen(bits: Bits, shift: int, mask: np.uint32, buffer: Words) -> None:
    """Write the bits of float32 values, without those that are not in the mask."""
    for column in range(bits.size):
        buffer[column] = np.uint32(bits[column]) << np.uint32(shift) & mask


@kernel
def largest_magnitudes(bits: Bits, shift: int, group: int, largest: Words) -> None:
    """Write the largest magnitude of every group of columns, as the bits of a float32 [rows, groups]; NaN is largest.

    `shift` is 16 for bfloat16 and 0 for float32. The last group may be smaller.
    """
    rows, columns = bits.shape
    buffer = np.empty(columns, np.uint32)
    for row in range(rows):
        _widen(bits[row], shift, MAGNITUDE, buffer)
        for index in range(largest.shape[1]):
            part = buffer[index * group : min((index + 1) * group, columns)]
            found = np.uint32(0)
            for place in range(part.size):
                found = max(found, part[place])
            largest[row, index] = found


@kernel
def count_magnitudes(bits: Bits, shift: int, group: int, dropped_bits: int, counts: NDArray[np.int64]) -> None:
    """Add 1 to the count of the largest magnitude of every group, which its upper bits index.

    Index 0 counts zeros alone: magnitudes whose upper bits are zero have index 1.
    """
    rows, columns = bits.shape
    buffer = np.empty(columns, np.uint32)
    for row in range(rows):
        _widen(bits[row], shift, MAGNITUDE, buffer)
        for index in range((columns + group - 1) // group):
            part = buffer[index * group : min((index + 1) * group, columns)]
            found = np.uint32(0)
            for place in range(part.size):
                found = max(found, part[place])
            counts[max(found >> np.uint32(dropped_bits), min(found, np.uint32(1)))] += 1


@kernel
def signed_largest(bits: Bits, shift: int, group: int, largest: Words) -> None:
    """Write the value of largest magnitude of every group, the first of several, as `largest_magnitudes`.

    The largest unsigned integer is the negative value of largest magnitude, the largest signed one the positive one.
    """
    rows, columns = bits.shape
    buffer = np.empty(columns, np.uint32)
    signed = buffer.view(np.int32)
    for row in range(rows):
        _widen(bits[row], shift, ALL_BITS, buffer)
        for index in range(largest.shape[1]):
            first, last = index * group, min((index + 1) * group, columns)
            part, signed_part = buffer[first:last], signed[first:last]
            positive, negative = np.int32(0), np.uint32(0)
            for place in range(part.size):
                positive = max(positive, signed_part[place])
                negative = max(negative, part[place])
            largest[row, index] = _first_largest(part, np.uint32(positive), negative)


@kernel
def _first_largest(values: Words, positive: np.uint32, negative: np.uint32) -> Any:
    """Return the largest positive value, or that of largest magnitude with a sign, or the first if they are equal."""
    if negative < SIGN or negative & MAGNITUDE < positive:
        return positive
    if negative & MAGNITUDE > positive:
        return negative
    for place in range(values.size):
        if values[place] & MAGNITUDE == positive:
            return values[place]
    return positive


@kernel
def round_scales(largest: Floats, divisor: F, scales: Floats, halves: NDArray[np.uint16]) -> F:
    """Write values over a divisor rounded to fp16, as float32 and as bits of fp16; return the largest magnitude.

    A scale that is zero, or so small that fp16 has none, becomes 1. Those of 65,520 and more are wrong.
    """
    top, bits = F(0), scales.view(np.uint32)
    for index in range(scales.size):
        scales[index] = largest[index] / divisor
        top = max(top, abs(scales[index]))
    for index in range(scales.size):  # normal numbers: the nearest with 11 bits, of two the even one
        bits[index] = bits[index] + HALF_STEP + (bits[index] >> DROPPED_BITS & np.uint32(1)) & KEPT_BITS
    for index in range(scales.size):
        magnitude = abs(largest[index] / divisor)
        subnormal = np.copysign(magnitude + SUBNORMAL_MAGIC - SUBNORMAL_MAGIC, scales[index])
        rounded = scales[index] if magnitude >= HALF_MIN_NORMAL else subnormal
        scales[index] = rounded if rounded != F(0) else F(1)
    for index in range(scales.size):
        magnitude, sign = bits[index] & MAGNITUDE, bits[index] & SIGN
        normal, subnormal = (magnitude >> DROPPED_BITS) - EXPONENT_CHANGE, np.uint32(abs(scales[index]) * F(2**24))
        halves[index] = sign >> np.uint32(16) | (normal if abs(scales[index]) >= HALF_MIN_NORMAL else subnormal)
    return top


@kernel
def round_to_codes(
    bits: Bits, shift: int, group: int, scales: Floats, zero: F, lowest: F, highest: F, codes: Bytes
) -> None:
    """Write the codes nearest to values over the scale of their group, plus `zero`, in a range."""
    rows, columns = bits.shape
    buffer = np.empty(columns, np.uint32)
    values = buffer.view(np.float32)
    for row in range(rows):
        _widen(bits[row], shift, ALL_BITS, buffer)
        for index in range(scales.shape[1]):
            scale, first, last = scales[row, index], index * group, min((index + 1) * group, columns)
            part, target = values[first:last], codes[row, first:last]
            for place in range(part.size):
                code = np.rint(part[place] / scale) + zero
                target[place] = np.uint8(np.int32(min(max(code, lowest), highest)))


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
            target = blocks[row, start + 2 : start + nbytes]
            low, high = codes[row, first : first + target.size], codes[row, first + BLOCK // 2 : first + BLOCK]
            if nbytes == 2 + BLOCK:
                for column in range(target.size):
                    target[column] = low[column] ^ np.uint8(0x80)
            else:
                for column in range(target.size):
                    target[column] = low[column] | high[column] << np.uint8(4)
