"""Pack a weight into GPTQ's tensors, and unpack it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.formats.gptq import checkpoint_format
from mcpmq.formats.hf.int32_packing import pack_int32, unpack_int32, zero_points
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.scheme import IntegerScheme


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` is not used."""
    assert isinstance(weight, IntegerTensor)
    scheme = weight.scheme
    return {
        "qweight": pack_int32(weight.codes, scheme.bits).T,
        "qzeros": pack_int32(zero_points(weight) - _zero_offset(scheme), scheme.bits),
        "scales": weight.scale.T,
        "g_idx": torch.arange(weight.columns, dtype=torch.int32) // scheme.group_columns(weight.columns),
    }


def unpack(tensors: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """Return the weight that `pack` packed."""
    columns, rows = len(tensors["g_idx"]), tensors["qweight"].shape[1]
    codes = unpack_int32(tensors["qweight"].T, scheme.bits, columns)
    zero = unpack_int32(tensors["qzeros"], scheme.bits, rows).T + _zero_offset(scheme)
    return IntegerTensor(scheme, codes, tensors["scales"].T.contiguous(), None if scheme.symmetric else zero)


def _zero_offset(scheme: IntegerScheme) -> int:
    """Return the zero point minus its stored value."""
    return 1 if checkpoint_format(scheme) == "gptq" else 0
