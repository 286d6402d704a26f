"""Rounding of numbers that the searches for scales share."""

import torch
from torch import Tensor

from mcpmq.grids.kernels.compiler import TINY
from mcpmq.grids.kernels.lanes import HALF_MAX


def round_to_half(values: Tensor) -> Tensor:
    """Round to fp16, larger values to its largest; float32."""
    return values.clamp(-float(HALF_MAX), float(HALF_MAX)).half().float()


def reciprocal(step: Tensor) -> Tensor:
    """Return 1 / step, or 0 if the step is zero: then every code is the one of zero."""
    return torch.where(step.abs() > float(TINY), 1 / step, 0)
