"""Pack a weight into AWQ's tensors, and unpack it."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mcpmq.formats.hf.int32_packing import pack_int32, unpack_int32, zero_points
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.scheme import IntegerScheme

PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs of a word, from its lowest bits
UNPACK_ORDER = tuple(PACK_ORDER.index(output) for output in range(len(PACK_ORDER)))
BITS = 4


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` is not used."""
    assert isinstance(weight, IntegerTensor)
    return {
        "qweight": pack_int32(_reorder(weight.codes.T, PACK_ORDER), BITS),
        "qzeros": pack_int32(_reorder(zero_points(weight), PACK_ORDER), BITS),
        "scales": weight.scale.T,
    }


def unpack(tensors: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """Return the weight that `pack` packed."""
    rows = tensors["scales"].shape[1]
    codes, zero = (_reorder(unpack_int32(tensors[name], BITS, rows), UNPACK_ORDER).T for name in ("qweight", "qzeros"))
    scale = tensors["scales"].T.contiguous()
    return IntegerTensor(scheme, codes.contiguous(), scale, None if scheme.symmetric else zero.contiguous())


def _reorder(codes: Tensor, order: Sequence[int]) -> Tensor:
    """Return codes [any, out] with the outputs of every word in another order."""
    return codes.reshape(len(codes), -1, len(order))[..., list(order)].flatten(1)
