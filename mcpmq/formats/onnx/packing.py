"""Codes as ONNX Runtime's MatMulNBits and GatherBlockQuantized lay them out; the codes stay as they are.

Layout: along the columns low bits first, in blocks of a power of two from 16; float32 scales [rows, blocks]; zero
points packed as the codes are (ContribOperators.md of ONNX Runtime).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.formats.onnx.block_quant import block_columns, blocks
from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme

STRIPE_CODES = 4 << 20  # codes that are laid out at a time
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The three arrays of one weight; `zeros` is None where every zero point is 2^(bits-1)."""

    bits: int
    block_columns: int
    codes: StoredArray
    scales: StoredArray
    zeros: StoredArray | None


def for_product(weight: QTensor) -> PackedWeight:
    """A weight for MatMulNBits: codes uint8 [rows, blocks, bytes of a block], the last block filled up."""
    scheme = _scheme(weight)
    columns = block_columns(scheme)
    shape = weight.rows, blocks(scheme, weight.columns), columns * scheme.bits // 8
    filled = (fill_blocks(stripe, columns, 2 ** (scheme.bits - 1)) for stripe in _stripes(weight))
    parts = (pack(stripe, scheme.bits).reshape(-1, *shape[1:]) for stripe in filled)
    return _packed(weight, StoredArray(ir.DataType.UINT8, shape, parts))


def for_lookup(weight: QTensor) -> PackedWeight:
    """A table for GatherBlockQuantized: codes uint8 [rows, bytes of a row]; nothing is filled up."""
    bits = _scheme(weight).bits
    parts = (pack(stripe, bits) for stripe in _stripes(weight))
    return _packed(weight, StoredArray(ir.DataType.UINT8, (weight.rows, -(-weight.columns * bits // 8)), parts))


def for_integer_product(weight: QTensor) -> PackedWeight:
    """A weight of one scale a row for DequantizeLinear and MatMul: codes int8 [columns, rows], zero at 0."""
    assert _scheme(weight) == IntegerScheme(8, None)
    assert weight.scale is not None
    shape = weight.columns, weight.rows
    step = max(1, STRIPE_CODES // weight.rows)
    stripes = (weight.codes[:, start : start + step].numpy().T for start in range(0, weight.columns, step))
    parts = ((stripe ^ np.uint8(128)).view(np.int8) for stripe in stripes)  # from zero at 128 to two's complement
    scales = _stored(weight.scale.numpy()[:, 0].astype(np.float32))
    return PackedWeight(8, weight.columns, StoredArray(ir.DataType.INT8, shape, parts), scales, None)


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes [rows, columns] -> [rows, bytes]; of 4 bits two share a byte, the even column in the low half."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)


def fill_blocks(codes: Bytes, columns: int, filling: int) -> Bytes:
    """Codes [rows, columns], filled up to whole blocks; what fills meets no activation."""
    missing = -codes.shape[1] % columns
    return np.pad(codes, ((0, 0), (0, missing)), constant_values=filling) if missing else codes


def _scheme(weight: QTensor) -> IntegerScheme:
    assert isinstance(weight.scheme, IntegerScheme)
    return weight.scheme


def _packed(weight: QTensor, codes: StoredArray) -> PackedWeight:
    scheme = _scheme(weight)
    assert weight.scale is not None
    scales = _stored(_by_block(weight, weight.scale.numpy()).astype(np.float32))
    zeros = _stored(pack(_by_block(weight, weight.zero.numpy()), scheme.bits)) if weight.zero is not None else None
    return PackedWeight(scheme.bits, block_columns(scheme), codes, scales, zeros)


def _by_block(weight: QTensor, values: NDArray[Any]) -> NDArray[Any]:
    """What a group has, [rows, groups], for every block of the file: [rows, blocks]."""
    scheme = _scheme(weight)
    return values if scheme.group_size else np.repeat(values, blocks(scheme, weight.columns), axis=1)


def _stripes(weight: QTensor) -> Iterator[Bytes]:
    """A few rows at a time, so that only the weight itself is whole in memory."""
    codes: Bytes = weight.codes.numpy()
    step = max(1, STRIPE_CODES // weight.columns)
    yield from (codes[start : start + step] for start in range(0, weight.rows, step))


def _stored(array: NDArray[Any]) -> StoredArray:
    return StoredArray(ir.DataType.from_numpy(array.dtype), array.shape, [array])
