"""Byte layouts of ggml's blocks: unpack scales, minima and codes, and replace the codes beside the same scales.

Layouts: ggml-common.h of llama.cpp. Scales are at the start of a block, for `q3_k` and `q6_k` at its end, for `q2_k` at
both; the rest are codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.grids import vector_table
from mcpmq.grids.value_table import ValueTable

Bytes = Tensor  # uint8
Floats = Tensor  # float32

NIBBLE_MASK, NIBBLE_BITS, PAIR_BITS, PAIR_MASK, SIGN_BIT = 15, 4, 2, 3, 128
SIGNED_6_BIT_ZERO = 32  # the code of a scale of zero
IQ3_S_BITS = (slice(66, 74), slice(74, 106))  # bytes of the ninth bits of indices, and of signs
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The layout of one block type. Blocks are uint8 [blocks, bytes of a block], on any device.

    The value of code `q` in group `g` is (q - zero_point) * scale[g] + offset[g], or `values[q]` * scale[g].
    """

    bits: int
    num_groups: int  # in a block
    zero_point: int
    unpack_scales: Callable[[Bytes], tuple[Floats, Floats | None]]  # blocks -> scale and offset [blocks, groups]
    unpack_codes: Callable[[Bytes], Bytes]  # blocks -> codes uint8 [blocks, columns]
    pack_codes: Callable[[Bytes, Bytes], None]  # writes codes uint8 [blocks, columns] into blocks
    values: tuple[int, ...] | None = None
    qmin: int = 0  # the lowest code that ggml writes
    scale_divisor: int | None = None  # the value of largest magnitude over it is the scale, in blocks of one scale

    @property
    def has_fp16_scales(self) -> bool:
        """True if a group has a scale of its own, in fp16 at the start of the block."""
        return self.num_groups == 1

    def to_units(self, steps: Tensor) -> Tensor:
        """Round values over their scale, of a layout without offset, to values of codes at a scale of 1."""
        if self.values is None:
            return steps.round_().clamp_(self.qmin - self.zero_point, 2**self.bits - 1 - self.zero_point)
        table = ValueTable(torch.tensor(self.values, dtype=torch.float32, device=steps.device))
        return table.take(table.nearest(steps))


def _fp16(blocks: Bytes, start: int) -> Floats:
    """Read an fp16 of every block: float32 [blocks, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def write_fp16(blocks: Bytes, start: int, values: Floats) -> None:
    """Write an fp16 of every block, float32 [blocks, 1], from byte `start` on."""
    blocks[:, start : start + 2] = values.half().contiguous().view(torch.uint8)


def _scale_only(blocks: Bytes) -> tuple[Floats, Floats | None]:
    return _fp16(blocks, 0), None


def _scale_and_offset(blocks: Bytes) -> tuple[Floats, Floats | None]:
    return _fp16(blocks, 0), _fp16(blocks, 2)


def _scales_6_bit(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `q4_k` and `q5_k`: 8 scales and 8 minima of 6 bits in 12 bytes, each multiplied by its own fp16."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], 1)
    minimum = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], 1)
    return _fp16(blocks, 0) * scale, -(_fp16(blocks, 2) * minimum)


def _scales_8_bit(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `q6_k`: 16 signed scales of 8 bits, multiplied by an fp16, after the codes."""
    return _fp16(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8), None


