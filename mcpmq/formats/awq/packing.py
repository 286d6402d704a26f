"""A weight in AWQ's words, and back."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mcpmq.formats.hf.int32_packing import pack_words, unpack_words, zeros_of
from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in a word, from its lowest bits on
PLACES = tuple(ORDER.index(output) for output in range(len(ORDER)))
BITS = 4


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """The tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` has no say."""
    assert weight.scale is not None
    return {
        "qweight": pack_words(_rearranged(weight.codes.T, ORDER), BITS),
        "qzeros": pack_words(_rearranged(zeros_of(weight), ORDER), BITS),
        "scales": weight.scale.T,
    }


def unpack(parts: Mapping[str, Tensor], scheme: IntegerScheme) -> QTensor:
    """The weight that `pack` made these of."""
    columns, rows = parts["qweight"].shape[0], parts["scales"].shape[1]
    codes, zero = (_rearranged(unpack_words(parts[name], BITS, rows), PLACES).T for name in ("qweight", "qzeros"))
    scale = parts["scales"].T.contiguous()
    return QTensor(scheme, columns, codes.contiguous(), scale, None if scheme.symmetric else zero.contiguous())


def _rearranged(codes: Tensor, order: Sequence[int]) -> Tensor:
    """Codes [any, out] with the outputs of every word in another order."""
    return codes.reshape(len(codes), -1, len(order))[..., list(order)].flatten(1)
