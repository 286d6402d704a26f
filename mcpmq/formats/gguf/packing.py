"""Bytes of a tensor in ggml's block layouts; codes are not changed."""

from collections.abc import Sequence

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.qtensor import GgmlTensor, IntegerTensor, QTensor
from mcpmq.scheme import IntegerScheme


def pack(
    weight: QTensor | Tensor | None, tensor: GgufTensor, extra_weights: Sequence[QTensor | Tensor] = ()
) -> NDArray[np.uint8]:
    """Return the bytes of a tensor: uint8 [..., bytes of a row].

    `extra_weights` are the further arguments of the tensor's transform. Bytes after the weight's rows and columns are
    zero.
    """
    if weight is None and tensor.values:
        weight = torch.tensor(tensor.values)
    rows = _rows(weight, tensor, extra_weights) if weight is not None else np.empty((0,) * len(tensor.shape), np.uint8)
    if rows.shape == tensor.byte_shape:
        return rows
    padded = np.zeros(tensor.byte_shape, np.uint8)  # the scale of a zero block is 0 in every type
    padded[tuple(slice(size) for size in rows.shape)] = rows
    return padded


def _rows(weight: QTensor | Tensor, tensor: GgufTensor, extra: Sequence[QTensor | Tensor]) -> NDArray[np.uint8]:
    rows = _source_rows(tensor)
    if isinstance(weight, Tensor):
        values = weight if tensor.frame is None else weight[:, :, tensor.frame]
        values = tensor.transform(values, *extra) if tensor.transform else values
        return _float_bytes(values[rows], tensor.type)
    if isinstance(weight, GgmlTensor):
        return weight.blocks[rows].numpy()
    assert isinstance(weight, IntegerTensor)
    return pack_integers(weight.codes[rows].numpy(), weight.scale[rows].numpy(), weight.scheme)


def _source_rows(tensor: GgufTensor) -> slice | Tensor:
    """Return the source rows of a tensor.

    RoPE rotates pairs of rows: row i of the first and of the second half of a head in transformers, adjacent rows in
    llama.cpp.
    """
    if tensor.source_rows:
        return torch.tensor(tensor.source_rows)
    rows = slice(tensor.first_row, tensor.first_row + tensor.shape[0])
    if not tensor.permuted_heads:
        return rows
    return torch.arange(rows.start, rows.stop).reshape(tensor.permuted_heads, 2, -1).transpose(1, 2).flatten()


def _float_bytes(weight: Tensor, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    converted = weight.float() if kind == GGMLQuantizationType.F32 else weight
    return converted.contiguous().view(torch.uint8).numpy()


def pack_integers(codes: NDArray[np.uint8], scale: NDArray[np.float16], scheme: IntegerScheme) -> NDArray[np.uint8]:
    """Pack symmetric codes [rows, columns] and scales [rows, groups] into Q4_0 or Q8_0: uint8 [rows, bytes of a row].

    A block has 32 columns and one scale; blocks of a larger group repeat its scale. The last block is zero-padded.
    Layout: block_q4_0 and block_q8_0 in ggml-common.h.
    """
    rows, columns = codes.shape
    blocks = -(-columns // BLOCK_COLUMNS)
    if missing := blocks * BLOCK_COLUMNS - columns:
        codes = np.pad(codes, ((0, 0), (0, missing)), constant_values=scheme.zero_point)
    grouped = codes.reshape(rows, blocks, BLOCK_COLUMNS)
    group = np.arange(blocks) * BLOCK_COLUMNS // scheme.group_columns(columns)
    packed = np.empty((rows, blocks, 2 + BLOCK_COLUMNS * scheme.bits // 8), np.uint8)
    packed[..., :2] = np.ascontiguousarray(scale[:, group])[..., None].view(np.uint8)
    if scheme.bits == 8:
        np.bitwise_xor(grouped, 0x80, out=packed[..., 2:])  # from zero point 128 to two's complement
    else:
        np.left_shift(grouped[..., 16:], 4, out=packed[..., 2:])
        packed[..., 2:] |= grouped[..., :16]
    return packed.reshape(rows, -1)
