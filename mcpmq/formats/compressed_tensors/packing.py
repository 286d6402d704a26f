"""Pack a weight into the tensors of compressed-tensors, and unpack it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.formats.hf.int32_packing import pack_int32, unpack_int32
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.scheme import IntegerScheme


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` is not used."""
    assert isinstance(weight, IntegerTensor)
    return {
        "weight_packed": pack_int32(weight.codes, weight.scheme.bits),
        "weight_scale": weight.scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def unpack(tensors: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """Return the weight that `pack` packed."""
    columns = int(tensors["weight_shape"][1])
    codes = unpack_int32(tensors["weight_packed"], scheme.bits, columns)
    return IntegerTensor(scheme, codes.contiguous(), tensors["weight_scale"])
