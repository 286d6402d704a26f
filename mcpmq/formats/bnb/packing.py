"""Pack a weight into bitsandbytes' tensors, and unpack it."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.grids.codebook import SCALE_BLOCK_SIZE, code_values, dequantize_scale, dynamic_map
from mcpmq.qtensor import CodebookTensor, DoubleQuantScale, IntegerTensor, QTensor
from mcpmq.scheme import CODEBOOK_GROUP_SIZE, CodebookScheme, IntegerScheme

QUANT_STATE_PREFIX = "weight.quant_state.bitsandbytes__"
ZERO_POINT, MAX_CODE = 128, 127  # code of the value 0 here; code of the largest magnitude in bitsandbytes


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in] of this original dtype, by name in its module."""
    if isinstance(weight, CodebookTensor):
        return _pack_codebook(weight, weight.scheme, dtype)
    assert isinstance(weight, IntegerTensor)
    return {
        "weight": (weight.codes ^ ZERO_POINT).view(torch.int8),
        "SCB": weight.scale[:, 0].float() * MAX_CODE,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _pack_codebook(weight: CodebookTensor, scheme: CodebookScheme, dtype: str) -> dict[str, Tensor]:
    packed = weight.double_quant
    assert packed is not None
    state = {
        "quant_type": scheme.name,
        "blocksize": CODEBOOK_GROUP_SIZE,
        "dtype": dtype,
        "shape": list(weight.shape),
        "nested_blocksize": SCALE_BLOCK_SIZE,
        "nested_dtype": "float32",
        "nested_offset": packed.offset,
    }
    return {
        "weight": (weight.codes[:, 0::2] << 4 | weight.codes[:, 1::2]).reshape(-1, 1),
        "weight.absmax": packed.codes.flatten(),
        "weight.quant_map": code_values(scheme.name),
        "weight.nested_absmax": packed.absmax,
        "weight.nested_quant_map": dynamic_map(),
        f"{QUANT_STATE_PREFIX}{scheme.name}": torch.frombuffer(
            bytearray(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


def unpack(tensors: Mapping[str, Tensor], scheme: CodebookScheme | IntegerScheme) -> QTensor:
    """Return the weight that `pack` packed."""
    if isinstance(scheme, CodebookScheme):
        return _unpack_codebook(tensors, scheme)
    codes = tensors["weight"].view(torch.uint8) ^ ZERO_POINT
    return IntegerTensor(scheme, codes, (tensors["SCB"] / MAX_CODE).half()[:, None])


def _unpack_codebook(parts: Mapping[str, Tensor], scheme: CodebookScheme) -> QTensor:
    state = json.loads(bytes(parts[f"{QUANT_STATE_PREFIX}{scheme.name}"].tolist()))
    rows, columns = state["shape"]
    codes = torch.stack([parts["weight"] >> 4, parts["weight"] & 15], -1).reshape(rows, columns)
    scales = parts["weight.absmax"].reshape(rows, -1)
    packed = DoubleQuantScale(scales, parts["weight.nested_absmax"], float(state["nested_offset"]))
    return CodebookTensor(scheme, codes, dequantize_scale(packed), packed)
