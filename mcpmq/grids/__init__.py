"""Which numbers a weight may take: fit a grid to a weight, round onto it, and back to floats."""

from torch import Tensor

from mcpmq.grids import codebook, ggml, integer
from mcpmq.qtensor import QTensor
from mcpmq.scheme import CodebookScheme, GgmlScheme


def dequantize(weight: QTensor) -> Tensor:
    """The real values of a quantized weight: float32 [rows, columns]."""
    if isinstance(weight.scheme, CodebookScheme):
        return codebook.dequantize(weight)
    return ggml.dequantize(weight) if isinstance(weight.scheme, GgmlScheme) else integer.dequantize(weight)