def _scales_iq4_xs(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `iq4_xs`: 8 scales of 6 bits, plus 32: two upper bits each in 2 bytes, then nibbles; and an fp16."""
    upper = (blocks[:, 2:4, None] >> _shifts(blocks, 4, PAIR_BITS) & PAIR_MASK).reshape(-1, 8)
    code = (_nibbles(blocks[:, 4:8], 1) | upper << NIBBLE_BITS).float()
    return _fp16(blocks, 0) * (code - SIGNED_6_BIT_ZERO), None


def _scales_q3_k(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `q3_k`: 16 scales of 6 bits, plus 32: nibbles in 8 bytes, then the upper bits in 4 bytes; and an fp16."""
    upper = (blocks[:, None, 104:108] >> _shifts(blocks, 4, PAIR_BITS)[:, None] & PAIR_MASK).reshape(-1, 16)
    code = (_nibbles(blocks[:, 96:104], 8) | upper << NIBBLE_BITS).float()
    return _fp16(blocks, 108) * (code - SIGNED_6_BIT_ZERO), None


def _scales_4_bit(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `q2_k`: 16 scales in lower and 16 minima in upper nibbles; the fp16 of both are at the end."""
    scale, minimum = blocks[:, :16] & NIBBLE_MASK, blocks[:, :16] >> NIBBLE_BITS
    return _fp16(blocks, 80) * scale, -(_fp16(blocks, 82) * minimum)


def _scales_iq3_s(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """Unpack `iq3_s`: 8 scales in nibbles, of odd factors from 1 to 31, multiplied by an fp16."""
    return _fp16(blocks, 0) * (2 * _nibbles(blocks[:, 106:110], 1).float() + 1), None


def _shifts(blocks: Bytes, count: int, bits: int) -> Bytes:
    """Return the shifts of `count` numbers of some bits in a byte, the lowest first."""
    return torch.arange(0, count * bits, bits, dtype=torch.uint8, device=blocks.device)


def _nibbles(packed: Bytes, width: int) -> Bytes:
    """Unpack `width` bytes to 2 * `width` codes: all low nibbles, then all high nibbles."""
    parts = packed.reshape(len(packed), -1, width)
    return torch.cat([parts & NIBBLE_MASK, parts >> NIBBLE_BITS], 2).reshape(len(packed), -1)


def _from_nibbles(codes: Bytes, width: int) -> Bytes:
    parts = codes.reshape(len(codes), -1, 2, width)
    return (parts[:, :, 0] & NIBBLE_MASK | parts[:, :, 1] << NIBBLE_BITS).reshape(len(codes), -1)


def _unpack_bytes(blocks: Bytes) -> Bytes:
    return blocks[:, 2:] ^ SIGN_BIT  # two's complement to an unsigned code


def _pack_bytes(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:] = codes ^ SIGN_BIT


def _nibbles_from(start: int, width: int) -> tuple[Callable[[Bytes], Bytes], Callable[[Bytes, Bytes], None]]:
    def unpack(blocks: Bytes) -> Bytes:
        return _nibbles(blocks[:, start:], width)

    def pack(blocks: Bytes, codes: Bytes) -> None:
        blocks[:, start:] = _from_nibbles(codes, width)

    return unpack, pack


def _unpack_bits(packed: Bytes) -> Bytes:
    """Unpack bytes to eight bits each, the lowest first: [blocks, 8 * bytes]."""
    return (packed[..., None] >> _shifts(packed, 8, 1) & 1).flatten(1)


def _pack_bits(bits: Bytes) -> Bytes:
    """Pack bits [..., 8 * bytes], 0 or 1, the lowest first."""
    parts = bits.reshape(*bits.shape[:-1], -1, 8)
    packed = parts[..., 0].clone()
    for shift in range(1, 8):
        packed |= parts[..., shift] << shift
    return packed


def _unpack_q5_0(blocks: Bytes) -> Bytes:
    return _nibbles(blocks[:, 6:], 16) | _unpack_bits(blocks[:, 2:6]) << NIBBLE_BITS


def _pack_q5_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:6] = _pack_bits(codes >> NIBBLE_BITS)
    blocks[:, 6:] = _from_nibbles(codes, 16)


def _bits(packed: Bytes) -> Bytes:
    """Unpack 32 bytes to the bits of 256 columns: that of column 32 * i + j is bit i of byte j."""
    return (packed[:, None] >> _shifts(packed, 8, 1)[:, None] & 1).reshape(-1, 256)


def _from_bits(bits: Bytes) -> Bytes:
    return _pack_bits(bits.reshape(-1, 8, 32).transpose(1, 2).flatten(1))


def _pairs(packed: Bytes) -> Bytes:
    """Unpack 64 bytes to two bits of 256 columns: in each half, those of column 32 * i + j are bits 2 * i of byte j."""
    return (packed.reshape(-1, 2, 1, 32) >> _shifts(packed, 4, PAIR_BITS)[:, None] & PAIR_MASK).reshape(-1, 256)


def _from_pairs(pairs: Bytes) -> Bytes:
    parts = pairs.reshape(-1, 2, 4, 32)
    lower, upper = parts[:, :, 0] | parts[:, :, 1] << 2, parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return (lower | upper).reshape(-1, 64)


def _unpack_q5_k(blocks: Bytes) -> Bytes:
    return _nibbles(blocks[:, 48:], 32) | _bits(blocks[:, 16:48]) << NIBBLE_BITS


def _pack_q5_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 16:48] = _from_bits(codes >> NIBBLE_BITS)
    blocks[:, 48:] = _from_nibbles(codes, 32)


def _unpack_q6_k(blocks: Bytes) -> Bytes:
    return _nibbles(blocks[:, :128], 64) | _pairs(blocks[:, 128:192]) << NIBBLE_BITS


def _pack_q6_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, :128] = _from_nibbles(codes, 64)
    blocks[:, 128:192] = _from_pairs(codes >> NIBBLE_BITS)


def _unpack_q3_k(blocks: Bytes) -> Bytes:
    return _pairs(blocks[:, 32:96]) | _bits(blocks[:, :32]) << PAIR_BITS


def _unpack_q2_k(blocks: Bytes) -> Bytes:
    return _pairs(blocks[:, 16:80])


def _pack_q2_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 16:80] = _from_pairs(codes)


def _pack_q3_k(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, :32] = _from_bits(codes >> PAIR_BITS)
    blocks[:, 32:96] = _from_pairs(codes & PAIR_MASK)


def _unpack_iq3_s(blocks: Bytes) -> Bytes:
    """Unpack `iq3_s`: 64 indices of vectors, their ninth bits, and a bit for every negative value."""
    ninth_bit, signs = (_unpack_bits(blocks[:, part]) for part in IQ3_S_BITS)
    indices = blocks[:, 2:66].long() | ninth_bit.long() << 8
    codes = vector_table.join_codes(indices.cpu().numpy(), signs.bool().cpu().numpy())
    return torch.from_numpy(codes).to(blocks.device)


def _pack_iq3_s(blocks: Bytes, codes: Bytes) -> None:
    found, negative = vector_table.split_codes(codes.cpu().numpy())
    indices = torch.from_numpy(found).to(blocks.device)
    blocks[:, 2:66] = (indices & 255).to(torch.uint8)
    for part, bits in zip(IQ3_S_BITS, (indices >> 8, torch.from_numpy(negative).to(blocks.device)), strict=True):
        blocks[:, part] = _pack_bits(bits.to(torch.uint8))


BLOCK_LAYOUTS = {
    "q8_0": BlockLayout(
        8, 1, 128, _scale_only, _unpack_bytes, _pack_bytes, qmin=1, scale_divisor=127
    ),  # values -127..127
    "q4_0": BlockLayout(4, 1, 8, _scale_only, *_nibbles_from(2, 16), scale_divisor=-8),
    "q4_1": BlockLayout(4, 1, 0, _scale_and_offset, *_nibbles_from(4, 16)),
    "q5_0": BlockLayout(5, 1, 16, _scale_only, _unpack_q5_0, _pack_q5_0, scale_divisor=-16),
    "iq4_nl": BlockLayout(4, 1, 0, _scale_only, *_nibbles_from(2, 16), IQ4_NL_VALUES, scale_divisor=-127),
    "q4_k": BlockLayout(4, 8, 0, _scales_6_bit, *_nibbles_from(16, 32)),
    "q5_k": BlockLayout(5, 8, 0, _scales_6_bit, _unpack_q5_k, _pack_q5_k),
    "q6_k": BlockLayout(6, 16, 32, _scales_8_bit, _unpack_q6_k, _pack_q6_k),
    "iq4_xs": BlockLayout(4, 8, 0, _scales_iq4_xs, *_nibbles_from(8, 16), IQ4_NL_VALUES),
    "q2_k": BlockLayout(2, 16, 0, _scales_4_bit, _unpack_q2_k, _pack_q2_k),
    "iq3_s": BlockLayout(4, 8, 0, _scales_iq3_s, _unpack_iq3_s, _pack_iq3_s, vector_table.VALUES),
    "q3_k": BlockLayout(3, 16, 4, _scales_q3_k, _unpack_q3_k, _pack_q3_k),
}
