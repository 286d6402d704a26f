"""A weight in GPTQ's words, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.formats.gptq import checkpoint_format
from mcpmq.formats.hf.int32_packing import pack_words, unpack_words, zeros_of
from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """The tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` has no say."""
    scheme = weight.scheme
    assert isinstance(scheme, IntegerScheme)
    assert weight.scale is not None
    width = scheme.group_size or weight.columns
    return {
        "qweight": pack_words(weight.codes, scheme.bits).T,
        "qzeros": pack_words(zeros_of(weight) - _stored_below(scheme), scheme.bits),
        "scales": weight.scale.T,
        "g_idx": torch.arange(weight.columns, dtype=torch.int32) // width,
    }


def unpack(parts: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """The weight that `pack` made these of."""
    columns, rows = len(parts["g_idx"]), parts["qweight"].shape[1]
    codes = unpack_words(parts["qweight"].T, scheme.bits, columns)
    zero = unpack_words(parts["qzeros"], scheme.bits, rows).T + _stored_below(scheme)
    return QTensor(scheme, columns, codes, parts["scales"].T.contiguous(), None if scheme.symmetric else zero)


def _stored_below(scheme: IntegerScheme) -> int:
    return 1 if checkpoint_format(scheme) == "gptq" else 0
