"""Which numbers a weight may take: fit a grid to a weight, round onto it, and back to floats."""

from torch import Tensor

from mcpmq.grids import ggml, integer
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme


def dequantize(weight: QTensor) -> Tensor:
    """The real values of a quantized weight: float32 [rows, columns]."""
    return ggml.dequantize(weight) if isinstance(weight.scheme, GgmlScheme) else integer.dequantize(weight)
