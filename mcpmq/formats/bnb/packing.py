"""A weight in bitsandbytes' tensors, and back."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.grids.codebook import SCALE_BLOCK, scale_of, scale_table, table
from mcpmq.qtensor import PackedScale, QTensor
from mcpmq.scheme import CODEBOOK_COLUMNS, CodebookScheme, IntegerScheme

STATE = "weight.quant_state.bitsandbytes__"
ZERO, HIGHEST = 128, 127  # our code of zero, and theirs of the largest value


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """The tensors of a weight [rows = out, columns = in] that was of this dtype, by their names in its module."""
    if isinstance(weight.scheme, CodebookScheme):
        return _pack_codebook(weight, weight.scheme, dtype)
    assert weight.scale is not None
    return {
        "weight": (weight.codes ^ ZERO).view(torch.int8),
        "SCB": weight.scale[:, 0].float() * HIGHEST,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _pack_codebook(weight: QTensor, scheme: CodebookScheme, dtype: str) -> dict[str, Tensor]:
    packed = weight.packed_scale
    assert packed is not None
    state = {
        "quant_type": scheme.name,
        "blocksize": CODEBOOK_COLUMNS,
        "dtype": dtype,
        "shape": list(weight.shape),
        "nested_blocksize": SCALE_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": packed.offset,
    }
    return {
        "weight": (weight.codes[:, 0::2] << 4 | weight.codes[:, 1::2]).reshape(-1, 1),
        "weight.absmax": packed.codes.flatten(),
        "weight.quant_map": table(scheme.name),
        "weight.nested_absmax": packed.largest,
        "weight.nested_quant_map": scale_table(),
        f"{STATE}{scheme.name}": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }


def unpack(parts: Mapping[str, Tensor], scheme: CodebookScheme | IntegerScheme) -> QTensor:
    """The weight that `pack` made these of."""
    if isinstance(scheme, CodebookScheme):
        return _unpack_codebook(parts, scheme)
    codes = parts["weight"].view(torch.uint8) ^ ZERO
    return QTensor(scheme, codes.shape[1], codes, (parts["SCB"] / HIGHEST).half()[:, None])


def _unpack_codebook(parts: Mapping[str, Tensor], scheme: CodebookScheme) -> QTensor:
    state = json.loads(bytes(parts[f"{STATE}{scheme.name}"].tolist()))
    rows, columns = state["shape"]
    codes = torch.stack([parts["weight"] >> 4, parts["weight"] & 15], -1).reshape(rows, columns)
    scales = parts["weight.absmax"].reshape(rows, -1)
    packed = PackedScale(scales, parts["weight.nested_absmax"], float(state["nested_offset"]))
    return QTensor(scheme, columns, codes, scale_of(packed), packed_scale=packed)
