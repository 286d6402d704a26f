"""Weights as int8 for `int-quantized`, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.scheme import IntegerScheme

MIDPOINT = 128  # codes are unsigned


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` is not used."""
    assert isinstance(weight, IntegerTensor)
    return {"weight": (weight.codes.to(torch.int16) - MIDPOINT).to(torch.int8), "weight_scale": weight.scale}


def unpack(tensors: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """Return the weight that `pack` packed."""
    codes = (tensors["weight"].to(torch.int16) + MIDPOINT).to(torch.uint8)
    return IntegerTensor(scheme, codes, tensors["weight_scale"])
