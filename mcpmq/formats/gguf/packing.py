"""Bytes of a tensor in ggml's block layouts; codes are not changed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.grids import dequantize
from mcpmq.qtensor import GgmlTensor, IntegerTensor, QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.scheme import IntegerScheme


def packed_parts(quantized: QuantizedModel, tensor: GgufTensor) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor, a few rows at a time if they are those of one quantized weight in its order.

    The matrices of a stack follow each other.
    """
    if tensor.stack:
        for name in tensor.stack:
            yield from packed_parts(quantized, replace(tensor, source=name, shape=tensor.shape[1:], stack=()))
        return
    if tensor.source is None or not _keeps_rows(tensor, quantized):
        weight = quantized.load(tensor.source) if tensor.source else None
        yield pack(weight, tensor, [quantized.load(name) for name in tensor.extra_sources])
        return
    missing = tensor.shape[0]
    for chunk in quantized.row_chunks(tensor.source):
        yield _pad(_packed_rows(chunk, slice(None)), (chunk.rows, *tensor.byte_shape[1:]))
        missing -= chunk.rows
    if missing:
        yield np.zeros((missing, *tensor.byte_shape[1:]), np.uint8)


def _keeps_rows(tensor: GgufTensor, quantized: QuantizedModel) -> bool:
    """Return whether the rows of a tensor are those of a quantized weight, except for padding."""
    assert tensor.source
    scheme, spec = quantized.scheme(tensor.source), quantized.specs[tensor.source]
    is_changed = (
        tensor.permuted_heads or tensor.source_rows or tensor.source_heads or tensor.transform or tensor.first_row
    )
    rows = spec.shape[1 if spec.transposed else 0]
    return scheme is not None and scheme.is_quantized and not is_changed and rows <= tensor.shape[0]


def pack(
    weight: QTensor | Tensor | None, tensor: GgufTensor, extra_weights: Sequence[QTensor | Tensor] = ()
) -> NDArray[np.uint8]:
    """Return the bytes of a tensor: uint8 [..., bytes of a row].

    `extra_weights` are the further arguments of the tensor's transform. Bytes after the weight's rows and columns are
    zero.
    """
    if weight is None and tensor.compute:
        weight = tensor.compute()
    elif weight is None and tensor.values:
        weight = torch.tensor(tensor.values)
    elif weight is not None and not isinstance(weight, Tensor) and tensor.type == GGMLQuantizationType.F32:
        weight = dequantize(weight)
    rows = _rows(weight, tensor, extra_weights) if weight is not None else np.empty((0,) * len(tensor.shape), np.uint8)
    return _pad(rows, tensor.byte_shape)


def _pad(rows: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if rows.shape == shape:
        return rows
    padded = np.zeros(shape, np.uint8)  # the scale of a zero block is 0 in every type
    padded[tuple(slice(size) for size in rows.shape)] = rows
    return padded


def _rows(weight: QTensor | Tensor, tensor: GgufTensor, extra: Sequence[QTensor | Tensor]) -> NDArray[np.uint8]:
    rows = _source_rows(tensor)
    if isinstance(weight, Tensor):
        values = weight if tensor.frame is None else weight[:, :, tensor.frame]
        values = tensor.transform(values, *extra) if tensor.transform else values
        return _reorder_heads(_float_bytes(values[rows], tensor.type), tensor)
    return _reorder_heads(_packed_rows(weight, rows), tensor)


def _reorder_heads(rows: NDArray[np.uint8], tensor: GgufTensor) -> NDArray[np.uint8]:
    """Reorder the columns by head; a head is whole blocks, so bytes move and no code changes."""
    if not tensor.source_heads:
        return rows
    return rows.reshape(len(rows), len(tensor.source_heads), -1)[:, tensor.source_heads].reshape(rows.shape)


def _packed_rows(weight: QTensor, rows: slice | Tensor) -> NDArray[np.uint8]:
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
    from mcpmq.grids.kernels.integer_groups import pack_blocks  # numba takes a second to import

    columns = codes.shape[1]
    blocks = -(-columns // BLOCK_COLUMNS)
    if missing := blocks * BLOCK_COLUMNS - columns:
        codes = np.pad(codes, ((0, 0), (0, missing)), constant_values=scheme.zero_point)
    packed = np.empty((len(codes), blocks * (2 + BLOCK_COLUMNS * scheme.bits // 8)), np.uint8)
    scale_bytes = np.ascontiguousarray(scale).view(np.uint8)
    pack_blocks(np.ascontiguousarray(codes), scale_bytes, scheme.group_columns(columns), packed)
    return packed
