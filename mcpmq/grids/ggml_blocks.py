"""What stands where in ggml's blocks: scales, minima and codes come apart, and new codes go in beside the old scales.

Layouts: ggml-common.h of llama.cpp. The first bytes of a block, or the last of `q6_k`, hold scales; the rest codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

LOW, FOUR, SIGN = np.uint8(15), np.uint8(4), np.uint8(128)  # a nibble's mask and width, a byte's sign
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True)
class Layout:
    """One block type. Its functions take and give arrays whose first axis counts blocks.

    The value of code `q` in group `g` is (q - zero) * scale[g] + base[g], or `values[q]` * scale[g].
    """

    bits: int
    groups: int  # in a block
    zero: int
    scales: Callable[[Bytes], tuple[Floats, Floats | None]]  # scale and base [blocks, groups] of whole blocks
    unpack: Callable[[Bytes], Bytes]  # codes uint8 [blocks, columns] of whole blocks
    pack: Callable[[Bytes, Bytes], None]  # write codes into whole blocks
    values: tuple[int, ...] | None = None


def _fp16(blocks: Bytes, start: int) -> Floats:
    """[blocks, 1]"""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _scale_alone(blocks: Bytes) -> tuple[Floats, Floats | None]:
    return _fp16(blocks, 0), None


def _scale_and_base(blocks: Bytes) -> tuple[Floats, Floats | None]:
    return _fp16(blocks, 0), _fp16(blocks, 2)


def _scales_of_6_bits(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """`q4_k` and `q5_k`: 8 scales and 8 minima of 6 bits in 12 bytes, each times its own fp16."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return _fp16(blocks, 0) * scale, -(_fp16(blocks, 2) * minimum)


def _scales_of_8_bits(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """`q6_k`: 16 signed scales and an fp16, behind the codes."""
    return _fp16(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), None


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """Every `width` bytes hold 2 * `width` codes: the low halves first, then the high ones."""
    parts = packed.reshape(len(packed), -1, width)
    return np.concatenate([parts & LOW, parts >> FOUR], axis=2).reshape(len(packed), -1)


def _from_nibbles(codes: Bytes, width: int) -> Bytes:
    parts = codes.reshape(len(codes), -1, 2, width)
    return (parts[:, :, 0] & LOW | parts[:, :, 1] << FOUR).reshape(len(codes), -1)


def _unpack_bytes(blocks: Bytes) -> Bytes:
    return blocks[:, 2:] ^ SIGN  # two's complement, counted from 0


def _pack_bytes(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:] = codes ^ SIGN


def _nibbles_after(start: int, width: int) -> tuple[Callable[[Bytes], Bytes], Callable[[Bytes, Bytes], None]]:
    def unpack(blocks: Bytes) -> Bytes:
        return _nibbles(blocks[:, start:], width)

    def pack(blocks: Bytes, codes: Bytes) -> None:
        blocks[:, start:] = _from_nibbles(codes, width)

    return unpack, pack


def _unpack_q5_0(blocks: Bytes) -> Bytes:
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    return _nibbles(blocks[:, 6:], 16) | fifth << FOUR


def _pack_q5_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:6] = np.packbits(codes >> 4, axis=1, bitorder="little")
    blocks[:, 6:] = _from_nibbles(codes, 16)


def _unpack_q5_k(blocks: Bytes) -> Bytes:
    """The fifth bit of column 32 * i + j is bit i of byte j."""
    fifth = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").swapaxes(1, 2)
    return _nibbles(blocks[:, 48:], 32) | fifth.reshape(-1, 256) << FOUR


def _pack_q5_k(blocks: Bytes, codes: Bytes) -> None:
    fifth = (codes >> 4).reshape(-1, 8, 32).swapaxes(1, 2)
    blocks[:, 16:48] = np.packbits(fifth, axis=2, bitorder="little")[..., 0]
    blocks[:, 48:] = _from_nibbles(codes, 32)


_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def _unpack_q6_k(blocks: Bytes) -> Bytes:
    """In each half: four bits as nibbles of 64 bytes, the upper two of column 32 * i + j in bits 2 * i of byte j."""
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _PAIRS & np.uint8(3)
    return _nibbles(blocks[:, :128], 64) | upper.reshape(-1, 256) << FOUR


def _pack_q6_k(blocks: Bytes, codes: Bytes) -> None:
    upper = (codes >> 4).reshape(-1, 2, 4, 32) << _PAIRS
    blocks[:, :128] = _from_nibbles(codes, 64)
    blocks[:, 128:192] = np.bitwise_or.reduce(upper, axis=2).reshape(-1, 64)


LAYOUTS = {
    "q8_0": Layout(8, 1, 128, _scale_alone, _unpack_bytes, _pack_bytes),
    "q4_0": Layout(4, 1, 8, _scale_alone, *_nibbles_after(2, 16)),
    "q4_1": Layout(4, 1, 0, _scale_and_base, *_nibbles_after(4, 16)),
    "q5_0": Layout(5, 1, 16, _scale_alone, _unpack_q5_0, _pack_q5_0),
    "iq4_nl": Layout(4, 1, 0, _scale_alone, *_nibbles_after(2, 16), IQ4_NL_VALUES),
    "q4_k": Layout(4, 8, 0, _scales_of_6_bits, *_nibbles_after(16, 32)),
    "q5_k": Layout(5, 8, 0, _scales_of_6_bits, _unpack_q5_k, _pack_q5_k),
    "q6_k": Layout(6, 16, 32, _scales_of_8_bits, _unpack_q6_k, _pack_q6_k),
}
