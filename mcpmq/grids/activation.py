"""Inputs of a matrix as unsigned integers over a range that calibration saw: what a static engine multiplies.

The value of code `q` is (q - zero) * scale, as QuantizeLinear and DequantizeLinear of ONNX have it.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from mcpmq.recipe import Activation

HIGHEST: dict[Activation, int] = {"u8": 255}
Range = tuple[float, float]  # lowest and highest


@dataclass(frozen=True, slots=True)
class InputGrid:
    """The integers that the inputs of a matrix are rounded to."""

    scale: float  # a float32
    zero: int
    highest: int

    @classmethod
    def over(cls, seen: Range, kind: Activation) -> Self:
        """The grid that covers a range, and zero exactly."""
        low, high = min(seen[0], 0.0), max(seen[1], 0.0)
        scale = float(np.float32((high - low) / HIGHEST[kind])) or 1.0
        return cls(scale, round(-low / scale), HIGHEST[kind])

    def rounded(self, values: Tensor) -> Tensor:
        """The nearest values on the grid."""
        codes = (values / self.scale).round_().add_(self.zero).clamp_(0, self.highest)
        return codes.sub_(self.zero).mul_(self.scale)
