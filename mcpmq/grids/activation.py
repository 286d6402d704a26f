"""Static activation grids: the inputs of a matrix as unsigned integers over their range in the calibration samples.

The value of code `q` is (q - zero_point) * scale, as in QuantizeLinear and DequantizeLinear of ONNX.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from mcpmq.recipe import Activation

ACTIVATION_QMAX: dict[Activation, int] = {"u8": 255}
Range = tuple[float, float]  # minimum and maximum


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
