"""Byte layouts of ONNX Runtime's MatMulNBits and GatherBlockQuantized; packing does not change a code.

Layout: codes along the columns, low bits first, in blocks of a power of two from 16; float32 scales [rows, blocks];
zero points packed like the codes (ContribOperators.md of ONNX Runtime).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.formats.onnx.block_quant import block_size, blocks_per_row
from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.scheme import IntegerScheme

if TYPE_CHECKING:  # a forecast computes the shapes without torch
    from torch import Tensor

    from mcpmq.qtensor import IntegerTensor

    Chunks = Iterable[IntegerTensor]  # rows of a weight, in their order

CODES_PER_STRIPE = 4 << 20  # bounds the memory of packing
Bytes = NDArray[np.uint8]
Parts = Iterator[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The three arrays of one weight; symmetric schemes have no `zeros`, the zero point is 2^(bits-1).

    The codes are read before the others, because chunks of rows are computed once.
    """

    bits: int
    block_size: int
    codes: StoredArray
    scales: StoredArray
    zeros: StoredArray | None


def pack_for_matmul(scheme: IntegerScheme, shape: tuple[int, int], chunks: "Chunks" = ()) -> PackedWeight:
    """Pack a weight [rows, columns] for MatMulNBits: codes uint8 [rows, blocks, bytes per block].

    The last block is padded with the code of zero. Without `chunks` of rows the arrays have their shapes and no values.
    """
    rows, columns = shape
    block, blocks = block_size(scheme), blocks_per_row(scheme, columns)
    code_shape, read = (rows, blocks, block * scheme.bits // 8), _RowChunks(chunks)
    padded = (pad_to_blocks(stripe, block, scheme.zero_point) for stripe in read.codes())
    parts = (pack_codes(stripe, scheme.bits).reshape(-1, *code_shape[1:]) for stripe in padded)
    return _packed(scheme, shape, StoredArray(ir.DataType.UINT8, code_shape, parts), read)


def pack_for_gather(scheme: IntegerScheme, shape: tuple[int, int], chunks: "Chunks" = ()) -> PackedWeight:
    """Pack a table [rows, columns] for GatherBlockQuantized: codes uint8 [rows, bytes per row], without padding.

    Without `chunks` of rows the arrays have their shapes and no values.
    """
    rows, columns = shape
    read = _RowChunks(chunks)
    parts = (pack_codes(stripe, scheme.bits) for stripe in read.codes())
    codes = StoredArray(ir.DataType.UINT8, (rows, packed_length(columns, scheme.bits)), parts)
    return _packed(scheme, shape, codes, read)


def pack_for_int8_matmul(shape: tuple[int, int], weight: "IntegerTensor | None" = None) -> PackedWeight:
    """Pack an `int8-row` weight for DequantizeLinear and MatMul: codes int8 [columns, rows], zero point 0.

    Without `weight` the arrays have their shapes and no values.
    """
    rows, columns = shape
    codes = StoredArray(ir.DataType.INT8, (columns, rows), _signed_column_stripes(weight))
    scales = StoredArray(ir.DataType.FLOAT, (rows,), _row_scales(weight))
    return PackedWeight(8, columns, codes, scales, None)


def pack_for_integer_sums(shape: tuple[int, int], weight: "IntegerTensor | None" = None) -> PackedWeight:
    """Pack an `int8-row` weight for MatMulInteger: codes uint8 [columns, rows], zero point 128.

    Unsigned codes, because processors without VNNI saturate the sums of products of unsigned and signed codes.
    """
    rows, columns = shape
    codes = StoredArray(ir.DataType.UINT8, (columns, rows), _column_stripes(weight))
    return PackedWeight(8, columns, codes, StoredArray(ir.DataType.FLOAT, (rows,), _row_scales(weight)), None)


def float_array(dtype: ir.DataType, shape: tuple[int, ...], values: "Tensor | None" = None) -> StoredArray:
    """Return an array of floats; a transposed tensor is copied to row-major order stripe by stripe."""
    return StoredArray(dtype, shape, _float_stripes(values))


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """Pack codes [rows, columns] to [rows, bytes]; two 4-bit codes share a byte, the even column in the low half."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    pairs = np.ascontiguousarray(codes).view("<u2")  # whole vectors of pairs: the even column is in the low byte
    packed: Bytes = (pairs | pairs >> np.uint16(4)).astype(np.uint8)
    return packed


def packed_length(codes: int, bits: int) -> int:
    """Bytes of a row of packed codes."""
    return -(-codes * bits // 8)


def pad_to_blocks(codes: Bytes, block_size: int, padding_code: int) -> Bytes:
    """Pad codes [rows, columns] to whole blocks; no activation is multiplied by the padding."""
    missing = -codes.shape[1] % block_size
    return np.pad(codes, ((0, 0), (0, missing)), constant_values=padding_code) if missing else codes


def _packed(scheme: IntegerScheme, shape: tuple[int, int], codes: StoredArray, chunks: "_RowChunks") -> PackedWeight:
    rows, columns = shape
    blocks = blocks_per_row(scheme, columns)
    scales = (_per_block(scale.numpy(), blocks).astype(np.float32) for scale in chunks.scales)
    zeros = (pack_codes(_per_block(one.numpy(), blocks), scheme.bits) for one in chunks.zero_points)
    return PackedWeight(
        scheme.bits,
        block_size(scheme),
        codes,
        StoredArray(ir.DataType.FLOAT, (rows, blocks), scales),
        None if scheme.symmetric else StoredArray(ir.DataType.UINT8, (rows, packed_length(blocks, scheme.bits)), zeros),
    )


@dataclass(frozen=True, slots=True)
class _RowChunks:
    """Chunks of rows of a weight: their codes are yielded once, scales and zero points are kept."""

    chunks: "Chunks"
    scales: "list[Tensor]" = field(default_factory=list)
    zero_points: "list[Tensor]" = field(default_factory=list)

    def codes(self) -> Iterator[Bytes]:
        """Yield codes of a few rows at a time, so that no copy of a whole weight is in memory."""
        for chunk in self.chunks:
            self.scales.append(chunk.scale)
            if chunk.zero_point is not None:
                self.zero_points.append(chunk.zero_point)
            codes: Bytes = chunk.codes.numpy()
            step = max(1, CODES_PER_STRIPE // chunk.columns)
            yield from (codes[start : start + step] for start in range(0, chunk.rows, step))


def _per_block(values: NDArray[Any], blocks: int) -> NDArray[Any]:
    """Values [rows, groups] -> [rows, blocks]; the one group of an `int-row` weight covers all blocks."""
    return np.repeat(values, blocks, axis=1) if values.shape[1] == 1 else values


def _signed_column_stripes(weight: "IntegerTensor | None") -> Parts:
    """Two's complement codes of a few columns at a time; the zero point moves from 128 to 0."""
    return ((stripe ^ np.uint8(128)).view(np.int8) for stripe in _column_stripes(weight))


def _column_stripes(weight: "IntegerTensor | None") -> Parts:
    """Codes of a few columns at a time."""
    if weight is not None:
        step = max(1, CODES_PER_STRIPE // weight.rows)
        for start in range(0, weight.columns, step):
            yield np.ascontiguousarray(weight.codes[:, start : start + step].numpy().T)


def _row_scales(weight: "IntegerTensor | None") -> Parts:
    if weight is not None:
        yield weight.scale.numpy()[:, 0].astype(np.float32)


def _float_stripes(values: "Tensor | None") -> Parts:
    if values is not None:
        import torch

        step = max(1, CODES_PER_STRIPE // max(1, values[0].numel()))
        for start in range(0, len(values), step):
            stripe = values[start : start + step].contiguous()
            yield (stripe.view(torch.uint16) if stripe.dtype is torch.bfloat16 else stripe).numpy()  # numpy lacks it
