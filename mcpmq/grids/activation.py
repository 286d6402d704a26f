"""Grids of the inputs of a matrix: over their range in the calibration samples, or over the magnitude of each token.

The value of code `q` of a static grid is (q - zero_point) * scale, as in QuantizeLinear and DequantizeLinear of ONNX.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.recipe import Activation

ACTIVATION_QMAX: dict[Activation, int] = {"u8": 255}  # of static grids
HALF_RANGE = 127.5  # of int8
Range = tuple[float, float]  # minimum and maximum
MIN_WIDTH = max(ACTIVATION_QMAX.values()) * float(np.finfo(np.float32).tiny)  # a smaller one has subnormal scales


def check_range(name: str, observed: Range) -> None:
    """Check that a scale in float32 represents the range of the inputs of a matrix; zero alone needs no scale.

    Raises:
        ScaleError: the range is too small.
    """
    width = max(observed[1], 0.0) - min(observed[0], 0.0)
    if 0 < width < MIN_WIDTH:
        raise ScaleError(
            f"the inputs of `{name}` have a range of {width:.2g}, too small for a float32 scale",
            f"remove `{name}` from [activations] in the recipe",
        )


class InputGrid(Protocol):
    """The values that the inputs of a matrix can take."""

    def fake_quantize(self, values: Tensor) -> Tensor:
        """Round values [..., columns] to the nearest on the grid, in their dtype and shape."""


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """Signed integers of 8 bits with a scale for each token, computed from its inputs (dynamic quantization).

    The scale is the largest magnitude divided by half of the range, 127.5, as in compressed-tensors; kernels of vLLM
    divide by 127. Source: ZeroQuant, arXiv 2206.01861.
    """

    def fake_quantize(self, values: Tensor) -> Tensor:
        """Round values [..., columns] to the nearest on the grid of their token, in their dtype and shape."""
        scale = values.abs().amax(-1, keepdim=True) / HALF_RANGE
        scale = scale.masked_fill(scale == 0, 1.0)
        return (values / scale).round_().clamp_(-128, 127).mul_(scale)


@dataclass(frozen=True, slots=True)
class ActivationGrid:
    """The grid of the inputs of a matrix, per tensor."""

    scale: float  # exact in float32
    zero_point: int
    qmax: int

    @classmethod
    def from_range(cls, observed: Range, activation: Activation) -> Self:
        """Return the grid that covers a range and represents zero exactly."""
        minimum, maximum = min(observed[0], 0.0), max(observed[1], 0.0)
        scale = float(np.float32((maximum - minimum) / ACTIVATION_QMAX[activation])) or 1.0
        return cls(scale, round(-minimum / scale), ACTIVATION_QMAX[activation])

    def fake_quantize(self, values: Tensor) -> Tensor:
        """Round values to the nearest on the grid, in their dtype and shape."""
        codes = (values / self.scale).round_().add_(self.zero_point).clamp_(0, self.qmax)
        return codes.sub_(self.zero_point).mul_(self.scale)
