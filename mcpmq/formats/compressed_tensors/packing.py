"""A weight in the words of compressed-tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.formats.hf.int32_packing import pack_words, unpack_words
from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """The tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` has no say."""
    assert isinstance(weight.scheme, IntegerScheme)
    assert weight.scale is not None
    return {
        "weight_packed": pack_words(weight.codes, weight.scheme.bits),
        "weight_scale": weight.scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def unpack(parts: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """The weight that `pack` made these of."""
    columns = int(parts["weight_shape"][1])
    codes = unpack_words(parts["weight_packed"], scheme.bits, columns)
    return QTensor(scheme, columns, codes.contiguous(), parts["weight_scale"])
