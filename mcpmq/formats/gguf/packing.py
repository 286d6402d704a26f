"""The bytes of a tensor in ggml's blocks; no code is changed."""

from collections.abc import Sequence

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.qtensor import QTensor
from mcpmq.scheme import GgmlScheme, IntegerScheme


def pack(weight: QTensor | Tensor | None, slot: Slot, others: Sequence[QTensor | Tensor] = ()) -> NDArray[np.uint8]:
    """The bytes of a slot: uint8 [..., bytes of a row]. `others` are what it is computed from beside the weight."""
    if weight is None and slot.values:
        weight = torch.tensor(slot.values)
    rows = _rows(weight, slot, others) if weight is not None else np.empty((0,) * len(slot.shape), np.uint8)
    if rows.shape == slot.byte_shape:
        return rows
    padded = np.zeros(slot.byte_shape, np.uint8)  # a block of zero bytes is a block of zeros in every type
    padded[tuple(slice(size) for size in rows.shape)] = rows
    return padded


def _rows(weight: QTensor | Tensor, slot: Slot, others: Sequence[QTensor | Tensor]) -> NDArray[np.uint8]:
    wanted = _order(slot)
    if isinstance(weight, Tensor):
        held = weight if slot.frame is None else weight[:, :, slot.frame]
        held = slot.computed(held, *others) if slot.computed else held
        return _float_bytes(held[wanted], slot.type)
    codes = weight.codes[wanted].numpy()
    if isinstance(weight.scheme, GgmlScheme):
        return codes
    assert weight.scale is not None
    assert isinstance(weight.scheme, IntegerScheme)
    scale = weight.scale[wanted].numpy()
    return pack_integers(codes, scale, weight.scheme)


def _order(slot: Slot) -> slice | Tensor:
    """The source's rows of a slot. RoPE turns pairs of rows: the first and second halves of a head in transformers,
    neighbours in llama.cpp."""
    if slot.rows:
        return torch.tensor(slot.rows)
    rows = slice(slot.first_row, slot.first_row + slot.shape[0])
    if not slot.heads:
        return rows
    return torch.arange(rows.start, rows.stop).reshape(slot.heads, 2, -1).transpose(1, 2).flatten()


def _float_bytes(weight: Tensor, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    converted = weight.float() if kind == GGMLQuantizationType.F32 else weight
    return converted.contiguous().view(torch.uint8).numpy()


def pack_integers(codes: NDArray[np.uint8], scale: NDArray[np.float16], scheme: IntegerScheme) -> NDArray[np.uint8]:
    """Symmetric codes [rows, columns] and scales [rows, groups] as Q4_0 or Q8_0 blocks: uint8 [rows, bytes of a row].

    A block has 32 columns and one scale; a wider group repeats its own. The last block is filled with zeros.
    Layout: block_q4_0 and block_q8_0 in ggml-common.h.
    """
    rows, columns = codes.shape
    blocks = -(-columns // BLOCK_COLUMNS)
    if missing := blocks * BLOCK_COLUMNS - columns:
        codes = np.pad(codes, ((0, 0), (0, missing)), constant_values=1 << (scheme.bits - 1))
    grouped = codes.reshape(rows, blocks, BLOCK_COLUMNS)
    group = np.arange(blocks) * BLOCK_COLUMNS // (scheme.group_size or columns)
    packed = np.empty((rows, blocks, 2 + BLOCK_COLUMNS * scheme.bits // 8), np.uint8)
    packed[..., :2] = np.ascontiguousarray(scale[:, group])[..., None].view(np.uint8)
    if scheme.bits == 8:
        np.bitwise_xor(grouped, 0x80, out=packed[..., 2:])  # from zero at 128 to two's complement
    else:
        np.left_shift(grouped[..., 16:], 4, out=packed[..., 2:])
        packed[..., 2:] |= grouped[..., :16]
    return packed.reshape(rows, -1)
